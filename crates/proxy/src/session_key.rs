//! The secret by which session cookies of all replicas of a gateway are made and believed.

use aws_lc_rs::hmac;
use std::fmt;

/// Shorter secrets could be guessed.
const MIN: usize = 16;
const MAX: usize = 4096;

/// Signs what clients keep for us, and names endpoints so that nobody without the secret can tell or choose which.
#[derive(Clone)]
pub struct SessionKey(hmac::Key);

impl SessionKey {
    /// From a secret of 16 to 4096 bytes, which should be random; space around it, such as a line end, does not count.
    pub fn new(secret: &[u8]) -> Result<Self, String> {
        let secret = secret.trim_ascii();
        match secret.len() {
            MIN..=MAX => Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret))),
            n => Err(format!(
                "a session key has {MIN} to {MAX} bytes, this one has {n}; `openssl rand -hex 32` makes one"
            )),
        }
    }

    /// What an endpoint is called in cookies.
    pub(crate) fn name(&self, cluster: &str, address: std::net::SocketAddr) -> u64 {
        let tag = hmac::sign(&self.0, format!("endpoint {cluster} {address}").as_bytes());
        tag.as_ref().iter().take(8).fold(0, |name, byte| name << 8 | u64::from(*byte))
    }

    /// 128 bits, hexadecimal. `session` is that of one route, so that no other takes the value.
    pub(crate) fn sign(&self, session: &str, value: &str) -> String {
        let tag = hmac::sign(&self.0, format!("session {session} {value}").as_bytes());
        tag.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether [`SessionKey::sign`] made this signature.
    pub(crate) fn verify(&self, session: &str, value: &str, signature: &str) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.sign(session, value).as_bytes(), signature.as_bytes())
            .is_ok()
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_for_one_value_of_one_session() {
        let key = SessionKey::new(b"  0123456789abcdef\n").unwrap();
        let signature = key.sign("sid", "00ff-1-2");
        assert_eq!(signature.len(), 32);
        assert!(key.verify("sid", "00ff-1-2", &signature));
        assert!(!key.verify("sid", "00ff-1-3", &signature));
        assert!(!key.verify("other", "00ff-1-2", &signature));
        assert!(!key.verify("sid", "00ff-1-2", &signature[1..]));
        assert!(!SessionKey::new(b"0123456789abcdeg").unwrap().verify("sid", "00ff-1-2", &signature));
        assert!(SessionKey::new(b"short").is_err() && SessionKey::new(&[b'x'; 5000]).is_err());
    }

    #[test]
    fn names_depend_on_the_key_alone_between_replicas() {
        let (one, same) = (SessionKey::new(&[1; 32]).unwrap(), SessionKey::new(&[1; 32]).unwrap());
        let other = SessionKey::new(&[2; 32]).unwrap();
        let (a, b) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        assert_eq!(one.name("shop/cart:80", a), same.name("shop/cart:80", a));
        assert_ne!(one.name("shop/cart:80", a), one.name("shop/cart:80", b));
        assert_ne!(one.name("shop/cart:80", a), one.name("shop/orders:80", a));
        assert_ne!(one.name("shop/cart:80", a), other.name("shop/cart:80", a));
    }
}
