use super::*;
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        RsaEncoding, RsaKeyPair,
    },
};
use selvedge_compile::snapshot::{TokenAt, TokenPlace};
use serde_json::json;
use std::sync::{Arc, LazyLock};

pub(crate) const ISSUER: &str = "https://issuer.example";
/// When it is, in these tests.
const NOW: u64 = 1_800_000_000;

pub(crate) struct Signer {
    pub(crate) id: &'static str,
    key: Pair,
    algorithms: Vec<JwtAlgorithm>,
}

enum Pair {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(&'static RsaKeyPair),
}

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

impl Signer {
    pub(crate) fn ed(id: &'static str) -> Self {
        Signer { id, key: Pair::Ed(Ed25519KeyPair::generate().unwrap()), algorithms: vec![JwtAlgorithm::EdDSA] }
    }

    fn ec(id: &'static str, algorithm: JwtAlgorithm) -> Self {
        let of = match algorithm {
            JwtAlgorithm::ES256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
        };
        Signer { id, key: Pair::Ec(EcdsaKeyPair::generate(of).unwrap()), algorithms: vec![algorithm] }
    }

    fn rsa(id: &'static str) -> Self {
        Signer { id, key: Pair::Rsa(&RSA), algorithms: JwtAlgorithm::RSA.to_vec() }
    }

    fn key(&self) -> JwtKey {
        let material = match &self.key {
            Pair::Ed(pair) => JwtMaterial::Ed(pair.public_key().as_ref().to_vec()),
            Pair::Ec(pair) => JwtMaterial::Ec(pair.public_key().as_ref().to_vec()),
            Pair::Rsa(pair) => JwtMaterial::Rsa {
                n: pair.public_key().modulus().big_endian_without_leading_zero().to_vec(),
                e: pair.public_key().exponent().big_endian_without_leading_zero().to_vec(),
            },
        };
        JwtKey { id: Some(self.id.to_owned()), algorithms: self.algorithms.clone(), material }
    }

    fn sign(&self, message: &[u8], algorithm: &str) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut out).unwrap();
                out
            }
        }
    }

    /// Signs a token of these texts, whatever they are.
    fn raw(&self, header: &str, claims: &str) -> String {
        let algorithm = serde_json::from_str::<Value>(header).map_or_else(|_| String::new(), |h| h["alg"].to_string());
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.sign(message.as_bytes(), algorithm.trim_matches('"'));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn header(&self) -> Value {
        json!({"alg": format!("{:?}", self.algorithms[0]), "kid": self.id, "typ": "JWT"})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.raw(&self.header().to_string(), &claims.to_string())
    }
}

pub(crate) fn auth(signers: &[&Signer]) -> Auth {
    let provider = JwtProvider {
        name: "main".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: Vec::new(),
        keys: Arc::new(signers.iter().map(|signer| signer.key()).collect()),
        skew: Duration::from_secs(60),
        claim_headers: Vec::new(),
        forward: true,
    };
    let at = TokenAt::Header(http::header::AUTHORIZATION, "bearer ".to_owned());
    Auth {
        name: "shop/users".to_owned(),
        optional: false,
        providers: vec![provider],
        places: vec![TokenPlace { at, providers: vec![0] }],
        strip: Vec::new(),
        broken: None,
        digest: [0; 32],
    }
}

