//! selvedge-control
