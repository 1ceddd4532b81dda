use super::{view::MAX_STALE, *};
use crate::{
    proto::discovery::{Role as WireRole, Subscription, subscription::What},
    publish::{
        gone::{GONE, MAX_GONE},
        pace::{MANY, SILENCE},
        status::{self, Condition},
        testing::{resource, service, slice},
    },
};

fn hello(hub: &mut Hub, node: NodeId, identity: &str, id: &str) {
    let identity = SpiffeId::workload("mesh.example", "shop", identity).ok();
    hub.connected(0, node, Some(identity));
    let hello = Hello { id: id.to_owned(), role: WireRole::Sidecar.into(), ..Hello::default() };
    hub.message(0, node, ProxyMessage { message: Some(Message::Hello(hello)) });
}

fn closed(hub: &mut Hub) -> Vec<NodeId> {
    let out = hub.take_output().into_iter();
    out.filter(|(_, output)| matches!(output, Output::Close(_))).map(|(node, _)| node).collect()
}

#[test]
fn nobody_can_keep_a_proxy_out_by_taking_its_name() {
    let mut hub = Hub::new(0);
    hello(&mut hub, 1, "squatter", "web");
    hello(&mut hub, 2, "web", "web");
    assert_eq!(closed(&mut hub), [0; 0]);
    hello(&mut hub, 3, "web", "web");
    assert_eq!(closed(&mut hub), [2], "the same proxy has come again");
}

#[test]
fn what_a_machine_brought_that_vanishes_is_out() {
    let mut hub = Hub::new(0);
    assert_eq!(joins(&mut hub, "10.1.0.2"), "");
    let hello = Hello { id: "p".into(), role: WireRole::Sidecar.into(), ..Hello::default() };
    hub.message(0, 9, ProxyMessage { message: Some(Message::Hello(hello)) });
    let key = ResourceKey::new(Kind::Workload, "evil", "w");
    let alive = |hub: &mut Hub, now| {
        let message = Some(Message::Alive(crate::proto::discovery::Alive {}));
        hub.message(now, 9, ProxyMessage { message });
    };
    hub.tick(5_000);
    assert!(hub.graph.get(&key).is_some(), "who has not begun with it, being older, is left alone");
    alive(&mut hub, 5_000);
    hub.tick(5_001);
    assert_eq!(hub.wakes(5_001), 5_000 + SILENCE);
    alive(&mut hub, 5_200);
    hub.tick(5_000 + SILENCE);
    assert!(hub.graph.get(&key).is_some());
    // Held up itself for ten seconds.
    hub.tick(15_000);
    assert!(hub.graph.get(&key).is_some());
    let out = hub.wakes(15_000);
    assert_eq!(out, 15_000 + SILENCE);
    hub.take_output();
    hub.tick(out);
    assert!(hub.graph.get(&key).is_none() && closed(&mut hub) == [9]);
}

#[test]
fn a_control_plane_that_is_behind_says_nothing_until_it_is_not() {
    let mark = |revision, looks| Some(Mark { origin: "etcd".into(), revision, looks });
    let groups = |hub: &mut Hub| {
        let out = hub.take_output().into_iter();
        out.filter(|(_, output)| matches!(output, Output::Group(_))).map(|(node, _)| node).collect::<Vec<_>>()
    };
    let mut hub = Hub::new(0);
    hub.resources_at(0, Vec::new(), mark(5, 1));
    for (node, source) in [(1, mark(6, 0)), (2, mark(5, 0)), (3, None), (4, mark(9, 0))] {
        let source = source.map(|mark| mark.to_wire());
        let elsewhere = crate::proto::discovery::Source { origin: "other etcd".into(), revision: 9 };
        let source = if node == 3 { Some(elsewhere) } else { source };
        hub.connected(0, node, Some(SpiffeId::workload("mesh.example", "shop", "web").ok()));
        let id = format!("p{node}");
        let hello = Hello { id, role: WireRole::Sidecar.into(), source, ..Hello::default() };
        hub.message(0, node, ProxyMessage { message: Some(Message::Hello(hello)) });
        let known = Known { resources: Vec::new(), last: true };
        hub.message(0, node, ProxyMessage { message: Some(Message::Known(known)) });
    }
    assert_eq!((groups(&mut hub), hub.behind()), (vec![2, 3], 2));
    hub.resources_at(0, Vec::new(), mark(6, 1));
    assert_eq!((groups(&mut hub), hub.behind()), (vec![1], 1));
    hub.resources_at(0, Vec::new(), mark(6, 2));
    assert_eq!((groups(&mut hub), hub.behind()), (vec![], 1), "that look may have begun before");
    hub.resources_at(0, Vec::new(), mark(6, 3));
    assert_eq!((groups(&mut hub), hub.behind()), (vec![4], 0));
}

