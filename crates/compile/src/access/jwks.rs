//! Keys of issuers: JWK sets (RFC 7517), of which only public keys for signatures are taken.

use super::json;
use crate::snapshot::{JwtAlgorithm, JwtKey, JwtMaterial};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// Most keys of a set; issuers have few, and each that has no `kid` may be tried.
const MAX_KEYS: usize = 64;
/// Bits that the modulus of an RSA key may have.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Parts of private keys (RFC 7518 section 6).
const PRIVATE: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "oth"];

/// A set that was read, with what was left out of it and why.
#[derive(Debug)]
pub(super) struct KeySet {
    pub(super) keys: Vec<JwtKey>,
    pub(super) skipped: Vec<String>,
}

/// Reads a set.
///
/// # Errors
/// Why it cannot be used, in a sentence: it is no set, a key is wrong or a secret, or no key can be used.
pub(super) fn read(text: &[u8]) -> Result<KeySet, String> {
    let value = json::unique(text).map_err(|error| format!("it is not JSON: {error}"))?;
    let list = value.get("keys").and_then(Value::as_array);
    let list = list.ok_or("it is no JWK set: write {\"keys\": [ … ]}, as the issuer publishes it")?;
    if list.len() > MAX_KEYS {
        return Err(format!("it has {} keys, and at most {MAX_KEYS} are allowed", list.len()));
    }
    let mut set = KeySet { keys: Vec::new(), skipped: Vec::new() };
    for (i, value) in list.iter().enumerate() {
        let id =
            value.get("kid").and_then(Value::as_str).map_or_else(|| format!("#{i}"), |id| format!("`{}`", short(id)));
        let object = value.as_object().ok_or_else(|| format!("key #{i} is no object"))?;
        match key(object).map_err(|why| format!("key {id}: {why}"))? {
            Ok(key) => set.keys.push(key),
            Err(why) => set.skipped.push(format!("key {id} is left out: {why}")),
        }
    }
    if set.keys.is_empty() {
        let why = if set.skipped.is_empty() { "it is empty".to_owned() } else { set.skipped.join("; ") };
        return Err(format!("no key of it can be used: {why}"));
    }
    Ok(set)
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The key, or why it is left out; the outer error makes the whole set unusable.
fn key(jwk: &Map<String, Value>) -> Result<Result<JwtKey, String>, String> {
    let text = |name: &str| match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("`{name}` is no text")),
    };
    let kind = text("kty")?.ok_or("it has no `kty`")?;
    if kind == "oct" {
        return Err(
            "it is a secret (kty oct), and tokens are verified by public keys only: whoever can verify by a secret \
                    can sign as well"
                .to_owned(),
        );
    }
    if let Some(part) = PRIVATE.iter().find(|part| jwk.contains_key(**part)) {
        return Err(format!("it is a private key (it has `{part}`): give the public one, and take this one for lost"));
    }
    let left_out = |why: String| Ok(Err(why));
    if let Some(other) = text("use")?.filter(|it| *it != "sig") {
        return left_out(format!("it is for `{}`, not for signatures", short(other)));
    }
    if let Some(uses) = jwk.get("key_ops") {
        let uses = uses.as_array().ok_or("`key_ops` is no list")?;
        if !uses.iter().any(|it| it == "verify") {
            return left_out("its `key_ops` has no `verify`".to_owned());
        }
    }
    let part = |name: &str| {
        let text = text(name)?.ok_or_else(|| format!("it has no `{name}`"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("`{name}` is not base64url without padding: {error}"))
    };
    let curve = text("crv")?.unwrap_or_default();
    let (mut algorithms, material) = match (kind, curve) {
        ("RSA", _) => (JwtAlgorithm::RSA.to_vec(), rsa(part("n")?, part("e")?)?),
        ("EC", "P-256") => (vec![JwtAlgorithm::ES256], ec(&ECDSA_P256_SHA256_FIXED, 32, &part("x")?, &part("y")?)?),
        ("EC", "P-384") => (vec![JwtAlgorithm::ES384], ec(&ECDSA_P384_SHA384_FIXED, 48, &part("x")?, &part("y")?)?),
        ("OKP", "Ed25519") => {
            let x = part("x")?;
            if x.len() != 32 || ParsedPublicKey::new(&ED25519, &x).is_err() {
                return Err("`x` is not a public key of Ed25519, of 32 bytes".to_owned());
            }
            (vec![JwtAlgorithm::EdDSA], JwtMaterial::Ed(x))
        }
        _ => {
            let kinds = "RSA, EC with P-256 or P-384, and OKP with Ed25519 are known";
            return left_out(format!("its kind is `{} {}`; {kinds}", short(kind), short(curve)));
        }
    };
    if let Some(name) = text("alg")? {
        algorithms.retain(|algorithm| JwtAlgorithm::named(name) == Some(*algorithm));
        if algorithms.is_empty() {
            return left_out(format!("its `alg` is `{}`, which is none for such a key", short(name)));
        }
    }
    Ok(Ok(JwtKey { id: text("kid")?.map(str::to_owned), algorithms, material }))
}

