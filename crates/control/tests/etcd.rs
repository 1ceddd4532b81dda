//! Against a real etcd.

use selvedge_compile::Options;
use selvedge_control::{
    Current, Engine,
    ca::{self, Ca},
    publish::version::canonical,
    source::etcd::{Client, EtcdSource, Keeper, Leader},
};
use selvedge_identity::KeyPair;
use selvedge_model::{Kind, Limits, Resource, ResourceKey, parse};
use selvedge_testkit::{etcd::Etcd, selvedge::free_port};
use selvedge_wire::spiffe::SpiffeId;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};
use tonic::transport::Channel;

fn connector(etcd: &Etcd) -> Client {
    Client::new(vec![etcd.url()], "/selvedge")
}

async fn ready(etcd: &Etcd) -> Channel {
    let client = connector(etcd);
    let waiting = async {
        loop {
            if let Ok(channel) = client.connect().await
                && client.everything(&channel).await.is_ok()
            {
                return channel;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("etcd answers")
}

fn service(name: &str, port: u16) -> Resource {
    resource(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{ports: [{{port: {port}}}]}}}}"
    ))
}

fn workload(name: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {{name: {name}, namespace: shop}}, spec: {{addresses: [10.0.0.9]}}}}"
    ))
}

fn resource(yaml: &str) -> Resource {
    parse("test", yaml.as_bytes(), &Limits::default()).loaded.remove(0).resource.expect("sound")
}

async fn put(client: &Client, channel: &Channel, resource: &Resource) {
    let json = canonical(resource).0.to_vec();
    client.put(channel, &client.path(&resource.key()), json, 0).await.expect("written");
}

fn engine(client: &Client) -> watch::Receiver<Arc<Current>> {
    let source = Box::new(EtcdSource::new(client));
    let engine = Engine::with(source, None, Options::default(), Box::new(|_| Vec::new()));
    let current = engine.current();
    tokio::spawn(engine.run(Arc::default()));
    current
}

async fn until(current: &mut watch::Receiver<Arc<Current>>, what: &str, so: impl FnMut(&Arc<Current>) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), current.wait_for(so)).await;
    waited.unwrap_or_else(|_| panic!("never: {what}")).expect("the engine runs");
}

