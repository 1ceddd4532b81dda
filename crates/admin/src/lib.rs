//! selvedge-admin
