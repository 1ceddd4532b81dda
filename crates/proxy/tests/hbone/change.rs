//! What changes while connections live: certificates, roots, revocations, proxies that drain.

use crate::support::{CART, Far, Near, ORDERS, config, id, post, read, svid, trust, until, workload};
use selvedge_compile::snapshot::UpstreamProtocol;
use selvedge_proxy::Body;
use selvedge_testkit::{certs::Ca, tcp::Server};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

/// Both sides get new certificates, then a new root and certificates of it, while requests go on.
#[tokio::test]
async fn rotation_fails_nothing() {
    let (ca, next) = (Ca::new("root"), Ca::new("next"));
    for hbone in [true, false] {
        let behind = workload(false).await;
        let far = Far::start(&ca, ORDERS, behind.address).await;
        let near = Arc::new(Near::new(&ca, config(behind.address, UpstreamProtocol::Http1, far.peer(hbone))));
        let (done, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut clients = JoinSet::new();
        for client in 0..8 {
            let (near, done, stop) = (near.clone(), done.clone(), stop.clone());
            clients.spawn(async move {
                while !stop.load(SeqCst) {
                    if client % 2 == 0 {
                        let response = near.send(post(Body::full(vec![1; 2000]))).await.expect("a response");
                        let (status, body) = read(response).await.expect("a body");
                        assert_eq!((status.as_u16(), body.to_bytes().len()), (200, 2000));
                    } else {
                        // A stream of its own each time.
                        let (mut io, _held) = near.raw().await.expect("a stream");
                        io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("write");
                        let mut got = String::new();
                        io.read_to_string(&mut got).await.expect("read");
                        assert!(got.starts_with("HTTP/1.1 200"), "{got}");
                    }
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        for round in 0..12 {
            let from = done.load(SeqCst);
            until("more requests", || done.load(SeqCst) > from + 40 || clients.try_join_next().is_some()).await;
            match round {
                5 => [&near.identities, &far.identities].map(|ids| trust(ids, &[&ca, &next], [])),
                10 => [&near.identities, &far.identities].map(|ids| trust(ids, &[&next], [])),
                _ => {
                    let issuer = if round > 5 { &next } else { &ca };
                    [near.identities.set(svid(issuer, CART)), far.identities.set(svid(issuer, ORDERS))]
                }
            };
        }
        stop.store(true, SeqCst);
        while let Some(ended) = clients.join_next().await {
            ended.expect("no request failed");
        }
        assert!(done.load(SeqCst) > 400);
        assert!(far.connections() >= 10, "each certificate has its connections, but {}", far.connections());
    }
}

#[tokio::test]
async fn revocation_ends_live_connections() {
    let ca = Ca::new("root");
    let behind = Server::echo("").await;
    for hbone in [true, false] {
        for revoked_is_server in [true, false] {
            let far = Far::start(&ca, ORDERS, behind.address).await;
            let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(hbone)));
            let (mut io, _held) = near.raw().await.expect("a stream");
            io.write_all(b"x").await.expect("write");
            io.read_exact(&mut [0]).await.expect("an echo");
            let (judge, own) = if revoked_is_server {
                (&near.identities, far.identities.get(&id(ORDERS)))
            } else {
                (&far.identities, near.identities.get(&id(CART)))
            };
            trust(judge, &[&ca], [own.expect("an SVID").serial().clone()]);
            // A reset, or the end without a word.
            let end = io.read(&mut [0]).await;
            assert!(matches!(end, Ok(0) | Err(_)), "hbone {hbone} server {revoked_is_server} {end:?}");
            assert!(near.raw().await.is_err() || !revoked_is_server);
        }
    }
}

/// The bundle loses the root of a live connection.
#[tokio::test]
async fn a_root_that_goes_takes_its_connections() {
    let (ca, next) = (Ca::new("root"), Ca::new("next"));
    let behind = Server::echo("").await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(true)));
    let (mut io, _held) = near.raw().await.expect("a stream");
    trust(&near.identities, &[&next], []);
    assert!(matches!(io.read(&mut [0]).await, Ok(0) | Err(_)));
    let error = near.raw().await.err().expect("refused");
    assert!(error.to_string().contains("none that we trust"), "{error}");
}

/// Our certificate changes: streams that are open go on, new ones take a new connection, and the old one closes when
/// its last stream ends.
#[tokio::test]
async fn old_connections_finish() {
    let ca = Ca::new("root");
    let behind = Server::echo("").await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(true)));
    let (mut old, _held) = near.raw().await.expect("a stream");
    near.identities.set(svid(&ca, CART));
    let (mut new, _held) = near.raw().await.expect("a stream");
    assert_eq!(far.connections(), 2);
    for io in [&mut old, &mut new] {
        io.write_all(b"x").await.expect("write");
        io.read_exact(&mut [0]).await.expect("an echo");
    }
    let open = || far.drainer.lock().unwrap().open();
    assert_eq!(open(), 2);
    drop(old);
    until("the old connection's end", || open() == 1).await;
    new.write_all(b"x").await.expect("write");
    new.read_exact(&mut [0]).await.expect("an echo");
}

/// The other proxy goes: it says so, its streams finish, and new ones are on another connection.
#[tokio::test]
async fn a_proxy_that_drains_loses_nothing() {
    let ca = Ca::new("root");
    let behind = Server::echo("").await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(true)));
    let (mut old, _held) = near.raw().await.expect("a stream");
    let leaving = std::mem::take(&mut *far.drainer.lock().unwrap());
    leaving.start();
    until("streams on a new connection", || far.connections() == 1).await;
    for _ in 0..20 {
        let (mut new, _held) = near.raw().await.expect("a stream");
        new.write_all(b"x").await.expect("write");
        new.read_exact(&mut [0]).await.expect("an echo");
    }
    old.write_all(b"x").await.expect("write");
    old.read_exact(&mut [0]).await.expect("an echo");
    assert_eq!(leaving.open(), 1, "the old connection has a stream");
    drop(old);
    leaving.done().await;
    assert_eq!(far.connections(), 2);
}