#[test]
fn who_says_nothing_takes_no_place_for_long() {
    let mut hub = Hub::new(0);
    hub.connected(0, 1, Some(None));
    hello(&mut hub, 2, "web", "says hello only");
    hello(&mut hub, 3, "web", "fine");
    let known = Known { resources: Vec::new(), last: true };
    hub.message(0, 3, ProxyMessage { message: Some(Message::Known(known)) });
    hub.tick(GREETING - 1);
    assert_eq!(closed(&mut hub), [0; 0]);
    hub.take_output();
    let ack = crate::proto::discovery::Ack { nonce: "1".into(), ..Default::default() };
    hub.message(GREETING - 1, 3, ProxyMessage { message: Some(Message::Ack(ack)) });
    hub.tick(GREETING);
    assert_eq!(closed(&mut hub), [1, 2]);
}

/// What is answered to a Workload `evil/w` with that address.
fn joins(hub: &mut Hub, address: &str) -> String {
    hub.connected(0, 9, Some(SpiffeId::workload("mesh.example", "evil", "default").ok()));
    let workload = format!(
        r#"{{"apiVersion":"selvedge.dev/v1alpha1","kind":"Workload","metadata":{{"name":"w","namespace":"evil","creationTimestamp":"1970-01-01T00:00:00Z"}},"spec":{{"addresses":["{address}"],"ports":[{{"port":80}}]}}}}"#
    );
    hub.register(0, 9, &Register { number: 1, workload: workload.into() });
    let refused = hub.take_output().into_iter().find_map(|(_, output)| match output {
        Output::Registered { refused, .. } => Some(refused),
        _ => None,
    });
    refused.unwrap()
}

#[test]
fn a_workload_cannot_take_an_address_that_another_namespace_has() {
    let mut hub = Hub::new(0);
    let there = [
        service("shop", "orders", "10.0.0.1"),
        slice("shop", "orders", &["10.1.0.1"]),
        resource(
            "{apiVersion: selvedge.dev/v1alpha1, kind: ExternalService, metadata: {name: db, namespace: shop}, spec: {hosts: [db.example], addresses: [192.0.2.1], ports: [{port: 5432}]}}",
        ),
    ];
    hub.resources(0, there.into_iter().map(|r| (r.key(), Some(r))).collect());
    for (address, owner) in
        [("10.0.0.1", "Service shop/orders"), ("10.1.0.1", "EndpointSlice"), ("192.0.2.1", "ExternalService shop/db")]
    {
        let refused = joins(&mut hub, address);
        assert!(refused.contains(owner), "{address}: {refused}");
    }
    assert_eq!(joins(&mut hub, "10.1.0.2"), "");
}

#[test]
fn a_workload_that_joins_is_not_older_than_what_is_written() {
    let mut hub = Hub::new(0);
    assert_eq!(joins(&mut hub, "10.1.0.2"), "");
    let key = ResourceKey::new(Kind::Workload, "evil", "w");
    let json = String::from_utf8_lossy(&hub.graph.get(&key).unwrap().json).into_owned();
    assert!(!json.contains("1970"), "{json}");
}

#[test]
fn what_is_no_workload_does_no_harm() {
    let mut hub = Hub::new(0);
    hub.connected(0, 1, Some(None));
    for hostile in ["", "[]", "null", "7", "{\"metadata\":[]}", "{\"metadata\":{\"name\":1}}"] {
        hub.register(0, 1, &Register { number: 1, workload: hostile.to_owned().into() });
        let out = hub.take_output();
        let [(1, Output::Registered { refused, .. })] = &out[..] else { panic!("{out:?}") };
        assert!(!refused.is_empty(), "{hostile}");
    }
}

/// Names of what is sent to node 1, which takes it.
fn sent(hub: &mut Hub) -> Vec<String> {
    let groups = hub.take_output().into_iter().filter_map(|(node, output)| match output {
        Output::Group(group) if node == 1 => Some(group),
        _ => None,
    });
    let groups: Vec<Group> = groups.collect();
    for group in &groups {
        let ack = crate::proto::discovery::Ack { nonce: group.nonce.clone(), ..Default::default() };
        hub.message(0, 1, ProxyMessage { message: Some(Message::Ack(ack)) });
    }
    let mut names: Vec<_> = groups.iter().flat_map(|g| &g.upserts).map(|e| e.key.to_string()).collect();
    names.sort();
    names
}

