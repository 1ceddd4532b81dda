//! An intermediate that another CA has made (Vault, cert-manager, `openssl`), from PEM files, which are read again when they
//! change.

use super::{
    authority::{Authority, Der},
    core::FromFiles,
    error::Error,
};
use rcgen::KeyPair;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use x509_parser::pem::Pem;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Where the intermediate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The intermediate first, then what leads to the root.
    pub chain: PathBuf,
    pub key: PathBuf,
    /// Roots that nodes are to trust. Without it, the last certificate of the chain must be the root.
    pub roots: Option<PathBuf>,
}

/// What the files hold.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    chain: Vec<u8>,
    key: Vec<u8>,
    roots: Option<Vec<u8>>,
}

impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        (&self.chain, &self.key, &self.roots) == (&other.chain, &other.key, &other.roots)
    }
}

impl Files {
    pub(super) fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            chain: read(&self.chain)?,
            key: read(&self.key)?,
            roots: self.roots.as_deref().map(read).transpose()?,
        })
    }

    pub(super) fn parse(&self, contents: &Contents) -> Result<FromFiles, Error> {
        let mut chain = certificates(&self.chain, &contents.chain)?;
        let roots = match (&self.roots, &contents.roots) {
            (Some(path), Some(contents)) => certificates(path, contents)?,
            _ => match chain.last() {
                Some(last) if chain.len() > 1 && self_signed(last) => vec![last.clone()],
                _ => {
                    let why = "its last certificate is not a root: append the root, or name a file with the roots";
                    return Err(failed(&self.chain, why));
                }
            },
        };
        // Nodes have the roots already.
        chain.retain(|c| !roots.contains(c));
        let text = std::str::from_utf8(&contents.key).map_err(|_| failed(&self.key, "it is not PEM"))?;
        let key =
            KeyPair::from_pem(text).map_err(|e| failed(&self.key, &format!("no private key that can sign: {e}")))?;
        let authority = Authority::existing(key, chain).map_err(|why| failed(&self.chain, &why))?;
        Ok(FromFiles { authority: Arc::new(authority), roots })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let length = fs::metadata(path).map_err(|e| failed(path, &e.to_string()))?.len();
    if length > MAX_FILE {
        return Err(failed(path, "it is larger than 1 MiB"));
    }
    fs::read(path).map_err(|e| failed(path, &e.to_string()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<Der>, Error> {
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|e| failed(path, &format!("it is not PEM: {e}")))?;
        if block.label == "CERTIFICATE" {
            found.push(block.contents);
        }
    }
    if found.is_empty() {
        return Err(failed(path, "there is no certificate in it"));
    }
    Ok(found)
}

fn self_signed(certificate: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, c)| c.verify_signature(None).is_ok())
}

fn failed(path: &Path, why: &str) -> Error {
    Error::Files { file: path.display().to_string(), why: why.to_owned() }
}
