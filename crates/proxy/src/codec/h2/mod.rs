//! HTTP/2 on the `h2` crate, with the limits of a hostile edge.
