//! Who runs connections. One current-thread runtime per core; what belongs to a worker (pool shards, metric shards)
//! is found by its index, so that nothing on the request path is contended.

/// Identifies one worker to everything that is kept per worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub usize);

/// How many workers there are: fixed for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerCount(pub usize);
