pub mod h1 {
    use crate::{
        Request, Response,
        codec::{Progress, SendError},
        error::{Error, Kind},
        io::{Io, Probe},
    };
    use std::sync::Arc;
    #[derive(Debug, Default)]
    pub struct ClientOptions;
    pub trait Home: Send + Sync {
        fn give_back(&self, connection: Connection);
    }
    pub struct Connection {
        io: Io,
        home: Arc<dyn Home>,
        requests: u32,
    }
    impl std::fmt::Debug for Connection {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("c")
        }
    }
    impl Connection {
        pub fn new(io: Io, home: Arc<dyn Home>) -> Self {
            Self { io, home, requests: 0 }
        }
        pub fn requests(&self) -> u32 {
            self.requests
        }
        pub fn is_reusable(&mut self) -> bool {
            self.io.probe() == Probe::Idle
        }
        pub async fn send(mut self, _: Request, _: &ClientOptions) -> Result<Response, SendError> {
            self.requests += 1;
            let home = self.home.clone();
            home.give_back(self);
            Err(SendError { error: Error::upstream(Kind::Internal, "shim"), progress: Progress::Unsent })
        }
    }
}
