//! Mutual TLS by identity: X.509 SVIDs, trust bundles, and the TLS configurations made of them.

#![forbid(unsafe_code)]