fn names(current: &Current) -> Vec<String> {
    current.resources.iter().map(|r| r.key().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_are_followed_through_outage_and_compaction() {
    let Some(mut etcd) = Etcd::start() else { return };
    let (client, channel) = (connector(&etcd), ready(&etcd).await);
    put(&client, &channel, &service("a", 80)).await;
    let mut current = engine(&client);
    until(&mut current, "one", |c| names(c) == ["Service shop/a"] && !c.last_good).await;
    put(&client, &channel, &service("b", 80)).await;
    until(&mut current, "two", |c| names(c).len() == 2).await;
    // What is broken leaves what was good.
    let path = client.path(&ResourceKey::new(Kind::Service, "shop", "b"));
    client.put(&channel, &path, b"kind: Servic\n".to_vec(), 0).await.unwrap();
    until(&mut current, "kept", |c| c.last_good && names(c).len() == 2 && !c.diagnostics.is_empty()).await;
    client.delete(&channel, &path).await.unwrap();
    until(&mut current, "one again", |c| names(c) == ["Service shop/a"] && !c.last_good).await;
    // Down: what is known stays. Up again: what has changed comes.
    etcd.stop();
    until(&mut current, "down", |c| c.last_good && names(c) == ["Service shop/a"]).await;
    etcd.restart();
    let channel = ready(&etcd).await;
    put(&client, &channel, &service("c", 80)).await;
    until(&mut current, "after the outage", |c| names(c) == ["Service shop/a", "Service shop/c"] && !c.last_good).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_is_gone_is_no_reason_to_miss_a_change() {
    let Some(mut etcd) = Etcd::start() else { return };
    let (client, channel) = (connector(&etcd), ready(&etcd).await);
    put(&client, &channel, &service("a", 80)).await;
    put(&client, &channel, &service("gone", 80)).await;
    let source = Box::new(EtcdSource::new(&client));
    let engine = Engine::with(source, None, Options::default(), Box::new(|_| Vec::new()));
    let mut current = engine.current();
    tokio::spawn(engine.run(Arc::default()));
    until(&mut current, "two", |c| names(c).len() == 2).await;
    // Through another port nobody watches: the follower is cut off while history is made and forgotten.
    etcd.stop();
    until(&mut current, "down", |c| c.last_good).await;
    let theirs = std::mem::replace(&mut etcd.client, free_port());
    etcd.restart();
    let (aside, channel) = (connector(&etcd), ready(&etcd).await);
    aside.delete(&channel, &aside.path(&ResourceKey::new(Kind::Service, "shop", "gone"))).await.unwrap();
    for port in 81..90 {
        put(&aside, &channel, &service("a", port)).await;
    }
    let revision = aside.everything(&channel).await.unwrap().revision;
    aside.compact(&channel, revision).await.unwrap();
    etcd.stop();
    etcd.client = theirs;
    etcd.restart();
    ready(&etcd).await;
    until(&mut current, "the newest", |c| names(c) == ["Service shop/a"] && !c.last_good).await;
    let service = current.borrow().resources.service("shop", "a").cloned().unwrap();
    assert_eq!(service.spec.ports[0].port, 89);
}

/// etcd ends connections that ask too often whether it is still there, and a control plane whose connection ends says that
/// what it serves may be old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_with_nothing_to_say_is_not_asked_too_often() {
    let Some(etcd) = Etcd::start() else { return };
    ready(&etcd).await;
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(vec![format!("http://{}", between.local_addr().unwrap())], "/selvedge");
    let (connections, asked) = (watch::Sender::new(0), watch::Sender::new(0));
    let (accepted, mut pings, address) = (connections.clone(), asked.subscribe(), etcd.client);
    tokio::spawn(async move {
        while let Ok((ours, _)) = between.accept().await {
            accepted.send_modify(|count| *count += 1);
            let theirs = tokio::net::TcpStream::connect(address).await.expect("etcd accepts");
            let ((mut from_us, mut to_us), (mut from_etcd, mut to_etcd)) = (ours.into_split(), theirs.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_etcd, &mut to_us).await });
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 65_536];
                while let Ok(count @ 1..) = from_us.read(&mut bytes).await {
                    // RFC 9113 6.7: 8 bytes, type 6, no ACK.
                    let pings = bytes[..count].windows(5).filter(|head| *head == [0, 0, 8, 6, 0]).count();
                    asked.send_modify(|all| *all += pings);
                    to_etcd.write_all(&bytes[..count]).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    let mut current = engine(&client);
    until(&mut current, "the first answer", |c| c.spoken && !c.last_good).await;
    // It ends them at the fourth.
    let enough = tokio::time::timeout(Duration::from_secs(60), pings.wait_for(|pings| *pings >= 5)).await;
    enough.expect("it is asked").unwrap();
    assert_eq!(*connections.borrow(), 1, "etcd has ended a connection");
}

/// A member that hangs, and one that is cut off from the others: nothing may wait for either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_is_asked_when_one_is_of_no_use() {
    let Some(members) = Etcd::cluster(3) else { return };
    let [first, second, third] = &members[..] else { unreachable!("three members") };
    let urls = |members: &[&Etcd]| members.iter().map(|member| member.url()).collect();
    let client = Client::new(urls(&[first, second, third]), "/selvedge");
    let channel = ready(second).await;
    let mut current = engine(&client);
    put(&client, &channel, &service("a", 80)).await;
    until(&mut current, "one", |c| names(c).len() == 1 && !c.last_good).await;
    let keeper = Keeper::new(&client, "one");
    let mut leads = keeper.leads();
    tokio::spawn(keeper.clone().run());
    leads.wait_for(|leads| *leads).await.unwrap();
    let key = ResourceKey::new(Kind::Workload, "shop", "w");
    keeper.joined(key.clone(), Some(canonical(&workload("w")).0.to_vec()));
    until(&mut current, "joined", |c| names(c).len() == 2).await;

    first.pause();
    let missed = tokio::time::timeout(Duration::from_secs(60), leads.wait_for(|leads| !*leads)).await;
    missed.expect("the lead not kept").unwrap();
    until(&mut current, "the first one missed", |c| c.last_good).await;
    until(&mut current, "through another", |c| !c.last_good).await;
    // Most often the others have to find a leader first.
    let (path, json) = (client.path(&service("b", 80).key()), canonical(&service("b", 80)).0);
    let written = async { while client.put(&channel, &path, json.to_vec(), 0).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), written).await.expect("written");
    until(&mut current, "the change", |c| names(c).iter().any(|name| name == "Service shop/b")).await;
    let again = tokio::time::timeout(Duration::from_secs(60), leads.wait_for(|leads| *leads)).await;
    again.expect("the lead through another").unwrap();
    until(&mut current, "what has joined", |c| names(c).len() == 3).await;
    first.go_on();

    // One that lives, and hears of nothing.
    let mut lonely = engine(&connector(first));
    until(&mut lonely, "the same there", |c| names(c).len() == 3 && !c.last_good).await;
    second.pause();
    third.pause();
    until(&mut lonely, "no leader", |c| c.last_good && names(c).len() == 3).await;
    second.go_on();
    third.go_on();
    until(&mut lonely, "a leader", |c| !c.last_good).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_what_joined_through_it_ends_with_it() {
    let Some(etcd) = Etcd::start() else { return };
    let channel = ready(&etcd).await;
    let (one, two) = (Keeper::new(&connector(&etcd), "one"), Keeper::new(&connector(&etcd), "two"));
    let mut one_leads = one.leads();
    let first = tokio::spawn(one.clone().run());
    one_leads.wait_for(|leads| *leads).await.unwrap();
    let mut two_leads = two.leads();
    tokio::spawn(two.clone().run());
    let key = |name: &str| ResourceKey::new(Kind::Workload, "shop", name);
    one.joined(key("w1"), Some(b"{}".to_vec()));
    one.joined(key("w2"), Some(b"{}".to_vec()));
    let client = connector(&etcd);
    let present = async |name: &str| client.lease_of(&channel, &client.joined(&key(name))).await.unwrap();
    let wait = async |what: &str, mut so: Box<dyn FnMut(Option<i64>, Option<i64>) -> bool>| {
        let waiting = async {
            while !so(present("w1").await, present("w2").await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    };
    wait("both are there", Box::new(|w1, w2| w1.is_some() && w2.is_some())).await;
    assert!(!*two_leads.borrow());
    // One moves to the other control plane; the word of the first no longer counts.
    let lease = present("w1").await;
    two.joined(key("w1"), Some(b"{}".to_vec()));
    wait("taken over", Box::new(move |w1, _| w1.is_some() && w1 != lease)).await;
    one.joined(key("w1"), None);
    first.abort();
    wait("the rest of the first has ended", Box::new(|w1, w2| w1.is_some() && w2.is_none())).await;
    tokio::time::timeout(Duration::from_secs(60), two_leads.wait_for(|leads| *leads)).await.expect("in time").unwrap();
}

const MESH: &str = "mesh.example";

fn account() -> SpiffeId {
    SpiffeId::workload(MESH, "shop", "orders").expect("an ID")
}

fn request() -> Vec<u8> {
    KeyPair::generate().and_then(|key| key.request(&account())).expect("a request")
}

/// The CA of one control plane, and whether it leads.
async fn authority(etcd: &Etcd, passphrase: &str, leads: bool) -> Result<(Ca, watch::Sender<bool>), ca::Error> {
    let leads = watch::Sender::new(leads);
    let options = ca::Options {
        trust_domain: Some(MESH.to_owned()),
        mesh: None,
        lifetimes: ca::Lifetimes::default(),
        files: None,
    };
    let key = ca::Key::Passphrase(passphrase.to_owned());
    let (store, clock) = (Arc::new(ca::Etcd::new(&connector(etcd))), Arc::new(std::time::SystemTime::now));
    Ok((Ca::open_shared(store, &key, options, clock, leads.subscribe()).await?, leads))
}

/// Control planes that start at once have one CA, with one list of tokens and of who is revoked.
#[tokio::test]
async fn an_authority_is_shared() {
    let Some(mut etcd) = Etcd::start() else { return };
    ready(&etcd).await;
    let secret = "correct horse battery";
    let (one, two) = tokio::join!(authority(&etcd, secret, false), authority(&etcd, secret, true));
    let ((one, _one), (two, _two)) = (one.expect("opened"), two.expect("opened"));
    two.tick().await.expect("read");
    assert_eq!(one.bundle().roots, two.bundle().roots);
    let wrong = authority(&etcd, "another passphrase", false).await.expect_err("refused").to_string();
    assert!(wrong.contains("etcd /selvedge/ca was sealed with another key"), "{wrong}");

    let order = ca::Order { id: account(), life: Duration::from_secs(60), uses: 1 };
    let token = one.create_token(&order).await.expect("made").reveal();
    let (a, b) = (request(), request());
    let (first, second) = tokio::join!(one.join(&token, None, &a), two.join(&token, None, &b));
    assert!(first.is_ok() != second.is_ok(), "one of them may use the token: {first:?} {second:?}");
    let refused = two.join(&token, None, &request()).await.expect_err("used").to_string();
    assert!(refused.contains("was used already"), "{refused}");
    assert_eq!(one.list_tokens().await.expect("listed").len(), 1);

    let leaf = first.or(second).expect("one of them").leaf;
    let held =
        ca::Current { id: account(), serial: leaf.serial, not_before: leaf.not_before, not_after: leaf.not_after };
    two.renew(&held, &request()).expect("whoever has issued it");
    one.revoke_identity(&account()).await.expect("revoked");
    two.tick().await.expect("read");
    two.renew(&held, &request()).expect_err("revoked at the other one");

    // Nothing readable is in etcd, and nothing of it is taken for a resource.
    let client = connector(&etcd);
    let all = client.everything(&ready(&etcd).await).await.expect("read").kvs;
    let records: Vec<_> = all.iter().filter(|kv| kv.key.starts_with(b"/selvedge/ca/")).collect();
    assert_eq!(records.len(), 3, "format, seal and state: the token went with the identity that was revoked");
    assert!(records.iter().all(|kv| !String::from_utf8_lossy(&kv.value).contains("orders")));

    // Without etcd nothing new is decided, and what is known still serves.
    let sealed = two.bundle();
    etcd.stop();
    let why = one.create_token(&order).await.expect_err("etcd is away").to_string();
    assert!(why.contains("etcd /selvedge/ca is not reachable"), "{why}");
    let other = SpiffeId::workload(MESH, "shop", "cart").expect("an ID");
    let csr = KeyPair::generate().and_then(|key| key.request(&other)).expect("a request");
    two.issue_local(&other, &csr).expect("issued without etcd");
    etcd.restart();
    ready(&etcd).await;
    one.create_token(&order).await.expect("made again");
    assert_eq!(two.bundle().roots, sealed.roots);
}