fn check(auth: &Auth, token: &str) -> Result<Proof, Reason> {
    let all: Vec<usize> = (0..auth.providers.len()).collect();
    verify(auth, &all, token, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
}

fn good() -> Value {
    json!({"iss": ISSUER, "sub": "anna", "aud": "shop", "iat": NOW, "nbf": NOW, "exp": NOW + 300})
}

#[test]
fn each_algorithm_verifies_with_its_key_and_with_no_other() {
    let rsa = Signer::rsa("rsa");
    let signers = [Signer::ed("ed"), Signer::ec("p256", JwtAlgorithm::ES256), Signer::ec("p384", JwtAlgorithm::ES384)];
    let mut auth = auth(&[&rsa, &signers[0], &signers[1], &signers[2]]);
    for signer in &signers {
        let proof = check(&auth, &signer.token(&good())).unwrap();
        assert_eq!((proof.claims["sub"].as_str(), proof.issuer.as_str()), (Some("anna"), ISSUER));
        assert_eq!(proof.until, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + 360));
    }
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        let token = rsa.raw(&json!({"alg": algorithm, "kid": "rsa"}).to_string(), &good().to_string());
        check(&auth, &token).unwrap();
        // The same signature under another name.
        for other in ["RS256", "PS256", "ES256", "EdDSA"] {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": other, "kid": "rsa"}).to_string());
            let forged = format!("{header}{}", &token[token.find('.').unwrap()..]);
            if other != algorithm {
                assert!(matches!(check(&auth, &forged), Err(Reason::Signature | Reason::Algorithm)), "{other}");
            }
        }
    }
    // A key that says its algorithm is for no other.
    Arc::make_mut(&mut auth.providers[0].keys)[0].algorithms = vec![JwtAlgorithm::PS256];
    let token = rsa.raw(&json!({"alg": "RS256", "kid": "rsa"}).to_string(), &good().to_string());
    assert_eq!(check(&auth, &token).unwrap_err(), Reason::Algorithm);
}

#[test]
fn a_key_is_selected_by_its_name_and_by_nothing_else() {
    let (a, b) = (Signer::ed("a"), Signer::ed("b"));
    let auth = auth(&[&a, &b]);
    let with =
        |signer: &Signer, header: Value| check(&auth, &signer.raw(&header.to_string(), &good().to_string())).map(drop);
    assert_eq!(with(&b, json!({"alg": "EdDSA", "kid": "b"})), Ok(()));
    assert_eq!(with(&b, json!({"alg": "EdDSA"})), Ok(()), "all are tried");
    assert_eq!(with(&b, json!({"alg": "Ed25519", "kid": "b"})), Ok(()));
    assert_eq!(with(&b, json!({"alg": "EdDSA", "kid": "a"})), Err(Reason::Signature));
    for unknown in ["", "c", "../../dev/null", "a' OR '1'='1", "A"] {
        assert_eq!(with(&b, json!({"alg": "EdDSA", "kid": unknown})), Err(Reason::Key), "{unknown}");
    }
    assert_eq!(with(&b, json!({"alg": "EdDSA", "kid": 7})), Err(Reason::Malformed));
    assert_eq!(with(&b, json!({"alg": "EdDSA", "kid": null})), Err(Reason::Malformed));
    // Keys that the token brings along are not looked at.
    let stranger = Signer::ed("c");
    let x = match &stranger.key().material {
        JwtMaterial::Ed(x) => URL_SAFE_NO_PAD.encode(x),
        _ => unreachable!("it is of Ed25519"),
    };
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
    for brought in [
        json!({"jwk": jwk}),
        json!({"jku": "http://169.254.169.254/"}),
        json!({"x5u": "http://evil.example/"}),
        json!({"x5c": ["AA"]}),
    ] {
        for kid in [None, Some("a"), Some("c")] {
            let mut header = brought.clone();
            header["alg"] = json!("EdDSA");
            if let Some(kid) = kid {
                header["kid"] = json!(kid);
            }
            assert!(with(&stranger, header).is_err(), "{brought} {kid:?}");
        }
    }
    // Keys without a name: few are tried.
    let mut many = self::auth(&[&a]);
    let keys = Arc::make_mut(&mut many.providers[0].keys);
    keys[0].id = None;
    keys.splice(0..0, (0..16).map(|_| JwtKey { id: None, ..Signer::ed("x").key() }));
    assert_eq!(check(&many, &a.token(&good())).unwrap_err(), Reason::Signature);
    Arc::make_mut(&mut many.providers[0].keys).remove(0);
    check(&many, &a.token(&good())).unwrap();
}

