//! selvedge-model