#[test]
fn an_endpoint_that_changes_is_told_and_a_workload_that_comes_to_it_later_too() {
    let mut hub = Hub::new(0);
    let put = |hub: &mut Hub, resource: Resource| hub.resources(0, vec![(resource.key(), Some(resource))]);
    let address = |n: usize| format!("10.1.{}.{}", n / 250, n % 250);
    let at = |n: usize| slice("shop", "cart", &[&address(n)]);
    put(&mut hub, service("shop", "cart", "10.0.0.1"));
    put(&mut hub, at(1));
    hub.connected(0, 1, Some(SpiffeId::workload("mesh.example", "shop", "web").ok()));
    let cart = Subscription { what: Some(What::Host("cart.shop".into())) };
    let role = WireRole::Sidecar.into();
    let hello = Hello { id: "web".into(), role, subscriptions: vec![cart], ..Hello::default() };
    hub.message(0, 1, ProxyMessage { message: Some(Message::Hello(hello)) });
    let known = Known { resources: Vec::new(), last: true };
    hub.message(0, 1, ProxyMessage { message: Some(Message::Known(known)) });
    assert_eq!(sent(&mut hub), ["EndpointSlice shop/cart", "Service shop/cart"]);
    for n in 2..2 + 2 * MAX_STALE {
        put(&mut hub, at(n));
        assert_eq!(sent(&mut hub), ["EndpointSlice shop/cart"]);
    }
    assert!(hub.by_token.len() < 2 * MAX_STALE, "what is looked up in vain is forgotten");
    let last = address(1 + 2 * MAX_STALE);
    put(
        &mut hub,
        resource(&format!(
            "{{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {{name: late, namespace: shop}}, spec: {{addresses: [{last}], ports: [{{port: 80}}]}}}}"
        )),
    );
    assert_eq!(sent(&mut hub), ["Workload shop/late"]);
}

/// Of the one proxy that there is or was.
fn condition(hub: &Hub, now: Millis) -> status::Condition {
    let counted = status::count(hub, now);
    let mut there = counted.iter().filter(|(_, count)| **count > 0);
    let ((role, condition), count) = there.next().unwrap();
    assert_eq!((*role, *count, there.next()), ("sidecar", 1, None), "{counted:?}");
    *condition
}

#[test]
fn who_is_gone_is_remembered_for_an_hour_unless_it_is_back() {
    let mut hub = Hub::new(0);
    hello(&mut hub, 1, "web", "web");
    hub.gone(1_000, 1);
    assert_eq!(condition(&hub, 1_000), Condition::Gone);
    let gone: Vec<_> = status::gone(&hub, 61_000).collect();
    assert!(gone[0].gone_since.is_some() && gone[0].state == Condition::Gone && gone[0].id == "web");
    hub.tick(GONE);
    assert_eq!(hub.departed().iter().count(), 1);
    hub.tick(GONE + 1_000);
    assert_eq!(hub.departed().iter().count(), 0);
    // A stream that takes the place of another is no second proxy, whichever ends first.
    hello(&mut hub, 2, "web", "web");
    hello(&mut hub, 3, "web", "web");
    hub.gone(GONE + 2_000, 2);
    assert_eq!(condition(&hub, 1_000), Condition::Updating);
    assert_eq!(condition(&hub, 60_000), Condition::Stale, "it should have everything by now");
    let leave = ProxyMessage { message: Some(Message::Leave(crate::proto::discovery::Leave {})) };
    hub.message(GONE + 3_000, 3, leave);
    hub.gone(GONE + 3_000, 3);
    assert_eq!(condition(&hub, GONE + 3_000), Condition::Left);
    hello(&mut hub, 4, "web", "web");
    assert_eq!((hub.departed().iter().count(), condition(&hub, 0)), (0, Condition::Updating));
    // Who has not said who it is, was nobody.
    hub.gone(GONE + 4_000, 4);
    hub.connected(GONE + 4_000, 5, Some(None));
    hub.gone(GONE + 4_000, 5);
    assert_eq!(hub.departed().iter().count(), 1);
    for node in 10..10 + 2 * MAX_GONE as u64 {
        hello(&mut hub, node, "web", &node.to_string());
        hub.gone(GONE + 5_000, node);
    }
    assert_eq!(hub.departed().iter().count(), MAX_GONE);
}

