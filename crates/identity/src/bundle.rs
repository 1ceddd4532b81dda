//! Whom we trust: the roots of each trust domain, and what was revoked in it.

use crate::{
    Error, Serial,
    leaf::{self, When},
};
use rustls_pki_types::{CertificateDer, TrustAnchor, pem::PemObject};
use selvedge_wire::spiffe::{SpiffeId, is_trust_domain};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use webpki::{CertRevocationList, OwnedCertRevocationList};

/// The roots of one trust domain: several while one takes the place of another.
#[derive(Clone)]
pub struct Bundle {
    pub(crate) roots: Arc<[Root]>,
    revoked: Arc<BTreeSet<Serial>>,
    revoked_ids: Arc<BTreeMap<SpiffeId, u64>>,
    pub(crate) crls: Vec<Arc<Crl>>,
}

pub(crate) struct Root {
    der: CertificateDer<'static>,
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) not_before: When,
    pub(crate) not_after: When,
}

pub(crate) struct Crl {
    der: Vec<u8>,
    pub(crate) list: CertRevocationList<'static>,
}

impl Bundle {
    /// # Errors
    /// When there is no root, or one cannot be read: a bundle is taken whole or not at all.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, Error> {
        let mut taken = Vec::new();
        for der in roots {
            let (not_before, not_after) = leaf::validity(&der).map_err(|e| Error::Root(e.to_string()))?;
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|e| Error::Root(e.to_string()))?.to_owned();
            taken.push(Root { der, anchor, not_before, not_after });
        }
        if taken.is_empty() {
            return Err(Error::NoRoots);
        }
        Ok(Self { roots: taken.into(), revoked: Arc::default(), revoked_ids: Arc::default(), crls: Vec::new() })
    }

    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let roots = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::Pem(e.to_string()))?;
        Self::new(roots)
    }

    /// Instead of the serial numbers of before. They count for every leaf of the trust domain, whichever root or
    /// intermediate has signed it.
    pub fn with_revoked(mut self, serials: impl IntoIterator<Item = Serial>) -> Self {
        self.revoked = Arc::new(serials.into_iter().collect());
        self
    }

    /// Identities whose certificates are revoked if they begin then or before (seconds since 1970). Instead of those of
    /// before.
    pub fn with_revoked_identities(mut self, ids: impl IntoIterator<Item = (SpiffeId, u64)>) -> Self {
        self.revoked_ids = Arc::new(ids.into_iter().collect());
        self
    }

    /// Adds a CRL (RFC 5280, DER). It counts for leaves of the issuer that has signed it.
    pub fn with_crl(mut self, der: &[u8]) -> Result<Self, Error> {
        let list = OwnedCertRevocationList::from_der(der).map_err(|e| Error::Crl(e.to_string()))?.into();
        self.crls.push(Arc::new(Crl { der: der.to_vec(), list }));
        Ok(self)
    }

    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    pub fn revoked(&self) -> impl Iterator<Item = &Serial> {
        self.revoked.iter()
    }

    /// As given to [`Self::with_revoked_identities`].
    pub fn revoked_identities(&self) -> impl Iterator<Item = (&SpiffeId, u64)> {
        self.revoked_ids.iter().map(|(id, until)| (id, *until))
    }

    /// The lists that were added, in DER.
    pub fn crls(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().map(|crl| crl.der.as_slice())
    }

    /// Until when the certificates of an identity may not begin.
    pub(crate) fn revoked_until(&self, id: &SpiffeId) -> Option<When> {
        self.revoked_ids.get(id).copied().map(When)
    }

    pub(crate) fn has_revoked(&self, serial: &Serial) -> bool {
        self.revoked.contains(serial)
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots().eq(other.roots())
            && self.revoked == other.revoked
            && self.revoked_ids == other.revoked_ids
            && self.crls.iter().map(|crl| &crl.der).eq(other.crls.iter().map(|crl| &crl.der))
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revoked = self.revoked.len() + self.revoked_ids.len();
        write!(f, "Bundle({} roots, {revoked} revoked, {} CRLs)", self.roots.len(), self.crls.len())
    }
}

/// Bundles by the name of their trust domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bundles(BTreeMap<String, Bundle>);

impl Bundles {
    /// Those of one trust domain only.
    pub fn of(domain: &str, bundle: Bundle) -> Result<Self, Error> {
        let mut bundles = Self::default();
        bundles.insert(domain, bundle)?;
        Ok(bundles)
    }

    /// In the place of what was there for this domain.
    pub fn insert(&mut self, domain: &str, bundle: Bundle) -> Result<(), Error> {
        if !is_trust_domain(domain) {
            return Err(Error::TrustDomain(domain.to_owned()));
        }
        self.0.insert(domain.to_owned(), bundle);
        Ok(())
    }

    pub fn get(&self, domain: &str) -> Option<&Bundle> {
        self.0.get(domain)
    }

    /// Whose roots decide about this identity.
    pub fn of_id(&self, id: &SpiffeId) -> Option<&Bundle> {
        self.get(id.trust_domain())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bundle)> {
        self.0.iter().map(|(domain, bundle)| (domain.as_str(), bundle))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
