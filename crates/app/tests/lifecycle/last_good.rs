use crate::support::*;
use selvedge_testkit::{backend::Backend, http1::Connection, load::Load, selvedge::free_port};
use std::fs;

#[tokio::test]
async fn what_is_broken_or_gone_is_served_as_it_was() {
    let backend = Backend::start("app").await;
    let front = free_port();
    let selvedge = setup()
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(7))
        .start()
        .await;
    let load = Load::http1(front, HOST, 2);
    // A broken file.
    selvedge.write("route.yaml", "kind: HTTPRoute\n  metadata: [");
    selvedge.status_has("\"last_good\":true").await;
    selvedge.metrics_have("selvedge_config_last_good 1").await;
    assert!(selvedge.log().contains("SERVING THE LAST GOOD CONFIGURATION"));
    load.more(20).await;
    // Mended.
    selvedge.write("route.yaml", &route(8));
    selvedge.status_has("\"last_good\":false").await;
    // The whole folder is gone.
    let aside = selvedge.state().with_file_name("aside");
    fs::rename(selvedge.config(), &aside).expect("moved away");
    selvedge.signal(rustix::process::Signal::HUP);
    selvedge.status_has("\"last_good\":true").await;
    load.more(20).await;
    // It is back.
    fs::rename(&aside, selvedge.config()).expect("moved back");
    selvedge.signal(rustix::process::Signal::HUP);
    selvedge.status_has("\"last_good\":false").await;
    load.more(20).await;
    let load = load.stop().await;
    load.assert_nothing_failed("HTTP/1.1");
    assert_eq!(load.connections, 2);
}

#[tokio::test]
async fn a_start_with_broken_files_serves_what_was_kept() {
    let backend = Backend::start("app").await;
    let front = free_port();
    let first = setup();
    let (config, state) = (first.config(), first.state());
    let first = first
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(1))
        .start()
        .await;
    first.until("a saved state", async || state.join("last-good.json").exists()).await;
    let kept = tempfile(&state);
    // Another process with the same folder, whose files are broken.
    let second = setup();
    let folder = second.state();
    fs::create_dir_all(&folder).expect("a folder");
    // What is kept is kept by path.
    let text = kept.replace(&*config.to_string_lossy(), &second.config().to_string_lossy());
    fs::write(folder.join("last-good.json"), text).expect("a state");
    first.signal(rustix::process::Signal::TERM);
    let mut first = first;
    assert_eq!(first.ended().await.code(), Some(0), "{}", first.log());
    let second = second
        .file("gateway.yaml", "{ broken")
        .file("service.yaml", "{ broken")
        .file("route.yaml", "{ broken")
        .start()
        .await;
    let mut client = Connection::open(front).await.expect("it listens");
    let answer = client.get(HOST, "/").await.expect("an answer");
    assert_eq!((answer.status, answer.header("x-revision")), (200, Some("1")));
    assert!(second.log().contains("SERVING THE LAST GOOD CONFIGURATION"), "{}", second.log());
    second.status_has("\"last_good\":true").await;
}

fn tempfile(state: &std::path::Path) -> String {
    fs::read_to_string(state.join("last-good.json")).expect("the saved state")
}

#[tokio::test]
async fn a_state_that_cannot_be_written_is_said() {
    let backend = Backend::start("app").await;
    let front = free_port();
    let setup = setup();
    // A file in the place of the folder: not even root can write below it.
    fs::write(setup.state(), "").expect("a file");
    let selvedge = setup
        .file("gateway.yaml", &gateway(&[front.port()]))
        .file("service.yaml", &service(&[backend.address]))
        .file("route.yaml", &route(1))
        .start()
        .await;
    selvedge.logged("the last good state cannot be saved", 1).await;
    let mut client = Connection::open(front).await.expect("it listens");
    assert_eq!(client.get(HOST, "/").await.map(|answer| answer.status), Ok(200));
}
