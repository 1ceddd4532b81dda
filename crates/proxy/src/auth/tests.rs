use super::*;
use crate::{
    jwt::tests::{ISSUER, Signer, auth},
    worker::WorkerCount,
};
use http::header::AUTHORIZATION;
use selvedge_compile::snapshot::ClaimHeader;
use serde_json::json;

struct World {
    auth: Auth,
    signer: Signer,
    proofs: Proofs,
    counts: AccessCounts,
}

impl World {
    fn new() -> Self {
        let signer = Signer::ed("a");
        let counts = AccessCounts::default();
        counts.set_auth(["shop/users"].into());
        World { auth: auth(&[&signer]), signer, proofs: Proofs::new(WorkerCount(1)), counts }
    }

    fn ask(&self, request: &mut Request<()>) -> Result<Option<Arc<Proof>>, Reason> {
        let worker = (&self.proofs, WorkerId(0));
        super::request(&self.auth, request, false, worker, &self.counts).map_err(|error| match error.kind {
            Kind::Unproven(reason) => reason,
            other => panic!("{other:?}"),
        })
    }

    fn token(&self) -> String {
        self.signer.token(&json!({"iss": ISSUER, "exp": 4_000_000_000_u64, "sub": "anna", "n": 3, "roles": ["a", "b"]}))
    }
}

fn with(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

#[test]
fn a_token_is_taken_from_where_it_may_come_and_only_once() {
    let world = World::new();
    let token = world.token();
    let bearer = format!("Bearer {token}");
    let ask = |headers: &[(&str, &str)]| world.ask(&mut with("/", headers)).map(|proof| proof.is_some());
    assert_eq!(ask(&[("authorization", &bearer)]), Ok(true));
    assert_eq!(ask(&[("authorization", &format!("bEARER  {token} "))]), Ok(true));
    assert_eq!(ask(&[]), Err(Reason::Missing));
    assert_eq!(ask(&[("authorization", "Basic YTpi")]), Err(Reason::Missing));
    assert_eq!(ask(&[("x-token", &bearer)]), Err(Reason::Missing));
    assert_eq!(ask(&[("authorization", "Bearer")]), Err(Reason::Malformed));
    assert_eq!(ask(&[("authorization", "Bearer ")]), Err(Reason::Malformed));
    assert_eq!(ask(&[("authorization", &format!("{bearer}, {bearer}"))]), Err(Reason::Malformed));
    assert_eq!(ask(&[("authorization", &bearer), ("authorization", &bearer)]), Err(Reason::Repeated));
    assert_eq!(ask(&[("authorization", "Basic YTpi"), ("authorization", &bearer)]), Err(Reason::Repeated));
    assert_eq!(ask(&[("authorization", "Basic YTpi"), ("authorization", "Basic YTpj")]), Err(Reason::Missing));
    assert_eq!(ask(&[("authorization", &format!("Bearer {}", "a".repeat(1 << 20)))]), Err(Reason::TooLong));
}

#[test]
fn other_headers_and_the_query_can_have_tokens_for_some_providers() {
    let mut world = World::new();
    let mut other = world.auth.providers[0].clone();
    other.issuer = "https://other.example".to_owned();
    world.auth.providers.push(other);
    let header = |prefix: &str| TokenAt::Header(HeaderName::from_static("x-jwt"), prefix.to_owned());
    world.auth.places = vec![
        TokenPlace { at: header(""), providers: vec![0] },
        TokenPlace { at: header("token "), providers: vec![1] },
        TokenPlace { at: TokenAt::Param("access_token".to_owned()), providers: vec![0] },
    ];
    let token = world.token();
    let ask = |uri: &str, headers: &[(&str, &str)]| world.ask(&mut with(uri, headers)).map(|proof| proof.is_some());
    assert_eq!(ask("/", &[("x-jwt", &token)]), Ok(true));
    assert_eq!(ask("/", &[("authorization", &format!("Bearer {token}"))]), Err(Reason::Missing));
    // Verified a moment ago, but this place is another issuer's.
    assert_eq!(ask("/", &[("x-jwt", &format!("Token {token}"))]), Err(Reason::Issuer));
    assert_eq!(ask(&format!("/?a=1&access_token={token}"), &[]), Ok(true));
    assert_eq!(ask(&format!("/?%61ccess_token={token}"), &[]), Ok(true));
    assert_eq!(ask(&format!("/?access_token={token}&%61ccess_token=x"), &[]), Err(Reason::Repeated));
    assert_eq!(ask(&format!("/?access_token={token}"), &[("x-jwt", &token)]), Err(Reason::Repeated));
    assert_eq!(ask("/?access_token=%zz", &[]), Err(Reason::Malformed));
    assert_eq!(ask("/?access_token", &[]), Err(Reason::Malformed));
    assert_eq!(ask("/?access_tokens=x&%zz=1", &[]), Err(Reason::Missing));

    world.auth.providers[0].forward = false;
    let mut request = with(&format!("https://shop.example/p?a=1&%61ccess_token={token}&b=%20"), &[]);
    world.ask(&mut request).unwrap();
    assert_eq!(request.uri(), "https://shop.example/p?a=1&b=%20");
    let mut request = with(&format!("/p?access_token={token}"), &[]);
    world.ask(&mut request).unwrap();
    assert_eq!(request.uri(), "/p");
}

#[test]
fn claims_are_told_and_cannot_be_invented() {
    let mut world = World::new();
    let tell = |header: &'static str, claim: &str| ClaimHeader {
        header: HeaderName::from_static(header),
        claim: claim.split('/').map(str::to_owned).collect(),
    };
    let told = [tell("x-sub", "sub"), tell("x-n", "n"), tell("x-roles", "roles"), tell("x-no", "no/such")];
    world.auth.strip = told.iter().map(|told| told.header.clone()).collect();
    world.auth.providers[0].claim_headers = told.to_vec();
    world.auth.optional = true;
    let spoofed = [("x-sub", "root"), ("x-sub", "admin"), ("x-no", "x"), ("x-other", "stays")];
    let mut request = with("/", &spoofed);
    assert!(world.ask(&mut request).unwrap().is_none());
    assert_eq!(request.headers().len(), 1);

    let mut request = with("/", &spoofed);
    let bearer = HeaderValue::try_from(format!("Bearer {}", world.token())).unwrap();
    request.headers_mut().insert(AUTHORIZATION, bearer);
    for cached in [false, true] {
        let proof = world.ask(&mut request).unwrap().unwrap();
        assert_eq!(proof.claims["sub"], "anna", "{cached}");
        let all = |name: &str| request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-sub"), all("x-n"), all("x-roles")), (vec!["anna"], vec!["3"], vec!["a,b"]));
        assert!(all("x-no").is_empty() && all("x-other") == ["stays"] && request.headers().contains_key(AUTHORIZATION));
    }
    world.auth.providers[0].forward = false;
    world.ask(&mut request).unwrap();
    assert!(!request.headers().contains_key(AUTHORIZATION));
    // A wrong token is refused where none is needed, too.
    assert_eq!(world.ask(&mut with("/", &[("authorization", "Bearer x.y.z")])).unwrap_err(), Reason::Malformed);
}