#[test]
fn no_algorithm_is_chosen_by_the_token() {
    let rsa = Signer::rsa("rsa");
    let auth = auth(&[&rsa]);
    let claims = URL_SAFE_NO_PAD.encode(good().to_string());
    for name in ["none", "None", "NONE", "nOnE", "", "rs256", "HS256 ", "RS1", "A256KW"] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": name, "kid": "rsa"}).to_string());
        for signature in ["", "AA"] {
            assert_eq!(
                check(&auth, &format!("{header}.{claims}.{signature}")).unwrap_err(),
                Reason::Algorithm,
                "{name}"
            );
        }
    }
    // The public key, which everybody knows, as the secret of an HMAC.
    let JwtMaterial::Rsa { n, .. } = rsa.key().material else { unreachable!("it is of RSA") };
    let der = RSA.public_key().as_ref().to_vec();
    for (name, of) in [("HS256", aws_lc_rs::hmac::HMAC_SHA256), ("HS512", aws_lc_rs::hmac::HMAC_SHA512)] {
        for secret in [&n, &der] {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": name, "kid": "rsa"}).to_string());
            let message = format!("{header}.{claims}");
            let tag = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(of, secret), message.as_bytes());
            let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
            assert_eq!(check(&auth, &token).unwrap_err(), Reason::Algorithm);
        }
    }
    let no_name = rsa.raw(&json!({"kid": "rsa"}).to_string(), &good().to_string());
    assert_eq!(check(&auth, &no_name).unwrap_err(), Reason::Malformed);
}

