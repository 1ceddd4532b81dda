//! selvedge-proxy
