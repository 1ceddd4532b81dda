//! The admin listener over real sockets.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use selvedge_admin::{AdminState, Listener, LogLevel, Readiness, Status, document, endpoints, serve};
use selvedge_proxy::{cluster::Clusters, telemetry::Telemetry, worker::WorkerCount};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

struct Admin {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    drained: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start() -> Admin {
    let (ready, drained) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let level = Arc::new(Mutex::new("info".to_owned()));
    let clusters = Clusters::new(WorkerCount(1), None, tokio::runtime::Handle::current());
    let endpoint = selvedge_compile::snapshot::Endpoint::new("127.0.0.1:9".parse().unwrap());
    clusters.link(&[Arc::new(selvedge_compile::snapshot::Cluster {
        key: "shop/cart:80".to_owned(),
        discovery: selvedge_compile::snapshot::Discovery::Static(vec![endpoint]),
        protocol: selvedge_compile::snapshot::UpstreamProtocol::Http1,
        tls: None,
        identity: None,
        netns: Default::default(),
        load_balancing: Default::default(),
        connections: Default::default(),
        health_checks: Vec::new(),
        outlier_detection: None,
    })]);
    let state = AdminState {
        telemetry: Telemetry::new(WorkerCount(1)),
        readiness: {
            let ready = ready.clone();
            Arc::new(move || if ready.load(SeqCst) { Readiness::yes() } else { Readiness::no("draining") })
        },
        status: Arc::new(|| Status { revision: 7, ..Status::default() }),
        config: Arc::new(|| json!({"kind": "List", "items": [{"kind": "Secret", "data": {"key": "hunter2"}}]})),
        clusters: Arc::new(move || {
            let mut all = Vec::new();
            clusters.for_each(|cluster| all.push(cluster.status()));
            all
        }),
        listeners: Arc::new(|| {
            vec![Listener {
                bind: "tcp://*:80".to_owned(),
                protocol: "http".to_owned(),
                listeners: vec!["ns/gw/web".to_owned()],
                connections: 1,
                accepted: 2,
                draining: false,
            }]
        }),
        nodes: Arc::new(Vec::new),
        drain: {
            let drained = drained.clone();
            Arc::new(move || drained.store(true, SeqCst))
        },
        log_level: LogLevel {
            get: {
                let level = level.clone();
                Arc::new(move || level.lock().unwrap().clone())
            },
            set: Arc::new(move |new| {
                if new.contains('!') {
                    return Err(format!("`{new}` is not a filter"));
                }
                *level.lock().unwrap() = new.to_owned();
                Ok(())
            }),
        },
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve(listener, state, async move {
        let _ = stopped.await;
    }));
    Admin { address, ready, drained, stop: Some(stop), served }
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Admin {
    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender
            .send_request(request.body(Full::new(body.to_owned().into_bytes().into())).unwrap()
                as http::Request<Full<hyper::body::Bytes>>)
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }
}

#[tokio::test]
async fn what_is_asked_is_answered() {
    let admin = start().await;
    let index = admin.get("/").await;
    assert!(index.body.contains("/metrics") && index.body.contains("PUT   /log-level"), "{}", index.body);
    assert_eq!(admin.get("/live").await.json(), json!({"live": true}));
    assert_eq!(admin.get("/status").await.json()["revision"], 7);
    assert_eq!(admin.get("/listeners").await.json()[0]["bind"], "tcp://*:80");
    let config = admin.get("/config").await;
    assert!(!config.body.contains("hunter2") && config.body.contains("redacted"), "{}", config.body);
    let clusters = admin.get("/clusters").await.json();
    assert_eq!(clusters[0]["endpoints"][0]["health"]["state"], "healthy");
    assert_eq!(admin.get("/clusters?key=shop/cart:80").await.json(), clusters);
    assert_eq!(admin.get("/clusters?key=nope").await.status, 404);
    assert_eq!(admin.get("/clusters?kay=nope").await.status, 400);
}

#[tokio::test]
async fn metrics_are_negotiated() {
    let admin = start().await;
    let plain = admin.get("/metrics").await;
    assert_eq!(plain.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(plain.body.contains("selvedge_build_info{version="), "{}", plain.body);
    let open = admin.call("GET", "/metrics", &[("accept", "application/openmetrics-text; version=1.0.0")], "").await;
    assert!(open.body.ends_with("# EOF\n"));
    assert_eq!(open.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
}

#[tokio::test]
async fn readiness_follows_and_drain_begins() {
    let admin = start().await;
    assert_eq!(admin.get("/ready").await.status, 200);
    admin.ready.store(false, SeqCst);
    let answer = admin.get("/ready").await;
    assert_eq!((answer.status, answer.json()), (503, json!({"ready": false, "reason": "draining"})));
    assert_eq!(admin.get("/drain").await.status, 405);
    assert!(!admin.drained.load(SeqCst));
    assert_eq!(admin.call("POST", "/drain", &[], "").await.status, 202);
    assert!(admin.drained.load(SeqCst));
}

#[tokio::test]
async fn the_log_level_is_read_and_changed() {
    let admin = start().await;
    assert_eq!(admin.get("/log-level").await.json(), json!({"level": "info"}));
    let changed = admin.call("PUT", "/log-level", &[], r#"{"level": "debug"}"#).await;
    assert_eq!((changed.status, changed.json()), (200, json!({"level": "debug"})));
    let long = format!(r#"{{"level": "{}"}}"#, "x".repeat(20_000));
    for (body, status) in [
        ("", 400),
        ("debug", 400),
        (r#"{"level": 1}"#, 400),
        (r#"{"lvl": "x"}"#, 400),
        (r#"{"level": "!"}"#, 400),
        (long.as_str(), 413),
    ] {
        let answer = admin.call("PUT", "/log-level", &[], body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(answer.json()["help"].as_str().unwrap().contains("level"), "{}", answer.body);
    }
    assert_eq!(admin.get("/log-level").await.json(), json!({"level": "debug"}));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let admin = start().await;
    let answer = admin.get("/nope").await;
    assert_eq!((answer.status, answer.json()["help"].as_str()), (404, Some("GET / lists what there is")));
    let answer = admin.call("DELETE", "/log-level", &[], "").await;
    assert_eq!((answer.status, answer.headers["allow"].to_str().unwrap()), (405, "GET, PUT"));
    assert_eq!(answer.json()["help"], "use GET or PUT");
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let admin = start().await;
    for headers in [
        [("host", "evil.example")].as_slice(),
        &[("host", "localhost.evil.example")],
        &[("origin", "http://evil.example")],
        &[("sec-fetch-site", "cross-site")],
    ] {
        let answer = admin.call("POST", "/drain", headers, "").await;
        assert_eq!(answer.status, 403, "{headers:?}");
        assert!(answer.json()["error"].is_string());
    }
    assert!(!admin.drained.load(SeqCst));
    assert_eq!(admin.call("GET", "/live", &[("host", "localhost:9901")], "").await.status, 200);
}

#[tokio::test]
async fn it_ends_when_told() {
    let mut admin = start().await;
    assert_eq!(admin.get("/live").await.status, 200);
    admin.stop.take().unwrap().send(()).unwrap();
    admin.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_document_describes_what_is_served() {
    let admin = start().await;
    let served = admin.get("/openapi.json").await.json();
    assert_eq!(served, document());
    let mut described = BTreeSet::new();
    for (path, item) in served["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            described.insert((method.to_ascii_uppercase(), path.clone()));
        }
    }
    let listed: BTreeSet<_> = endpoints().iter().map(|e| (e.method.to_owned(), e.path.to_owned())).collect();
    assert_eq!(described, listed);
    for (method, path) in &listed {
        let answer = admin.call(method, path, &[], r#"{"level": "info"}"#).await;
        let answers = &served["paths"][path][method.to_ascii_lowercase()]["responses"];
        assert!(answers[answer.status.to_string()].is_object(), "{method} {path} answered {}", answer.status);
        for other in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            if !listed.contains(&(other.to_owned(), path.clone())) {
                assert_eq!(admin.call(other, path, &[], "").await.status, 405, "{other} {path}");
            }
        }
    }
    let references: Vec<&str> = served.as_object().map(|_| references(&served)).unwrap();
    for reference in references {
        assert!(served.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
    }
}

fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value.as_str() {
                Some(target) if key == "$ref" => vec![target],
                _ => references(value),
            })
            .collect(),
        Value::Array(list) => list.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn the_golden_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let want = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &want).unwrap();
    }
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(have == want, "openapi.json is old: run UPDATE=1 cargo test -p selvedge-admin golden");
}