#[test]
fn what_a_header_demands_must_be_understood() {
    let signer = Signer::ed("a");
    let auth = auth(&[&signer]);
    let with = |more: &str| {
        let header = format!("{{\"alg\":\"EdDSA\",\"kid\":\"a\"{more}}}");
        check(&auth, &signer.raw(&header, &good().to_string())).map(drop)
    };
    assert_eq!(with(""), Ok(()));
    assert_eq!(with(r#","typ":"at+jwt","x":{"y":1}"#), Ok(()));
    for demand in
        [r#","crit":["b64"],"b64":false"#, r#","crit":["exp"]"#, r#","crit":[]"#, r#","b64":false"#, r#","b64":0"#]
    {
        assert_eq!(with(demand), Err(Reason::Header), "{demand}");
    }
    for twice in [r#","alg":"EdDSA""#, r#","kid":"a""#, r#","x":{"y":1,"y":2}"#, r#","\u0061lg":"none""#] {
        assert_eq!(with(twice), Err(Reason::Malformed), "{twice}");
    }
}

#[test]
fn claims_are_judged_with_the_clocks_of_two_machines() {
    let signer = Signer::ed("a");
    let mut auth = auth(&[&signer]);
    auth.providers[0].audiences = vec!["shop".to_owned(), "cart".to_owned()];
    let with = |name: &str, value: Value| {
        let mut claims = good();
        match value {
            Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
            value => claims[name] = value,
        }
        check(&auth, &signer.token(&claims)).map(drop)
    };
    for (name, value, wanted) in [
        ("exp", json!(NOW - 59), Ok(())),
        ("exp", json!(NOW - 59), Ok(())),
        ("exp", json!(NOW as f64 + 0.5), Ok(())),
        ("exp", json!(1e300), Ok(())),
        ("exp", json!(NOW - 60), Err(Reason::Expired)),
        ("exp", json!(-1), Err(Reason::Expired)),
        ("exp", json!(-1e300), Err(Reason::Expired)),
        ("exp", Value::Null, Err(Reason::Expired)),
        ("exp", json!("4000000000"), Err(Reason::Malformed)),
        ("exp", json!([NOW + 9]), Err(Reason::Malformed)),
        ("nbf", json!(NOW + 60), Ok(())),
        ("nbf", json!(NOW + 61), Err(Reason::NotYet)),
        ("nbf", Value::Null, Ok(())),
        ("nbf", json!("0"), Err(Reason::Malformed)),
        ("iat", json!(NOW + 61), Err(Reason::NotYet)),
        ("iat", json!(1e300), Err(Reason::NotYet)),
        ("iat", Value::Null, Ok(())),
        ("iss", json!("https://issuer.example/"), Err(Reason::Issuer)),
        ("iss", json!("HTTPS://issuer.example"), Err(Reason::Issuer)),
        ("iss", json!([ISSUER]), Err(Reason::Issuer)),
        ("iss", Value::Null, Err(Reason::Issuer)),
        ("aud", json!("cart"), Ok(())),
        ("aud", json!(["x", "shop"]), Ok(())),
        ("aud", json!("sho"), Err(Reason::Audience)),
        ("aud", json!([]), Err(Reason::Audience)),
        ("aud", json!(["shop", 7]), Err(Reason::Malformed)),
        ("aud", json!({"shop": 1}), Err(Reason::Malformed)),
        ("aud", Value::Null, Err(Reason::Audience)),
    ] {
        assert_eq!(with(name, value.clone()), wanted, "{name}: {value}");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let signer = Signer::ed("a");
    let auth = auth(&[&signer]);
    let token = signer.token(&good());
    let parts: Vec<&str> = token.split('.').collect();
    let (h, c, s) = (parts[0], parts[1], parts[2]);
    let twice = format!("{{\"iss\":\"{ISSUER}\",\"exp\":{},\"sub\":\"a\",\"sub\":\"b\"}}", NOW + 9);
    let list = signer.raw(&signer.header().to_string(), "[1]");
    let twice = signer.raw(&signer.header().to_string(), &twice);
    let open = signer.raw(&signer.header().to_string(), "{\"iss\":");
    let big = format!("{token}{}", "A".repeat(1 << 20));
    for (text, reason) in [
        ("".to_owned(), Reason::Malformed),
        ("..".to_owned(), Reason::Malformed),
        (format!("{h}.{c}"), Reason::Malformed),
        (format!("{h}.{c}.{s}.{s}"), Reason::Malformed),
        (format!("{h}.{c}.{s}."), Reason::Malformed),
        (format!("{h}=.{c}.{s}"), Reason::Malformed),
        (format!("{h}.{c}+/.{s}"), Reason::Malformed),
        (format!("{h}.{c}."), Reason::Signature),
        (format!("{h}.{c}.{s}=="), Reason::Signature),
        (format!("{h}.{c}.{}", &s[..s.len() - 2]), Reason::Signature),
        (format!(" {token}"), Reason::Malformed),
        (list, Reason::Malformed),
        (twice, Reason::Malformed),
        (open, Reason::Malformed),
        (big, Reason::TooLong),
    ] {
        assert_eq!(check(&auth, &text).map(drop), Err(reason), "{text:.80}");
    }
    // Any changed letter of the claims.
    for i in 0..c.len() {
        let mut bytes = c.as_bytes().to_vec();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        let forged = format!("{h}.{}.{s}", String::from_utf8(bytes).unwrap());
        assert!(check(&auth, &forged).is_err(), "{i}");
    }
}

#[test]
fn of_two_providers_of_one_issuer_one_must_be_satisfied() {
    let (a, b) = (Signer::ed("a"), Signer::ed("b"));
    let mut both = auth(&[&a]);
    both.providers[0].audiences = vec!["other".to_owned()];
    both.providers.extend(auth(&[&b]).providers);
    assert_eq!(check(&both, &b.token(&good())).unwrap().provider, 1);
    assert_eq!(check(&both, &a.token(&good())).unwrap_err(), Reason::Key);
    assert_eq!(
        verify(&both, &[0], &b.token(&good()), SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)).unwrap_err(),
        Reason::Audience
    );
}

#[test]
fn claims_that_cannot_be_told_without_doubt_are_not() {
    let way = |way: &str| way.split('/').map(str::to_owned).collect::<Vec<_>>();
    let claims = json!({"t": "x", "b": true, "n": 1.5, "l": ["a", 2], "o": {"i": {"k": "deep"}}, "comma": ["a,b"], "line": "a\r\nx: y",
        "nested": [["a"]], "null": null, "empty": "", "utf8": "André"});
    let told =
        |name: &str| told_value(&claims, &way(name)).map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap());
    let some = |text: &str| Some(text.to_owned());
    for (name, wanted) in [
        ("t", some("x")),
        ("b", some("true")),
        ("n", some("1.5")),
        ("l", some("a,2")),
        ("o/i/k", some("deep")),
        ("empty", some("")),
        ("utf8", some("André")),
        ("o", None),
        ("o/x", None),
        ("comma", None),
        ("line", None),
        ("nested", None),
        ("null", None),
        ("missing", None),
    ] {
        assert_eq!(told(name), wanted, "{name}");
    }
}