fn rsa(mut n: Vec<u8>, mut e: Vec<u8>) -> Result<JwtMaterial, String> {
    for part in [&mut n, &mut e] {
        let zeros = part.iter().take_while(|byte| **byte == 0).count();
        part.drain(..zeros);
    }
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
        return Err(format!("its modulus has {bits} bits, and from {least} to {most} are allowed"));
    }
    let odd = |part: &[u8]| part.last().is_some_and(|last| last % 2 == 1);
    if !odd(&n) || !odd(&e) || e == [1] || e.len() > 4 {
        return Err("its modulus or exponent is none of an RSA key".to_owned());
    }
    Ok(JwtMaterial::Rsa { n, e })
}

fn ec(curve: &'static dyn VerificationAlgorithm, size: usize, x: &[u8], y: &[u8]) -> Result<JwtMaterial, String> {
    if x.len() != size || y.len() != size {
        return Err(format!("`x` and `y` must have {size} bytes each, with leading zeros"));
    }
    let point = [&[4], x, y].concat();
    if ParsedPublicKey::new(curve, &point).is_err() {
        return Err("`x` and `y` are no point of the curve".to_owned());
    }
    Ok(JwtMaterial::Ec(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
    /// RFC 7515 appendix A.3.
    const EC: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;
    /// RFC 7515 appendix A.2.
    const RSA: &str = r#""kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB""#;

    fn set(keys: &[&str]) -> Result<KeySet, String> {
        let keys: Vec<String> = keys.iter().map(|key| format!("{{{key}}}")).collect();
        read(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
    }

    #[test]
    fn the_key_says_which_algorithms_it_is_for() {
        let with = |key: &str, more: &str| set(&[&format!("{key},{more}")]).unwrap().keys.remove(0).algorithms;
        assert_eq!(with(RSA, r#""use":"sig""#), JwtAlgorithm::RSA);
        assert_eq!(with(RSA, r#""alg":"PS384","key_ops":["verify"]"#), [JwtAlgorithm::PS384]);
        assert_eq!(with(EC, r#""kid":"a""#), [JwtAlgorithm::ES256]);
        assert_eq!(with(ED, r#""alg":"Ed25519""#), [JwtAlgorithm::EdDSA]);
        assert_eq!(with(ED, r#""alg":"EdDSA""#), [JwtAlgorithm::EdDSA]);
    }

    #[test]
    fn what_cannot_verify_is_left_out_and_told() {
        let more = |key: &str, more: &str| format!("{key},{more}");
        let unknown = [
            more(RSA, r#""use":"enc""#),
            more(RSA, r#""key_ops":["sign"]"#),
            more(RSA, r#""alg":"HS256""#),
            more(RSA, r#""alg":"none""#),
            more(EC, r#""alg":"ES384""#),
            r#""kty":"EC","crv":"secp256k1","x":"AA","y":"AA""#.to_owned(),
            r#""kty":"OKP","crv":"X25519","x":"AA""#.to_owned(),
            r#""kty":"AKP","alg":"ML-DSA-44","pub":"AA""#.to_owned(),
        ];
        for key in unknown {
            let read = set(&[&key, ED]).unwrap();
            assert_eq!((read.keys.len(), read.skipped.len()), (1, 1), "{key}");
            let error = set(&[&key]).unwrap_err();
            assert!(error.starts_with("no key of it can be used: key #0 is left out"), "{error}");
        }
    }

    #[test]
    fn a_wrong_key_spoils_its_set() {
        let short = r#""kty":"RSA","n":"ofgWCuLjybRlzo0t","e":"AQAB""#;
        let private = format!(r#"{EC},"d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI""#);
        for (key, says) in [
            (r#""kty":"oct","k":"c2VjcmV0","kid":"shared""#, "key `shared`: it is a secret (kty oct)"),
            (private.as_str(), "it is a private key (it has `d`)"),
            (short, "its modulus has 96 bits"),
            (&RSA.replace("AQAB", "AQ"), "none of an RSA key"),
            (&RSA.replace("AQAB", "Ag"), "none of an RSA key"),
            (&RSA.replace("AQAB", "A+AB"), "`e` is not base64url"),
            (&EC.replace("f83O", "f83P"), "no point of the curve"),
            (&EC.replace(r#""y":"x_"#, r#""y":"x"#), "`y`"),
            (r#""kty":"OKP","crv":"Ed25519","x":"AAAA""#, "of 32 bytes"),
            (r#""kid":"a""#, "it has no `kty`"),
            (r#""kty":7"#, "`kty` is no text"),
            (r#""kty":"EC","kty":"RSA""#, "a member stands twice"),
        ] {
            let error = set(&[ED, key]).unwrap_err();
            assert!(error.contains(says), "{key}: {error}");
        }
        for (text, says) in
            [("", "not JSON"), ("[]", "no JWK set"), ("{\"keys\":[]}", "it is empty"), ("{\"keys\":[1]}", "no object")]
        {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let many = vec![ED; 65];
        assert!(set(&many).unwrap_err().contains("at most 64"));
    }
}
