//! Versions of resources and of sets of them: hashes of their content, so that every control plane that has the same
//! resources gives them the same versions.

use aws_lc_rs::digest;
use bytes::Bytes;
use selvedge_model::{Resource, ResourceKey};
use std::fmt;

/// First 16 bytes of SHA-256.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub [u8; 16]);

impl Version {
    fn of(bytes: &[u8]) -> Self {
        let mut version = [0; 16];
        version.copy_from_slice(&digest::digest(&digest::SHA256, bytes).as_ref()[..16]);
        Self(version)
    }

    /// What came over the wire, if it has the right length.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The canonical JSON of a resource, which says what the resource says and nothing that changes by itself, with its
/// version.
pub fn canonical(resource: &Resource) -> (Bytes, Version) {
    let mut value = resource.to_value();
    if let Some(metadata) = value.get_mut("metadata").and_then(|m| m.as_object_mut()) {
        // Changes with the status alone.
        metadata.shift_remove("resourceVersion");
    }
    let text = value.to_string().into_bytes();
    let version = Version::of(&text);
    (text.into(), version)
}

/// The version of a set: whatever the order in which its resources come, go and change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u128);

impl Sum {
    fn part(key: &ResourceKey, version: Version) -> u128 {
        let mut text = key.to_string().into_bytes();
        text.push(0);
        text.extend(version.0);
        u128::from_be_bytes(Version::of(&text).0)
    }

    pub fn add(&mut self, key: &ResourceKey, version: Version) {
        self.0 = self.0.wrapping_add(Self::part(key, version));
    }

    pub fn remove(&mut self, key: &ResourceKey, version: Version) {
        self.0 = self.0.wrapping_sub(Self::part(key, version));
    }

    pub fn version(self) -> Version {
        Version(self.0.to_be_bytes())
    }
}

/// Reads `Kind namespace/name` or `Kind name`.
pub fn read_key(text: &str) -> Option<ResourceKey> {
    let (kind, name) = text.split_once(' ')?;
    let kind: selvedge_model::Kind = kind.parse().ok()?;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let whole = !name.is_empty() && (kind.namespaced() != namespace.is_empty());
    whole.then(|| ResourceKey::new(kind, namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_model::Kind;

    #[test]
    fn keys_are_read_as_they_are_shown() {
        for key in [ResourceKey::new(Kind::Service, "shop", "cart"), ResourceKey::new(Kind::GatewayClass, "", "edge")] {
            assert_eq!(read_key(&key.to_string()), Some(key));
        }
        for wrong in
            ["", "Service", "Service cart", "Service /cart", "Service shop/", "Thing shop/cart", "GatewayClass a/b"]
        {
            assert_eq!(read_key(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_sum_forgets_the_order() {
        let keys: Vec<_> = (0..4).map(|i| ResourceKey::new(Kind::Service, "shop", format!("s{i}"))).collect();
        let version = |i: u8| Version([i; 16]);
        let (mut one, mut two) = (Sum::default(), Sum::default());
        one.add(&keys[0], version(0));
        one.add(&keys[1], version(1));
        two.add(&keys[1], version(9));
        two.add(&keys[0], version(0));
        assert_ne!(one, two);
        two.remove(&keys[1], version(9));
        two.add(&keys[1], version(1));
        assert_eq!(one, two);
    }
}
