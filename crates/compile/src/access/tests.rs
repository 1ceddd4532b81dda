use super::*;
use crate::snapshot::{AccessAction, AccessRule};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use selvedge_model::{Limits, Resource, parse};
use selvedge_wire::spiffe::SpiffeId;
use std::net::IpAddr;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// The policies of a text, all in one place.
fn access(text: &str) -> Access {
    let mut policies = Vec::new();
    for (i, document) in text.split("---").enumerate() {
        let whole = format!(
            "apiVersion: selvedge.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{i}, namespace: shop}}\nspec:\n{document}"
        );
        let parsed = parse("test", whole.as_bytes(), &Limits::default());
        assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
        for loaded in parsed.loaded {
            if let Some(Resource::AccessPolicy(policy)) = loaded.resource {
                policies.push(Arc::new(build::policy(&policy, "cluster.local").0));
            }
        }
    }
    Accesses::default().access(policies, None, None)
}

#[derive(Clone)]
struct Who {
    id: Option<SpiffeId>,
    peer: IpAddr,
    client: IpAddr,
    port: u16,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: HeaderMap,
    claims: Option<serde_json::Value>,
}

impl Default for Who {
    fn default() -> Self {
        Who {
            id: CART.parse().ok(),
            peer: [10, 1, 0, 7].into(),
            client: [203, 0, 113, 9].into(),
            port: 80,
            method: "GET",
            host: "orders.shop",
            path: "/orders/7",
            headers: HeaderMap::new(),
            claims: None,
        }
    }
}

impl Who {
    fn subject<'a>(&'a self, layer7: Layer7<'a>) -> Subject<'a> {
        let (identity, peer, client, port) = (self.id.as_ref(), self.peer, self.client, self.port);
        Subject {
            identity,
            mtls: identity.is_some(),
            peer,
            client,
            port,
            claims: self.claims.as_ref(),
            preflight: false,
            layer7,
        }
    }

    fn asks(&self, access: &Access) -> bool {
        let (method, host, path, headers) = (self.method, self.host, self.path, &self.headers);
        let asked = Asked { method, host, path, query: Some("q=1"), headers: Some(headers) };
        access.decide(&self.subject(Layer7::Request(asked))).allowed
    }

    fn connects(&self, access: &Access) -> bool {
        access.decide(&self.subject(Layer7::Bytes)).allowed
    }

    fn may_come(&self, access: &Access) -> bool {
        access.decide(&self.subject(Layer7::Later)).allowed
    }
}

fn path(path: &'static str) -> Who {
    Who { path, ..Who::default() }
}

