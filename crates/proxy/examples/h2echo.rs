//! A plain HTTP/2 echo server on the proxy's codec, for h2spec and h2load: `h2echo 127.0.0.1:0` prints its address.

use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Body, Error, Request, Response, codec, drain::Drainer};
use std::{io::Write as _, sync::Arc};
use tokio::net::TcpListener;

struct Echo;

impl codec::Service for Echo {
    async fn call(&self, request: Request) -> Response {
        if request.uri().path() == "/hello" || request.method() == http::Method::GET {
            return Response::new(Body::full("hello, world"));
        }
        Response::new(request.into_body())
    }

    fn rejected(&self, status: http::StatusCode, error: &Error) {
        eprintln!("rejected with {status}: {error}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let drainer = Drainer::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let drain = drainer.subscribe();
        tokio::spawn(async move {
            let options = HttpOptions::default();
            if let Err(error) = codec::h2::serve(stream.into(), Arc::new(Echo), &options, drain).await {
                eprintln!("connection ended: {error}");
            }
        });
    }
}
