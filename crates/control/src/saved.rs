//! The last good state on disk: what is served when the sources are broken at start.

use crate::source::Mark;
use selvedge_model::Resource;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Resources by the file they came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    pub files: BTreeMap<PathBuf, Vec<Resource>>,
    /// How new it is, where that is known.
    pub mark: Option<Mark>,
}

/// The name of the file in the state folder.
pub const FILE: &str = "last-good.json";

impl Saved {
    /// Reads what was saved; nothing when there is no such file. A resource that this version cannot read any more is
    /// left out.
    ///
    /// # Errors
    /// The file cannot be read or is not what was written.
    pub fn load(state: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(state.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let value: Value = serde_json::from_slice(&text)?;
        let files = value.get("files").and_then(Value::as_object).ok_or(io::ErrorKind::InvalidData)?;
        let read = |list: &Value| -> Vec<Resource> {
            list.as_array().into_iter().flatten().filter_map(|v| Resource::from_value(v).ok()).collect()
        };
        let mark = value.get("source").and_then(|mark| serde_json::from_value(mark.clone()).ok()).flatten();
        Ok(Some(Self { files: files.iter().map(|(path, list)| (PathBuf::from(path), read(list))).collect(), mark }))
    }

    /// Writes it, readable by the owner only (it holds private keys), so that a crash leaves the old or the new whole.
    ///
    /// # Errors
    /// The folder cannot be made or written: read-only, or the disk is full.
    pub fn store(&self, state: &Path) -> io::Result<()> {
        fs::create_dir_all(state)?;
        let list = |resources: &Vec<Resource>| resources.iter().map(Resource::to_value).collect::<Vec<_>>();
        let files: BTreeMap<_, _> = self.files.iter().map(|(path, r)| (path.to_string_lossy(), list(r))).collect();
        let text = serde_json::to_vec(&json!({ "version": 1, "files": files, "source": self.mark }))?;
        // Two processes write at the same time while one takes over from the other.
        let new = state.join(format!("{FILE}.{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(new, state.join(FILE))
    }
}
