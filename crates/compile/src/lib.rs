//! selvedge-compile