fn header(values: &[(&'static str, &[u8])]) -> Who {
    let mut who = Who::default();
    for (name, value) in values {
        who.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("a value"));
    }
    who
}

/// Whether `who` is allowed when the rule, in YAML, is one that denies.
fn denied_by(rule: &str, who: &Who) -> bool {
    !who.asks(&access(&format!("  action: Deny\n  rules: [{rule}]")))
}

#[test]
fn order_of_actions() {
    let who = Who::default();
    assert!(who.asks(&access("  action: Deny")), "no rule matches nothing");
    assert!(!who.asks(&access("  action: Allow")), "an Allow policy without rules allows nothing");
    assert!(who.asks(&access("  action: Allow\n  rules: [{}]")));
    assert!(!who.asks(&access("  action: Deny\n  rules: [{}]")));
    assert!(!who.asks(&access("  rules: [{}]\n---\n  action: Deny\n  rules: [{}]")), "deny wins");
    assert!(who.asks(&access("  action: Allow\n---\n  action: Allow\n  rules: [{}]")), "one that allows is enough");
    let audit = access("  action: Audit\n  rules: [{}]");
    let verdict = audit.decide(&who.subject(Layer7::Bytes));
    assert!(verdict.allowed && verdict.audited.len() == 1, "audit marks and decides nothing");
    for (default, allowed) in [(DefaultAccess::Allow, true), (DefaultAccess::Audit, true), (DefaultAccess::Deny, false)]
    {
        assert_eq!(who.asks(&Access { default, ..Access::default() }), allowed);
    }
    let allow = Access { default: DefaultAccess::Deny, ..access("  rules: [{}]") };
    assert!(who.asks(&allow));
}

#[test]
fn sources() {
    let who = Who::default();
    let plain = Who { id: None, ..Who::default() };
    let table = [
        ("identities: ['spiffe://cluster.local/ns/shop/sa/cart']", true, false),
        ("identities: ['spiffe://cluster.local/ns/shop/*']", true, false),
        ("identities: ['*/sa/cart']", true, false),
        ("identities: ['*']", true, false),
        ("identities: ['spiffe://cluster.local/ns/shop/sa/car']", false, false),
        ("notIdentities: ['spiffe://cluster.local/ns/shop/sa/cart']", false, true),
        ("namespaces: [shop]", true, false),
        ("namespaces: [sho*]", true, false),
        ("namespaces: [other]", false, false),
        ("notNamespaces: [shop]", false, true),
        ("trustDomains: [cluster.local]", true, false),
        ("trustDomains: [other.example]", false, false),
        ("serviceAccounts: [cart]", true, false),
        ("serviceAccounts: [shop/cart]", true, false),
        ("serviceAccounts: [other/cart]", false, false),
        ("notServiceAccounts: [cart]", false, true),
        ("ipBlocks: [10.0.0.0/8]", true, true),
        ("ipBlocks: ['::ffff:10.0.0.0/104']", true, true),
        ("ipBlocks: [10.1.0.7]", true, true),
        ("ipBlocks: [203.0.113.0/24]", false, false),
        ("notIpBlocks: [10.0.0.0/8]", false, false),
        ("remoteIpBlocks: [203.0.113.0/24]", true, true),
        ("remoteIpBlocks: [10.0.0.0/8]", false, false),
        ("namespaces: [shop], ipBlocks: [192.0.2.1]", false, false),
    ];
    for (source, meshed, unmeshed) in table {
        let rule = format!("{{from: [{{{source}}}]}}");
        assert_eq!(denied_by(&rule, &who), meshed, "{source}");
        assert_eq!(denied_by(&rule, &plain), unmeshed, "{source} without identity");
    }
    assert!(denied_by("{from: [{namespaces: [other]}, {namespaces: [shop]}]}", &who), "one of the list");
    let mapped = Who { peer: "::ffff:10.1.0.7".parse().expect("an address"), ..Who::default() };
    assert!(denied_by("{from: [{ipBlocks: [10.0.0.0/8]}]}", &mapped));
}

/// A namespace of another trust domain belongs to somebody else, whatever its name.
#[test]
fn names_of_namespaces_are_those_of_the_mesh() {
    let abroad = Who { id: "spiffe://other.example/ns/shop/sa/cart".parse().ok(), ..Who::default() };
    let home = Who::default();
    let allowed = |source: &str, who: &Who| who.asks(&access(&format!("  rules: [{{from: [{{{source}}}]}}]")));
    // What is allowed at home, and to whom is called the same elsewhere.
    let table = [
        ("namespaces: [shop]", true, false),
        ("namespaces: ['*']", true, false),
        ("serviceAccounts: [cart]", true, false),
        ("serviceAccounts: [shop/cart]", true, false),
        ("notNamespaces: [shop]", false, false),
        ("notNamespaces: [other]", true, true),
        ("notServiceAccounts: [cart]", false, false),
        ("namespaces: [shop], notTrustDomains: [third.example]", true, false),
        ("namespaces: [shop], trustDomains: [other.example]", false, true),
        ("serviceAccounts: [cart], trustDomains: ['*']", true, true),
        ("serviceAccounts: [other/cart], trustDomains: [other.example]", false, false),
        ("trustDomains: [other.example]", false, true),
        ("identities: ['spiffe://other.example/ns/shop/*']", false, true),
    ];
    for (source, at_home, elsewhere) in table {
        assert_eq!((allowed(source, &home), allowed(source, &abroad)), (at_home, elsewhere), "{source}");
    }
    // To deny, a name is a name: nobody escapes by another trust domain.
    for (source, denied) in [
        ("namespaces: [shop]", true),
        ("namespaces: [other]", false),
        ("notNamespaces: [shop]", true),
        ("serviceAccounts: [cart]", true),
        ("notServiceAccounts: [cart]", true),
        ("namespaces: [shop], trustDomains: [cluster.local]", false),
    ] {
        assert_eq!(denied_by(&format!("{{from: [{{{source}}}]}}"), &abroad), denied, "{source}");
    }
    // What no request can change is decided when the connection begins.
    assert!(!abroad.may_come(&access("  rules: [{from: [{namespaces: [shop]}]}]")));
}

#[test]
fn operations() {
    let who = Who::default();
    let table = [
        ("hosts: [orders.shop]", true),
        ("hosts: [ORDERS.Shop]", true),
        ("hosts: ['*.shop']", true),
        ("hosts: [shop]", false),
        ("ports: [80, 81]", true),
        ("notPorts: [80]", false),
        ("methods: [GET]", true),
        ("methods: [get]", false),
        ("notMethods: [GET, HEAD]", false),
        ("paths: ['/orders/*']", true),
        ("paths: ['/orders/{id}']", true),
        ("paths: ['/orders']", false),
        ("notPaths: ['/health']", true),
        ("notPaths: ['/orders/*']", false),
        ("methods: [GET], paths: ['/x']", false),
    ];
    for (operation, wanted) in table {
        assert_eq!(denied_by(&format!("{{to: [{{{operation}}}]}}"), &who), wanted, "{operation}");
    }
}

#[test]
fn repeated_headers_are_judged_each() {
    let deny = "{to: [{headers: [{name: X-Internal, exact: 'true'}]}]}";
    assert!(denied_by(deny, &header(&[("x-internal", b"true")])));
    assert!(denied_by(deny, &header(&[("x-internal", b"true"), ("x-internal", b"true")])));
    assert!(denied_by(deny, &header(&[("x-internal", b"no"), ("x-internal", b"true")])));
    assert!(!denied_by(deny, &header(&[("x-internal", b"true,true")])), "one value is never split");
    let begins = "{to: [{headers: [{name: x-internal, prefix: adm}]}]}";
    assert!(denied_by(begins, &header(&[("x-internal", b"adm\xff")])), "other bytes hide nothing");
    let cel =
        "{when: \"'x-internal' in request.headers && request.headers['x-internal'].exists(v, v.matches('^adm'))\"}";
    assert!(denied_by(cel, &header(&[("x-internal", b"adm\xff\x80")])));
    assert!(denied_by(cel, &header(&[("x-internal", b"no"), ("x-internal", b"admin")])));
    assert!(!denied_by(cel, &header(&[("x-internal", b"no")])));
    let absent = "{to: [{headers: [{name: x-internal, present: false}]}]}";
    assert!(denied_by(absent, &header(&[])) && !denied_by(absent, &header(&[("x-internal", b"")])));
    let none = "{to: [{notHeaders: [{name: x-token, exact: good}]}]}";
    assert!(denied_by(none, &header(&[("x-token", b"bad")])) && !denied_by(none, &header(&[("x-token", b"good")])));
}

#[test]
fn paths_that_may_be_read_in_two_ways_fail_closed() {
    let deny = access("  action: Deny\n  rules: [{to: [{paths: ['/admin', '/admin/*']}]}]");
    let allow = access("  rules: [{to: [{paths: ['/public/*']}]}]");
    for tricky in ["/admin;x=y", "/admin;/x", "/admin%2Fx", "/x/..%2Fadmin"] {
        assert!(!path(tricky).asks(&deny), "{tricky}");
    }
    for tricky in ["/public/..%2Fadmin", "/public;/../admin", "/public%2Fx", "/public/..%5Cadmin"] {
        assert!(!path(tricky).asks(&allow), "{tricky}");
    }
    assert!(path("/public/a;v=1").asks(&allow));
    let not = access("  action: Deny\n  rules: [{to: [{notPaths: ['/public/*']}]}]");
    assert!(!path("/public/..%2Fadmin").asks(&not));
    let cel = access("  action: Deny\n  rules: [{when: \"request.path.startsWith('/admin')\"}]");
    assert!(!path("/x/..%2Fadmin").asks(&cel) && path("/x").asks(&cel));
}

#[test]
fn what_is_said_about_requests_where_none_is_seen() {
    let who = Who::default();
    let l7 = [
        "to: [{paths: ['/x']}]",
        "to: [{notPaths: ['/x']}]",
        "to: [{methods: [GET]}]",
        "when: \"request.path == '/x'\"",
    ];
    for rule in l7 {
        let allow = access(&format!("  rules: [{{{rule}}}]"));
        let deny = access(&format!("  action: Deny\n  rules: [{{{rule}}}]"));
        assert!(!who.connects(&allow) && !who.connects(&deny), "{rule}: fails closed");
        assert!(who.may_come(&allow) && who.may_come(&deny), "{rule}: requests will be judged");
        let others = access(&format!("  action: Deny\n  rules: [{{from: [{{namespaces: [other]}}], {rule}}}]"));
        assert!(who.connects(&others), "{rule}: of others");
    }
    for rule in ["from: [{namespaces: [shop]}]", "to: [{ports: [80]}]", "when: \"source.namespace == 'shop'\""] {
        let deny = access(&format!("  action: Deny\n  rules: [{{{rule}}}]"));
        assert!(!who.connects(&deny) && !who.may_come(&deny), "{rule}");
        assert!(who.connects(&access(&format!("  rules: [{{{rule}}}]"))), "{rule}");
    }
}

#[test]
fn expressions() {
    let mut who = header(&[("x-user", b"anna")]);
    let table = [
        ("source.identity == 'spiffe://cluster.local/ns/shop/sa/cart'", true),
        ("source.service_account in ['cart', 'web']", true),
        ("source.ip == '10.1.0.7' && request.remote_ip == '203.0.113.9'", true),
        ("destination.port == 80", true),
        ("request.method == 'POST' || request.path.endsWith('/7')", true),
        ("connection.mtls && request.host.startsWith('orders.')", true),
        ("request.headers['x-user'][0] == 'anna'", true),
        ("request.query.contains('q=')", true),
        ("has(request.headers.missing)", false),
        ("request.headers.all(name, request.headers[name].size() == 1)", true),
        ("!connection.mtls", false),
        // What fails denies.
        ("request.headers['missing'][0] == 'x'", true),
    ];
    for (cel, wanted) in table {
        assert_eq!(denied_by(&format!("{{when: \"{cel}\"}}"), &who), wanted, "{cel}");
    }
    let failing = access("  rules: [{when: \"request.headers['missing'][0] == 'x'\"}]");
    assert!(!who.asks(&failing), "what fails allows nothing");
    who.id = None;
    assert!(denied_by("{when: \"source.identity == ''\"}", &who));
}

#[test]
fn expressions_are_checked() {
    let loops = "request.headers.all(a, request.headers.all(b, request.headers.all(c, a == b || b == c)))";
    let table = [
        ("source.", "not CEL"),
        ("sauce.identity == 'x'", "no variable `sauce`"),
        ("source.name == 'x'", "`source` has no `name`"),
        ("source['name'] == 'x'", "`source` has no `name`"),
        ("'x'", "yields a text"),
        ("1 + 1", "yields a number"),
        ("request.path", "yields a text"),
        ("[true]", "yields a list"),
        ("true ? 'a' : 'b'", "yields a text"),
        ("request.path.matches('(')", "not a regular expression"),
        ("request.path.matches('(a{1000}){1000}')", "not a regular expression"),
        ("request.path.matches(request.host)", "written out"),
        (loops, "nest fewer loops"),
    ];
    for (cel, why) in table {
        let found = Expression::compile(cel).expect_err(cel);
        assert!(found.contains(why), "{cel}: {found}");
    }
    // Long is fine, or refused, but never a crash; 4096 is the longest.
    let deep = |open: &str, close: &str| format!("{}true{}", open.repeat(1000), close.repeat(1000));
    for (open, close) in
        [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("{1:", "}"), ("f(", ")"), ("a.", ""), ("1+", "")]
    {
        let _ = Expression::compile(&deep(open, close));
    }
    let _ = Expression::compile(&"true?true:".repeat(400));
    let chain = vec!["1 == 1"; 400].join(" && ");
    assert!(Expression::compile(&chain).is_ok());
}

#[test]
fn claims() {
    let claims = serde_json::json!({"sub": "anna", "realm_access": {"roles": ["user", "admin"]}, "level": 3});
    let who = Who { claims: Some(claims), ..Who::default() };
    let table = [
        ("{name: sub, values: [anna]}", true),
        ("{name: realm_access/roles, values: ['adm*']}", true),
        ("{name: level, values: ['3']}", true),
        ("{name: sub, values: [bob]}", false),
        ("{name: missing/x, values: ['*']}", false),
    ];
    for (claim, wanted) in table {
        assert_eq!(denied_by(&format!("{{from: [{{claims: [{claim}]}}]}}"), &who), wanted, "{claim}");
    }
    assert!(!denied_by("{from: [{claims: [{name: sub, values: ['*']}]}]}", &Who::default()));
}

#[test]
fn expressions_read_claims() {
    let claims = serde_json::json!({"sub": "anna", "n": 3, "f": 1.5, "big": u64::MAX, "roles": ["user", "admin"], "o": {"k": [{"x": null}]}});
    let who = Who { claims: Some(claims), ..Who::default() };
    let table = [
        ("claims.sub == 'anna'", true, true),
        ("claims['sub'] == 'bob'", false, true),
        ("'sub' in claims && claims.sub == 'anna'", true, false),
        ("has(claims.sub)", true, false),
        ("claims.n > 2 && claims.f > 1.0 && claims.big > 1u", true, true),
        ("'admin' in claims.roles", true, true),
        ("claims.roles.exists(role, role.startsWith('adm'))", true, true),
        ("claims.o.k[0].x == null", true, true),
        ("size(claims) == 0", false, true),
        ("claims.none == 'x'", true, true),
    ];
    for (when, with, without) in table {
        let rule = format!("{{when: \"{when}\"}}");
        assert_eq!(denied_by(&rule, &who), with, "{when}");
        assert_eq!(denied_by(&rule, &Who::default()), without, "{when}, without a token");
        assert!(!Who::default().connects(&access(&format!("  action: Deny\n  rules: [{rule}]"))), "{when}, of bytes");
    }
    assert!(Expression::compile("claims").is_err() && Expression::compile("claims.x + 1").is_err());
}

#[test]
fn who_must_prove_who_they_are_and_have_not_get_no_further() {
    let auth = |optional: bool, broken: Option<&str>| {
        let (providers, places, strip) = Default::default();
        let name = "shop/users".to_owned();
        let broken = broken.map(str::to_owned);
        let auth = Auth { name, optional, providers, places, strip, broken, digest: [0; 32] };
        Access { auth: Some(Arc::new(auth)), ..access("  action: Allow\n  rules: [{}]") }
    };
    let (nobody, anna) = (Who::default(), Who { claims: Some(serde_json::json!({"sub": "anna"})), ..Who::default() });
    // Who has no token, who has one, bytes, and a connection on which requests will come.
    let all = |access: &Access| [nobody.asks(access), anna.asks(access), anna.connects(access), anna.may_come(access)];
    assert_eq!(all(&auth(false, None)), [false, true, false, true]);
    assert_eq!(all(&auth(true, None)), [true, true, true, true]);
    assert_eq!(all(&auth(true, Some("no keys"))), [false, false, false, true]);
    let demanded = auth(false, None);
    let asked = Asked { method: "OPTIONS", host: "a", path: "/", query: None, headers: None };
    let preflight = Subject { preflight: true, ..nobody.subject(Layer7::Request(asked)) };
    assert!(demanded.decide(&preflight).allowed);
    let verdict = demanded.decide(&nobody.subject(Layer7::Request(asked)));
    assert_eq!((verdict.policy(), verdict.by.to_string().contains("demands a token")), ("shop/users", true));
}

#[test]
fn what_is_broken_denies() {
    let table = [
        "from: [{ipBlocks: [10.0.0.0/33]}]",
        "from: [{ipBlocks: [localhost]}]",
        "from: [{identities: [cart]}]",
        "from: [{identities: ['spiffe://Cluster.local/x']}]",
        "from: [{namespaces: ['*a*']}]",
        "from: [{}]",
        "to: [{}]",
        "to: [{paths: [orders]}]",
        "to: [{paths: ['/orders/{id']}]",
        "to: [{hosts: ['a:80']}]",
        "to: [{methods: ['G T']}]",
        "to: [{headers: [{name: x}]}]",
        "to: [{headers: [{name: host, exact: a}]}]",
        "to: [{headers: [{name: x, exact: a, prefix: b}]}]",
        "when: \"nonsense(\"",
    ];
    for rule in table {
        for action in ["Allow", "Audit", "Deny"] {
            let access = access(&format!("  action: {action}\n  rules: [{{{rule}}}]"));
            let who = Who::default();
            assert!(access.policies[0].broken.is_some(), "{rule}");
            assert!(!who.asks(&access) && !who.connects(&access) && !who.may_come(&access), "{rule}");
        }
    }
}

/// Policies that match or not, as wished.
fn policy(name: usize, (action, matches): (AccessAction, bool)) -> Arc<AccessPolicy> {
    let rule = AccessRule { name: "#0".into(), from: Vec::new(), to: Vec::new(), when: None };
    let rules = if matches { vec![rule] } else { Vec::new() };
    Arc::new(AccessPolicy { name: format!("shop/{name}"), action, rules, broken: None })
}

proptest! {
    #[test]
    fn deny_wins_whatever_the_order(
        list in prop::collection::vec((0..3_u8, any::<bool>()), 0..8),
        default in 0..3_u8,
    ) {
        let action = |n| match n {
            0 => AccessAction::Deny,
            1 => AccessAction::Allow,
            _ => AccessAction::Audit,
        };
        let default = match default {
            0 => DefaultAccess::Allow,
            1 => DefaultAccess::Audit,
            _ => DefaultAccess::Deny,
        };
        let list: Vec<_> = list.into_iter().map(|(n, matches)| (action(n), matches)).collect();
        let policies = list.iter().enumerate().map(|(i, one)| policy(i, *one)).collect();
        let access = Access { default, policies, ..Access::default() };
        let has = |action, matches| list.contains(&(action, matches));
        let wanted = if has(AccessAction::Deny, true) {
            false
        } else if has(AccessAction::Allow, true) {
            true
        } else if has(AccessAction::Allow, false) {
            false
        } else {
            default != DefaultAccess::Deny
        };
        prop_assert_eq!(Who::default().asks(&access), wanted);
        let mut turned = access;
        turned.policies.reverse();
        prop_assert_eq!(Who::default().asks(&turned), wanted);
    }

    #[test]
    fn expressions_never_crash(text in "[a-z.'()\\[\\]&|!=<>0-9 ?:,+*/-]{0,60}") {
        if let Ok(expression) = Expression::compile(&text) {
            let _ = expression.holds(&Who::default().subject(Layer7::Bytes), None);
        }
    }
}
