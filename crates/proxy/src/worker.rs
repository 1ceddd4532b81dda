//! Who runs connections. One current-thread runtime per worker; what belongs to a worker (pool shards, metric shards)
//! is found by its index, so that nothing on the request path is contended.
//!
//! All workers wait on the same listening sockets: a socket per worker (SO_REUSEPORT) would lose the connections in a
//! socket's backlog when it closes, and could not be handed to a new process as one. Whoever accepts passes the
//! connection to the worker with the fewest, which long-lived HTTP/2 connections need to be spread evenly.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};
use tokio::{runtime, sync::watch};

/// Identifies one worker to everything that is kept per worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub usize);

/// How many workers there are: fixed for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerCount(pub usize);

/// The worker threads. Dropping this ends them and whatever still runs on them.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<runtime::Handle>,
    connections: Vec<Arc<AtomicUsize>>,
    stop: watch::Sender<bool>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Counts a connection on its worker.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads with a runtime each.
    pub fn start(count: WorkerCount) -> io::Result<Self> {
        let stop = watch::Sender::new(false);
        let mut workers = Self { handles: Vec::new(), connections: Vec::new(), stop, threads: Vec::new() };
        for index in 0..count.0.max(1) {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            workers.handles.push(runtime.handle().clone());
            workers.connections.push(Arc::new(AtomicUsize::new(0)));
            let mut stopped = workers.stop.subscribe();
            let run = move || {
                // An error says that the sender is gone, which is a stop too.
                let _ = runtime.block_on(stopped.wait_for(|stop| *stop));
            };
            workers.threads.push(thread::Builder::new().name(format!("selvedge-{index}")).spawn(run)?);
        }
        Ok(workers)
    }

    pub fn count(&self) -> WorkerCount {
        WorkerCount(self.handles.len())
    }

    pub fn handle(&self, worker: WorkerId) -> &runtime::Handle {
        &self.handles[worker.0]
    }

    pub fn ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.handles.len()).map(WorkerId)
    }

    /// The worker to run a new connection on, counted as its load from here on. `here` wins among equals.
    pub fn place(&self, here: WorkerId) -> (WorkerId, Load) {
        let mut best = here;
        let mut fewest = self.connections[here.0].load(Relaxed);
        for (index, count) in self.connections.iter().enumerate() {
            let count = count.load(Relaxed);
            if count < fewest {
                (best, fewest) = (WorkerId(index), count);
            }
        }
        let load = self.connections[best.0].clone();
        load.fetch_add(1, Relaxed);
        (best, Load(load))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // Never wait for the thread that drops us.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
