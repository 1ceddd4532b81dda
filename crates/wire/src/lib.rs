//! selvedge-wire
