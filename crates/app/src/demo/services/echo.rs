//! Plain TCP: every byte comes back.

use tokio::{io, net::TcpStream};

pub async fn serve(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    // A client that goes away is none of the service's business.
    let _ = io::copy(&mut read, &mut write).await;
}
