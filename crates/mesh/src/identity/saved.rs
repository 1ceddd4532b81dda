//! SVIDs and the bundle on disk, so that a restart works while the control plane is away.

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use selvedge_identity::{Bundle, KeyPair, Serial, Svid, Trust};
use selvedge_wire::spiffe::SpiffeId;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

const BUNDLE: &str = "bundle.json";

/// A folder of mode 0700 with a file of mode 0600 for each identity, and one beside it for a key that no certificate came for
/// yet.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SavedTrust {
    domain: String,
    sequence: u64,
    roots: Vec<String>,
    revoked_serials: Vec<String>,
    revoked_identities: Vec<(String, u64)>,
    revocation_lists: Vec<String>,
}

impl Folder {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Chain and key are one file: it is never half of one and half of another.
    pub(super) fn save_svid(&self, svid: &Svid) -> io::Result<()> {
        let mut text: String = svid.chain().iter().map(|c| pem("CERTIFICATE", c)).collect();
        let kind = match svid.key() {
            PrivateKeyDer::Pkcs8(_) => "PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "RSA PRIVATE KEY",
        };
        text += &pem(kind, svid.key().secret_der());
        self.write(&file_of(svid.id(), "pem"), text.as_bytes())
    }

    /// `None`: there is none, or it cannot be used, which is logged.
    pub(super) fn load_svid(&self, id: &SpiffeId) -> Option<Svid> {
        let file = file_of(id, "pem");
        let text = self.read(&file)?;
        match Svid::from_pem(&text, &text) {
            Ok(svid) if svid.id() == id => Some(svid),
            Ok(svid) => {
                tracing::warn!(file, wanted = %id, found = %svid.id(), "a saved certificate is of another identity");
                None
            }
            Err(error) => {
                tracing::warn!(file, %error, "a saved certificate cannot be used; a new one is asked for");
                None
            }
        }
    }

    /// Before it is asked for: a join token that was used for this key counts for no other.
    pub(super) fn save_key(&self, id: &SpiffeId, key: &KeyPair) -> io::Result<()> {
        self.write(&file_of(id, "key"), pem("PRIVATE KEY", key.private_key().secret_der()).as_bytes())
    }

    /// `None`: there is none, or it cannot be used, which is logged.
    pub(super) fn load_key(&self, id: &SpiffeId) -> Option<KeyPair> {
        let file = file_of(id, "key");
        let text = self.read(&file)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| error.to_string());
        let key = key.and_then(|key| KeyPair::from_private_key(&key).map_err(|error| error.to_string()));
        key.inspect_err(|error| tracing::warn!(file, error, "a saved key cannot be used; a new one is made")).ok()
    }

    /// A certificate for it is saved.
    pub(super) fn remove_key(&self, id: &SpiffeId) {
        let path = self.0.join(file_of(id, "key"));
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a key that is saved elsewhere cannot be removed");
        }
    }

    pub(super) fn save_trust(&self, trust: &Trust) -> io::Result<()> {
        let saved = SavedTrust {
            domain: trust.domain.clone(),
            sequence: trust.sequence,
            roots: trust.bundle.roots().map(|r| BASE64_STANDARD.encode(r)).collect(),
            revoked_serials: trust.bundle.revoked().map(Serial::to_string).collect(),
            revoked_identities: trust.bundle.revoked_identities().map(|(id, t)| (id.to_string(), t)).collect(),
            revocation_lists: trust.bundle.crls().map(|c| BASE64_STANDARD.encode(c)).collect(),
        };
        self.write(BUNDLE, &serde_json::to_vec_pretty(&saved)?)
    }

    pub(super) fn load_trust(&self) -> Option<Trust> {
        let saved: SavedTrust = serde_json::from_slice(&self.read(BUNDLE)?).ok()?;
        let decode = |texts: &[String]| -> Option<Vec<Vec<u8>>> {
            texts.iter().map(|t| BASE64_STANDARD.decode(t).ok()).collect()
        };
        let serials: Option<Vec<Serial>> = saved.revoked_serials.iter().map(|s| Serial::from_hex(s)).collect();
        let ids: Option<Vec<(SpiffeId, u64)>> =
            saved.revoked_identities.iter().map(|(id, t)| Some((id.parse().ok()?, *t))).collect();
        let roots = decode(&saved.roots)?.into_iter().map(CertificateDer::from);
        let mut bundle = Bundle::new(roots).ok()?.with_revoked(serials?).with_revoked_identities(ids?);
        for list in decode(&saved.revocation_lists)? {
            bundle = bundle.with_crl(&list).ok()?;
        }
        Some(Trust { domain: saved.domain, sequence: saved.sequence, bundle })
    }

    fn read(&self, file: &str) -> Option<Vec<u8>> {
        let path = self.0.join(file);
        let length = fs::metadata(&path).ok()?.len();
        if length > MAX_FILE {
            tracing::warn!(path = %path.display(), "a saved file is too large and is left");
            return None;
        }
        let read = fs::read(&path);
        read.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a saved file cannot be read")).ok()
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, beside) = (self.0.join(file), self.0.join(format!("{file}.new")));
        let _ = fs::remove_file(&beside);
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        new.write_all(bytes)?;
        new.sync_all()?;
        fs::rename(&beside, &path)
    }
}

/// Each ID has its own name: what is no letter or digit is written as its code.
fn file_of(id: &SpiffeId, ending: &str) -> String {
    let text = id.as_str().trim_start_matches("spiffe://");
    let mut name: String = text
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => char::from(b).to_string(),
            b'/' => "_".to_owned(),
            other => format!("%{other:02x}"),
        })
        .collect();
    // File names end at 255 bytes; such IDs are rare, and a file that another one has overwritten is told by its ID.
    name.truncate(200);
    format!("{name}.{ending}")
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
