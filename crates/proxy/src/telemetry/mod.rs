//! Metrics, access logs and traces, all from the one [record](crate) of a request or connection.
