//! Finding the files of a folder.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Folders below folders, at most: deeper ones are links in a circle or a mistake.
const MAX_DEPTH: usize = 32;

/// Whether a file's name says that it holds resources.
pub(super) fn is_resource_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    matches!(extension.to_ascii_lowercase().as_str(), "yaml" | "yml" | "json") && !is_hidden(path)
}

/// Names that begin with a dot are left out: `.git`, editors' swap files, and the folders behind a mounted ConfigMap
/// (its visible names are links into them).
pub(super) fn is_hidden(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with('.'))
}

/// All resource files below `root` (or `root` itself, when it is a file), sorted by path. What cannot be read comes
/// back beside them.
pub(super) fn find(root: &Path) -> io::Result<(Vec<PathBuf>, Vec<(PathBuf, io::Error)>)> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    if fs::metadata(root)?.is_file() {
        return Ok((vec![root.to_path_buf()], errors));
    }
    let mut seen = BTreeSet::new();
    let mut open = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = open.pop() {
        // Links may lead in circles.
        match fs::canonicalize(&folder) {
            Ok(real) if !seen.insert(real.clone()) => continue,
            Ok(_) => {}
            Err(error) if depth == 0 => return Err(error),
            Err(error) => {
                errors.push((folder, error));
                continue;
            }
        }
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            Err(error) => {
                errors.push((folder, error));
                continue;
            }
        };
        // Sorted, so that of several ways to one folder it is always the same that is taken.
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort_by(|a, b| b.cmp(a));
        for path in paths {
            if is_hidden(&path) {
                continue;
            }
            // Follows links.
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && depth < MAX_DEPTH => open.push((path, depth + 1)),
                Ok(meta) if meta.is_file() && is_resource_file(&path) => found.push(path),
                Ok(_) => {}
                Err(error) if is_resource_file(&path) => errors.push((path, error)),
                Err(_) => {}
            }
        }
    }
    found.sort();
    Ok((found, errors))
}

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum ReadError {
    TooLarge { bytes: u64, limit: usize },
    Io(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, limit } => write!(f, "it has {bytes} bytes; at most {limit} are read"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

/// Reads a file of at most `limit` bytes; larger ones never come into memory.
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
    let file = fs::File::open(path).map_err(ReadError::Io)?;
    let bytes = file.metadata().map_err(ReadError::Io)?.len();
    let mut text = Vec::with_capacity(usize::try_from(bytes).unwrap_or(limit).min(limit));
    // It may grow meanwhile.
    let read = file.take(limit as u64 + 1).read_to_end(&mut text).map_err(ReadError::Io)?;
    if read > limit { Err(ReadError::TooLarge { bytes: bytes.max(read as u64), limit }) } else { Ok(text) }
}
