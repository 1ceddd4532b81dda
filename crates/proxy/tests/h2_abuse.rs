//! What one hostile HTTP/2 client can do: raw frames against the server, memory counted by the allocator.

mod h2_common;

use h2_common::*;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Body, Response, codec, drain::Drainer, error::Kind, io::Io};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Mutex, Notify},
};

/// Counts live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time, so that the count is its own.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What one client connection may cost us, attack or not.
const BUDGET: usize = 64 * 1024 * 1024;

struct Meter(usize);

impl Meter {
    fn start() -> Self {
        let live = LIVE.load(Relaxed);
        PEAK.store(live, Relaxed);
        Self(live)
    }

    fn check(&self) {
        let used = PEAK.load(Relaxed) - self.0;
        assert!(used < BUDGET, "one connection took {} KiB", used / 1024);
        println!("peak {} KiB", used / 1024);
    }
}

/// A service that never answers and counts its calls and what was given up.
struct Stuck {
    service: Arc<TestService>,
    calls: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    called: Arc<Notify>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn stuck() -> Stuck {
    let (calls, dropped, called) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
    let (count, drops, call) = (calls.clone(), dropped.clone(), called.clone());
    let service = service(move |request| {
        count.fetch_add(1, SeqCst);
        call.notify_one();
        let guard = CountDrop(drops.clone());
        async move {
            let _held = (guard, request);
            std::future::pending().await
        }
    });
    Stuck { service, calls, dropped, called }
}

/// Reads until the GOAWAY and returns its code.
async fn goaway(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<u32> {
    loop {
        let frame = read(io).await?;
        if frame.kind == kind::GOAWAY {
            return Some(frame.code());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_in_one_breath() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let stuck = stuck();
    let served = serve(stuck.service.clone(), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let attack = tokio::spawn(async move {
        for stream in (1..20_000).step_by(2) {
            let mut bytes = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head("GET")).to_vec();
            bytes.extend(frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(goaway(&mut reader).await, Some(ENHANCE_YOUR_CALM));
    assert!(served.done.await.unwrap().is_err());
    attack.await.unwrap();
    assert!(stuck.calls.load(SeqCst) < 100, "{} requests reached the service", stuck.calls.load(SeqCst));
    meter.check();
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_with_patience() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let stuck = stuck();
    let served = serve(stuck.service.clone(), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let called = stuck.called.clone();
    let attack = tokio::spawn(async move {
        for stream in (1..20_000).step_by(2) {
            if writer.write_all(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head("GET"))).await.is_err() {
                break;
            }
            tokio::select! {
                () = called.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(60)) => break,
            }
            if writer.write_all(&frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes())).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(goaway(&mut reader).await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(served.done.await.unwrap().unwrap_err().kind, Kind::Shed);
    attack.await.unwrap();
    let calls = stuck.calls.load(SeqCst);
    assert!((499..=520).contains(&calls), "{calls}");
    assert_eq!(stuck.dropped.load(SeqCst), calls, "every cancelled request was given up");
    meter.check();
}

/// CVE-2025-8671: the client makes us reset.
#[tokio::test(start_paused = true)]
async fn made_you_reset() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let stuck = stuck();
    let served = serve(stuck.service.clone(), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let called = stuck.called.clone();
    let attack = tokio::spawn(async move {
        for stream in (1..20_000).step_by(2) {
            if writer.write_all(&frame(kind::HEADERS, END_HEADERS, stream, &head("POST"))).await.is_err() {
                break;
            }
            tokio::select! {
                () = called.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(60)) => break,
            }
            // The window of the stream overflows.
            let overflow = 0x7fff_ffffu32.to_be_bytes();
            if writer.write_all(&frame(kind::WINDOW_UPDATE, 0, stream, &overflow)).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(goaway(&mut reader).await, Some(ENHANCE_YOUR_CALM));
    assert!(served.done.await.unwrap().is_err());
    attack.await.unwrap();
    let calls = stuck.calls.load(SeqCst);
    assert!(calls <= 1025, "{calls}");
    assert_eq!(stuck.dropped.load(SeqCst), calls, "what we reset was given up as well");
    meter.check();
}

#[tokio::test(start_paused = true)]
async fn continuation_flood() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let served = serve(echo(), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let attack = tokio::spawn(async move {
        let block = head("GET");
        let _ = writer.write_all(&frame(kind::HEADERS, END_STREAM, 1, &block)).await;
        let mut frames = 0;
        while frames < 1_000_000 && writer.write_all(&frame(kind::CONTINUATION, 0, 1, &[0])).await.is_ok() {
            frames += 1;
        }
    });
    assert_eq!(goaway(&mut reader).await, Some(ENHANCE_YOUR_CALM));
    assert!(served.done.await.unwrap().is_err());
    attack.await.unwrap();
    meter.check();
}

#[tokio::test(start_paused = true)]
async fn slow_continuations_end_with_the_header_timeout() {
    let _alone = ALONE.lock().await;
    let served = serve(echo(), HttpOptions::default());
    let mut raw = Raw::client(served.io, &[]).await;
    // A stream that is served keeps the connection from being idle.
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &head("POST"))).await;
    raw.next(&[kind::HEADERS]).await.unwrap();
    let started = tokio::time::Instant::now();
    raw.send(&frame(kind::HEADERS, END_STREAM, 3, &head("GET"))).await;
    assert_eq!(goaway(&mut raw.io).await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(served.done.await.unwrap().unwrap_err().kind, Kind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_not_waited_for() {
    let _alone = ALONE.lock().await;
    let served = serve(echo(), HttpOptions::default());
    let started = tokio::time::Instant::now();
    assert_eq!(served.done.await.unwrap().unwrap_err().kind, Kind::Timeout);
    assert!(started.elapsed() <= Duration::from_secs(10));
}

/// Our answers to PING and SETTINGS have nowhere to go: we must stop reading, not pile them up.
#[tokio::test(start_paused = true)]
async fn control_frames_without_reading() {
    let _alone = ALONE.lock().await;
    for flood in [frame(kind::PING, 0, 0, &[0; 8]), frame(kind::SETTINGS, 0, 0, &[])] {
        let meter = Meter::start();
        let served = serve(echo(), HttpOptions::default());
        let mut raw = Raw::client(served.io, &[]).await;
        let chunk = flood.repeat(1000);
        let mut taken = 0;
        while let Ok(true) = tokio::time::timeout(Duration::from_secs(5), raw.send(&chunk)).await {
            taken += chunk.len();
            assert!(taken < 8 * 1024 * 1024, "we read on although nobody reads our answers");
        }
        meter.check();
        // Nor is it kept for ever.
        let ended = tokio::time::timeout(Duration::from_secs(400), served.done).await;
        assert!(ended.is_ok(), "the stalled connection was never given up");
    }
}

#[tokio::test(start_paused = true)]
async fn empty_data_frames() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let stuck = stuck();
    let served = serve(stuck.service.clone(), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let attack = tokio::spawn(async move {
        let _ = writer.write_all(&frame(kind::HEADERS, END_HEADERS, 1, &head("POST"))).await;
        for _ in 0..1_000_000 {
            if writer.write_all(&frame(kind::DATA, 0, 1, &[])).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(goaway(&mut reader).await, Some(ENHANCE_YOUR_CALM));
    attack.await.unwrap();
    meter.check();
}

/// Many small gRPC messages that nobody reads yet are no attack: a stream window of them must be taken.
#[tokio::test(start_paused = true)]
async fn small_messages_fill_their_windows() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let stuck = stuck();
    let served = serve(stuck.service.clone(), HttpOptions::default());
    let mut raw = Raw::client(served.io, &[]).await;
    for stream in [1, 3, 5] {
        raw.send(&frame(kind::HEADERS, END_HEADERS, stream, &head("POST"))).await;
        stuck.called.notified().await;
        for _ in 0..65_535 / 6 {
            raw.send(&frame(kind::DATA, 0, stream, b"\0\0\0\0\x01x")).await;
        }
    }
    raw.send(&frame(kind::PING, 0, 0, &[1; 8])).await;
    loop {
        let frame = raw.next(&[kind::PING, kind::GOAWAY]).await.unwrap();
        assert_eq!(frame.kind, kind::PING, "the connection was ended");
        if frame.flags & 1 == 1 {
            break;
        }
    }
    meter.check();
}

/// 1-byte DATA frames over the whole connection window: bounded by the framing budget.
#[tokio::test(start_paused = true)]
async fn one_byte_data_frames() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let stuck = stuck();
    let served = serve(stuck.service.clone(), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let attack = tokio::spawn(async move {
        let chunk = |stream| frame(kind::DATA, 0, stream, b"x").repeat(1000);
        for stream in (1..100).step_by(2) {
            let _ = writer.write_all(&frame(kind::HEADERS, END_HEADERS, stream, &head("POST"))).await;
            for _ in 0..65 {
                if writer.write_all(&chunk(stream)).await.is_err() {
                    return;
                }
            }
        }
    });
    assert_eq!(goaway(&mut reader).await, Some(ENHANCE_YOUR_CALM));
    attack.await.unwrap();
    meter.check();
}

/// CVE-2026-49975: one field in the dynamic table, thousands of references of one byte each.
#[tokio::test(start_paused = true)]
async fn header_bomb() {
    let _alone = ALONE.lock().await;
    for (name, references) in [("x", 1_800), ("cookie", 1_800), ("x", 16_000), ("host", 1_000)] {
        let meter = Meter::start();
        let stuck = stuck();
        let served = serve(stuck.service.clone(), HttpOptions::default());
        // No window, so that nothing we answer drains.
        let raw = Raw::client(served.io, &[(4, 0)]).await;
        let (mut reader, mut writer) = tokio::io::split(raw.io);
        let attack = tokio::spawn(async move {
            for stream in (1..4_000).step_by(2) {
                let mut block = head("GET");
                if stream == 1 {
                    // Literal with incremental indexing: entry 62 of the table.
                    block.extend([0x40, name.len() as u8]);
                    block.extend(name.as_bytes());
                    block.push(0);
                }
                block.resize(block.len() + references, 0x80 | 62);
                for (at, part) in block.chunks(16 * 1024).enumerate() {
                    let last = (at + 1) * 16 * 1024 >= block.len();
                    let kind = if at == 0 { kind::HEADERS } else { kind::CONTINUATION };
                    let flags = if last { END_HEADERS } else { 0 };
                    if writer.write_all(&frame(kind, flags, stream, part)).await.is_err() {
                        return;
                    }
                }
            }
        });
        let mut sink = [0; 64 * 1024];
        let reading = async { while matches!(reader.read(&mut sink).await, Ok(n) if n > 0) {} };
        tokio::pin!(reading);
        tokio::select! {
            () = &mut reading => {}
            result = attack => result.unwrap(),
        }
        assert_eq!(stuck.calls.load(SeqCst), 0, "{references} fields reached the service");
        meter.check();
        drop(served.done);
    }
}

/// The client opens every window there is and then reads nothing.
#[tokio::test(start_paused = true)]
async fn responses_that_nobody_reads() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let dropped = Arc::new(AtomicUsize::new(0));
    let drops = dropped.clone();
    let served = serve(
        service(move |_| {
            let guard = CountDrop(drops.clone());
            let (sender, body) = channel();
            tokio::spawn(async move {
                let _guard = guard;
                let data = bytes::Bytes::from(vec![0; 64 * 1024]);
                while sender.send(http_body::Frame::data(data.slice(..).to_vec().into())).await.is_ok() {}
            });
            async move { Response::new(body) }
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[(4, 0x7fff_ffff)]).await;
    raw.send(&frame(kind::WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes())).await;
    for stream in (1..200).step_by(2) {
        raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head("GET"))).await;
    }
    // All of them are given up in time, and so is the connection.
    let ended = tokio::time::timeout(Duration::from_secs(1_000), served.done).await;
    assert!(ended.is_ok(), "the connection was never given up");
    while dropped.load(SeqCst) < 100 {
        tokio::task::yield_now().await;
    }
    meter.check();
}

#[tokio::test(start_paused = true)]
async fn refused_uploads_cost_nothing() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let served = serve(service(|_| async { Response::new(Body::empty()) }), HttpOptions::default());
    let raw = Raw::client(served.io, &[]).await;
    let (mut reader, mut writer) = tokio::io::split(raw.io);
    let attack = tokio::spawn(async move {
        for stream in (1..20_000).step_by(2) {
            if writer.write_all(&frame(kind::HEADERS, END_HEADERS, stream, &head("POST"))).await.is_err() {
                break;
            }
        }
    });
    let mut sink = [0; 64 * 1024];
    let reading = async { while matches!(reader.read(&mut sink).await, Ok(n) if n > 0) {} };
    tokio::pin!(reading);
    tokio::select! {
        () = &mut reading => {}
        result = attack => result.unwrap(),
    }
    meter.check();
    drop(served.done);
}

/// A tunnel whose other side does not end keeps its place, so that resets do not multiply tunnels.
#[tokio::test(start_paused = true)]
async fn tunnels_that_outlive_their_streams() {
    let _alone = ALONE.lock().await;
    let meter = Meter::start();
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let served = serve(
        service(move |_| {
            let count = count.clone();
            async move {
                Response::new(Body::tunnel(move |io| async move {
                    count.fetch_add(1, SeqCst);
                    let _held = io;
                    std::future::pending().await
                }))
            }
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[]).await;
    let connect = hpack(&[(":method", "CONNECT"), (":authority", "a:1")]);
    for stream in (1..900).step_by(2) {
        raw.send(&frame(kind::HEADERS, END_HEADERS, stream, &connect)).await;
        loop {
            let answer = raw.next(&[kind::HEADERS, kind::RST_STREAM]).await.unwrap();
            if answer.stream == stream {
                if answer.kind == kind::RST_STREAM {
                    assert_eq!(answer.code(), 7, "REFUSED_STREAM");
                }
                break;
            }
        }
        // After the second that makes a reset suspicious.
        tokio::time::sleep(Duration::from_secs(2)).await;
        raw.send(&frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes())).await;
    }
    assert_eq!(running.load(SeqCst), 200);
    meter.check();
    drop(served.done);
}

/// Over real sockets a close with unread bytes is a TCP reset, which destroys a GOAWAY on its way.
#[tokio::test]
async fn the_goaway_reaches_a_client_that_is_still_sending() {
    let _alone = ALONE.lock().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let drainer = Drainer::default();
    let drain = drainer.subscribe();
    let serving =
        tokio::spawn(async move { codec::h2::serve(server.into(), echo(), &HttpOptions::default(), drain).await });
    let mut raw = Raw::client(client, &[]).await;
    let mut burst = Vec::new();
    for stream in (1..2_000).step_by(2) {
        burst.extend_from_slice(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head("GET")));
        burst.extend_from_slice(&frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    // All of it is written before anything is read.
    assert!(raw.send(&burst).await);
    assert_eq!(goaway(&mut raw.io).await, Some(ENHANCE_YOUR_CALM));
    drop(raw);
    assert!(serving.await.unwrap().is_err());
}

/// Memory of a connection that has served a request and waits for the next.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_small() {
    let _alone = ALONE.lock().await;
    let service = service(|_| async { Response::new(Body::full("hello")) });
    let mut connections = Vec::new();
    let live = LIVE.load(Relaxed);
    for _ in 0..100 {
        // Small pipes, which are allocated as they are filled.
        let (io, server) = tokio::io::duplex(1024);
        let (service, drainer) = (service.clone(), Drainer::default());
        let drain = drainer.subscribe();
        let task =
            tokio::spawn(
                async move { codec::h2::serve(Io::other(server), service, &HttpOptions::default(), drain).await },
            );
        let mut raw = Raw::client(io, &[]).await;
        raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head("GET"))).await;
        raw.next(&[kind::DATA]).await.unwrap();
        connections.push((raw, drainer, task));
    }
    let each = (LIVE.load(Relaxed) - live) / connections.len();
    println!("{each} bytes");
    assert!(each < 48 * 1024, "an idle connection takes {each} bytes");
}
