//! HTTP/1.1: own connection code over the strict parsers of `selvedge_wire::http1`.