#[test]
fn a_proxy_beside_a_workload_that_there_is_not_is_told_of() {
    let mut hub = Hub::new(0);
    hub.connected(0, 1, Some(SpiffeId::workload("mesh.example", "shop", "web").ok()));
    let hello = Hello {
        id: "web".into(),
        role: WireRole::Sidecar.into(),
        workloads: vec!["shop/web".into()],
        ..Hello::default()
    };
    hub.message(0, 1, ProxyMessage { message: Some(Message::Hello(hello)) });
    hub.message(0, 1, ProxyMessage { message: Some(Message::Known(Known { resources: Vec::new(), last: true })) });
    assert_eq!(sent(&mut hub), [""; 0]);
    let shown = status::connected(&hub, 0).remove(0);
    assert_eq!((shown.state, shown.resources), (Condition::Errors, 0));
    assert!(shown.reason.contains("there is no Workload shop/web") && shown.reason.contains("--register"), "{shown:?}");
    assert_eq!(condition(&hub, 0), Condition::Errors);
    let workload = resource(
        "{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {name: web, namespace: shop}, spec: {addresses: [10.0.0.9], serviceAccount: web, ports: [{port: 80}]}}",
    );
    hub.resources(0, vec![(workload.key(), Some(workload))]);
    assert_eq!(sent(&mut hub), ["Workload shop/web"]);
    let shown = status::connected(&hub, 0).remove(0);
    assert!(shown.state == Condition::InSync && shown.reason.is_empty(), "{shown:?}");
    assert_eq!(condition(&hub, 0), Condition::InSync);
}

#[test]
fn many_that_live_are_asked_to_say_it_less_often() {
    let mut hub = Hub::new(0);
    let say = |hub: &mut Hub, now, node| {
        let message = Some(Message::Alive(crate::proto::discovery::Alive {}));
        hub.message(now, node, ProxyMessage { message });
    };
    let many = 2 * MANY as u64;
    for node in 0..many {
        hello(&mut hub, node, "web", &node.to_string());
        say(&mut hub, 0, node);
    }
    hub.tick(10);
    let paces = hub.take_paces();
    assert!(paces.len() == 2 * MANY && paces.iter().all(|(_, pace)| *pace == 400), "{:?}", &paces[..3]);
    hub.take_output();
    hub.tick(SILENCE);
    assert!(closed(&mut hub).is_empty(), "they are heard of later");
    assert_eq!(hub.wakes(SILENCE), 900, "less than a second, with 5,000");
    say(&mut hub, 800, 7);
    hub.tick(900);
    let silent = closed(&mut hub);
    assert!(silent.len() == 2 * MANY - 1 && !silent.contains(&7));
    assert_eq!(hub.take_paces(), [(7, 200)]);
}

/// Who reads a stream says so past the hub; who had not begun with it, or is dead, is not woken by that.
#[test]
fn who_is_heard_of_past_the_hub_lives() {
    let mut hub = Hub::new(0);
    let heard = hub.connected(0, 1, Some(SpiffeId::workload("mesh.example", "shop", "web").ok()));
    let say = |hub: &mut Hub, now, message| hub.message(now, 1, ProxyMessage { message: Some(message) });
    say(&mut hub, 0, Message::Hello(Hello { id: "p".into(), role: WireRole::Sidecar.into(), ..Hello::default() }));
    say(&mut hub, 0, Message::Known(Known { resources: Vec::new(), last: true }));
    assert!(!heard.again(10), "it has not said that it lives");
    say(&mut hub, 20, Message::Alive(crate::proto::discovery::Alive {}));
    assert!(heard.again(600));
    assert!(heard.again(500), "two threads that are not in order");
    hub.tick(600);
    assert_eq!(hub.wakes(600), 600 + SILENCE);
    hub.tick(600 + SILENCE - 1);
    assert_eq!(closed(&mut hub), [0; 0]);
    hub.tick(600 + SILENCE);
    assert_eq!(closed(&mut hub), [1]);
    assert!(!heard.again(2_000), "too late");
}