#[test]
fn a_signature_is_verified_once_for_each_set_of_keys() {
    let mut world = World::new();
    let bearer = format!("Bearer {}", world.token());
    let accepted = |world: &World| {
        let mut out = crate::telemetry::encode::Encoder::default();
        world.counts.encode(&mut out);
        let text = out.finish(crate::telemetry::encode::Format::Prometheus);
        let count = |by: &str| {
            let line = format!("selvedge_auth_accepted_total{{policy=\"shop/users\",by=\"{by}\"}} ");
            text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
        };
        (count("signature"), count("cache"))
    };
    for _ in 0..3 {
        world.ask(&mut with("/", &[("authorization", &bearer)])).unwrap();
    }
    assert_eq!(accepted(&world), (1, 2));
    let other = Signer::ed("a");
    world.auth = Auth { digest: [7; 32], ..auth(&[&other]) };
    assert_eq!(world.ask(&mut with("/", &[("authorization", &bearer)])).unwrap_err(), Reason::Signature);
    assert_eq!(accepted(&world), (1, 2));
}

#[test]
fn nothing_passes_a_broken_policy_and_browsers_may_ask_first() {
    let mut world = World::new();
    let bearer = format!("Bearer {}", world.token());
    let mut request = with("/", &[]);
    let worker = (&world.proofs, WorkerId(0));
    assert!(super::request(&world.auth, &mut request, true, worker, &world.counts).unwrap().is_none());
    world.auth.broken = Some("Secret shop/keys does not exist".to_owned());
    world.auth.optional = true;
    for headers in [&[][..], &[("authorization", bearer.as_str())]] {
        assert_eq!(world.ask(&mut with("/", headers)).unwrap_err(), Reason::Broken);
    }
}