/// A proxy beside nothing that asks for these, and has nothing yet.
fn asks(hub: &mut Hub, node: NodeId, what: &[What]) {
    hub.connected(0, node, Some(SpiffeId::workload("mesh.example", "shop", "web").ok()));
    let subscriptions = what.iter().map(|what| Subscription { what: Some(what.clone()) }).collect();
    let hello = Hello { id: format!("p{node}"), role: WireRole::Sidecar.into(), subscriptions, ..Hello::default() };
    hub.message(0, node, ProxyMessage { message: Some(Message::Hello(hello)) });
    hub.message(0, node, ProxyMessage { message: Some(Message::Known(Known { resources: Vec::new(), last: true })) });
}

/// The first answer of a proxy.
fn acks(hub: &mut Hub, node: NodeId) {
    let ack = crate::proto::discovery::Ack { nonce: "1".into(), ..Default::default() };
    hub.message(0, node, ProxyMessage { message: Some(Message::Ack(ack)) });
}

/// Who is sent an update, since it was last asked.
fn told(hub: &mut Hub) -> Vec<NodeId> {
    let out = hub.take_output().into_iter();
    out.filter(|(_, output)| matches!(output, Output::Group(_))).map(|(node, _)| node).collect()
}

#[test]
fn a_workload_that_changes_is_told_to_those_that_had_it_and_to_those_that_get_it() {
    let mut hub = Hub::new(0);
    let put = |hub: &mut Hub, yaml: &str| {
        let resource = resource(yaml);
        hub.resources(0, vec![(resource.key(), Some(resource))]);
    };
    for name in ["a", "b", "c"] {
        put(
            &mut hub,
            &format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}}}"
            ),
        );
    }
    let workload = |app: &str| {
        format!(
            "{{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {{name: w, namespace: shop, labels: {{app: {app}}}}}, spec: {{addresses: [10.1.0.1], ports: [{{port: 80}}]}}}}"
        )
    };
    for (node, host) in [(1, "a.shop"), (2, "b.shop"), (3, "c.shop")] {
        asks(&mut hub, node, &[What::Host(host.into())]);
        acks(&mut hub, node);
    }
    told(&mut hub);
    put(&mut hub, &workload("a"));
    assert_eq!(told(&mut hub), [1]);
    let ack = crate::proto::discovery::Ack { nonce: "2".into(), ..Default::default() };
    hub.message(0, 1, ProxyMessage { message: Some(Message::Ack(ack)) });
    put(&mut hub, &workload("b"));
    let sees = |hub: &Hub| hub.members().map(|(_, member, _)| hub.sees(member)).collect::<Vec<_>>();
    assert_eq!((told(&mut hub), sees(&hub)), (vec![1, 2], vec![1, 2, 1]));
}

#[test]
fn what_was_asked_for_by_address_is_taken_back_when_it_has_another() {
    let mut hub = Hub::new(0);
    let put = |hub: &mut Hub, resource: Resource| hub.resources(0, vec![(resource.key(), Some(resource))]);
    put(&mut hub, service("shop", "cart", "10.0.0.1"));
    for (node, address) in [(1, "10.0.0.1"), (2, "10.0.0.2")] {
        asks(&mut hub, node, &[What::Address(address.into())]);
        acks(&mut hub, node);
    }
    let sees = |hub: &Hub| hub.members().map(|(_, member, _)| hub.sees(member)).collect::<Vec<_>>();
    assert_eq!((told(&mut hub), sees(&hub)), (vec![1, 2], vec![1, 0]));
    put(&mut hub, service("shop", "cart", "10.0.0.2"));
    assert_eq!((told(&mut hub), sees(&hub)), (vec![1, 2], vec![0, 1]));
}

#[test]
fn no_more_than_have_a_turn_get_everything_at_once() {
    let mut hub = Hub::new(0);
    let all = "{apiVersion: selvedge.dev/v1alpha1, kind: Mesh, metadata: {name: default}, spec: {scope: [shop]}}";
    let services = (0..70).map(|n| service("shop", &format!("s{n}"), &format!("10.0.0.{n}")));
    let there = services.chain([resource(all)]).map(|r| (r.key(), Some(r)));
    hub.resources(0, there.collect());
    let turns = TURNS as NodeId;
    for node in 1..=turns + 3 {
        asks(&mut hub, node, &[]);
    }
    assert_eq!(told(&mut hub), (1..=turns).collect::<Vec<_>>());
    acks(&mut hub, 1);
    assert_eq!(told(&mut hub), [turns + 1], "who has answered lets the next one");
    hub.gone(0, 2);
    assert_eq!(told(&mut hub), [turns + 2], "and who goes");
    hub.gone(0, 1);
    assert_eq!(told(&mut hub), [0; 0], "but once");
}
