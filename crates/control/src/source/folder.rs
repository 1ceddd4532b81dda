//! Resources from folders of YAML and JSON files. Only files that have changed are read again.

use super::{Changes, files};
use crate::saved::Saved;
use selvedge_model::{
    Code, Diagnostic, Location, Resource, ResourceKey, Resources,
    load::{self, Limits, Locator, Origin},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// All resources of some folders and files, kept in step with the disk.
///
/// What a broken document defined before stays (last-good) until the file is mended or removed; when a whole folder
/// vanishes, all of it stays.
pub struct Folder {
    roots: Vec<PathBuf>,
    limits: Limits,
    files: BTreeMap<PathBuf, File>,
    /// Which file a resource is taken from.
    owners: BTreeMap<ResourceKey, PathBuf>,
    resources: Resources,
    duplicates: Vec<Diagnostic>,
    unreadable: Vec<Diagnostic>,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    resources: BTreeMap<ResourceKey, (Resource, Option<Origin>)>,
    diagnostics: Vec<Diagnostic>,
    /// Resources that stay from before because their documents are broken now.
    kept: BTreeSet<ResourceKey>,
}

/// When it is the same, the file need not be read.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp(u64, u64, i64, i64);

impl Folder {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            limits: Limits::default(),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            resources: Resources::default(),
            duplicates: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Takes over what was saved by an earlier run, to be used where the files are broken or missing. Call it before
    /// the first [`Folder::read`].
    pub fn remember(&mut self, saved: &Saved) {
        for (path, resources) in &saved.files {
            let resources = resources.iter().map(|r| (r.key(), (r.clone(), None))).collect();
            self.files.insert(path.clone(), File { resources, ..File::default() });
        }
        self.merge();
    }

    /// What would be saved now.
    pub fn to_saved(&self) -> Saved {
        let of = |file: &File| file.resources.values().map(|(r, _)| r.clone()).collect();
        Saved { files: self.files.iter().map(|(path, file)| (path.clone(), of(file))).collect() }
    }

    /// Brings everything up to date. Returns whether resources or diagnostics may have changed.
    pub fn read(&mut self, changes: &Changes) -> bool {
        let changed = match changes {
            Changes::Files(paths) => paths.iter().filter(|path| self.ours(path)).cloned().collect(),
            Changes::Everything => self.scan(),
        };
        let mut any = !self.unreadable.is_empty();
        let mut touched = Vec::new();
        for path in changed {
            if let Some(keys) = self.read_file(&path) {
                touched.push((path, keys));
                any = true;
            }
        }
        self.apply(&touched);
        any
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// What is wrong with files, by path.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let files = self.files.values().flat_map(|f| f.diagnostics.iter());
        self.unreadable.iter().chain(files).chain(&self.duplicates).cloned().collect()
    }

    /// Whether some resource is served that the files no longer (readably) say.
    pub fn is_last_good(&self) -> bool {
        !self.unreadable.is_empty() || self.files.values().any(|f| !f.kept.is_empty())
    }

    /// Gives diagnostics about resources the place in their file.
    pub fn locate(&self, diagnostics: &mut [Diagnostic]) {
        let mut locators: BTreeMap<&Path, Option<Locator>> = BTreeMap::new();
        for diagnostic in diagnostics.iter_mut().filter(|d| d.location.is_none()) {
            let Some(key) = &diagnostic.resource else { continue };
            let Some(path) = self.owners.get(key) else { continue };
            let origin = self.files.get(path).and_then(|f| f.resources.get(key)?.1.as_ref());
            let Some(origin) = origin else { continue };
            let locator = locators.entry(path).or_insert_with(|| {
                fs::read(path).ok().map(|text| Locator::new(&path.to_string_lossy(), &text, &self.limits))
            });
            let found = locator.as_ref().and_then(|l| l.locate(origin, &diagnostic.path));
            diagnostic.location = found.or_else(|| Some(origin.location.clone()));
        }
    }

    fn ours(&self, path: &Path) -> bool {
        let hidden_below = |root: &Path| {
            let below = path.strip_prefix(root).unwrap_or(path);
            below.components().any(|c| c.as_os_str().to_string_lossy().starts_with('.'))
        };
        self.roots.iter().any(|root| path == root || (path.starts_with(root) && !root.is_file() && !hidden_below(root)))
    }

    /// Lists all files; returns those that are new, changed or gone.
    fn scan(&mut self) -> Vec<PathBuf> {
        self.unreadable.clear();
        let mut present = BTreeSet::new();
        for root in self.roots.clone() {
            match files::find(&root) {
                Ok((found, errors)) => {
                    present.extend(found);
                    for (path, error) in errors {
                        // What the file defined stays, as it would when it is broken.
                        self.cannot_read(&path, &error);
                        present.extend(self.files.keys().filter(|f| f.starts_with(&path)).cloned());
                    }
                }
                Err(error) => {
                    self.cannot_read(&root, &error);
                    present.extend(self.files.keys().filter(|f| f.starts_with(&root)).cloned());
                }
            }
        }
        let gone = self.files.keys().filter(|path| !present.contains(*path)).cloned();
        let mut all: Vec<PathBuf> = gone.collect();
        all.extend(present);
        all
    }

    fn cannot_read(&mut self, path: &Path, error: &io::Error) {
        let location = Location { file: path.to_string_lossy().into(), line: 1, column: 1 };
        let diagnostic = Diagnostic::file_error(Code::UnreadableFile, location, format!("cannot be read: {error}"));
        self.unreadable.push(diagnostic.help("check that it exists and may be read; until then what it defined before stays in use"));
    }

    /// Reads one file again if it has changed. Returns the keys it had before.
    fn read_file(&mut self, path: &Path) -> Option<BTreeSet<ResourceKey>> {
        let before = self.files.get(path);
        let old_keys = || before.map(|f| f.resources.keys().cloned().collect()).unwrap_or_default();
        let stamp = match fs::metadata(path) {
            Ok(meta) => Stamp(meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
            Err(_) => {
                // Gone; whether its folder is readable at all was looked at by the scan.
                let root_there = self.roots.iter().filter(|r| path.starts_with(r)).all(|r| r.exists());
                if root_there && path.symlink_metadata().is_err() && before.is_some() {
                    let keys = old_keys();
                    self.files.remove(path);
                    return Some(keys);
                }
                return None;
            }
        };
        if before.is_some_and(|f| f.stamp == Some(stamp)) {
            return None;
        }
        let keys = old_keys();
        let previous = self.files.remove(path).unwrap_or_default();
        self.files.insert(path.to_path_buf(), parse(path, stamp, previous, &self.limits));
        Some(keys)
    }

    /// Takes the new content of files into the whole.
    fn apply(&mut self, touched: &[(PathBuf, BTreeSet<ResourceKey>)]) {
        if touched.is_empty() {
            return;
        }
        let clashes = |folder: &Self, path: &PathBuf| {
            let file = folder.files.get(path);
            file.is_some_and(|f| f.resources.keys().any(|k| folder.owners.get(k).is_some_and(|owner| owner != path)))
        };
        // Who wins among several of one name depends on all files, which is rare enough to start over.
        if !self.duplicates.is_empty() || touched.len() > 64 || touched.iter().any(|(path, _)| clashes(self, path)) {
            return self.merge();
        }
        for (path, before) in touched {
            let now = self.files.get(path).map(|f| &f.resources);
            for key in before.iter().filter(|k| now.is_none_or(|n| !n.contains_key(*k))) {
                self.resources.remove(key);
                self.owners.remove(key);
            }
            for (key, (resource, _)) in now.into_iter().flatten() {
                self.resources.upsert(resource.clone());
                self.owners.insert(key.clone(), path.clone());
            }
        }
    }

    fn merge(&mut self) {
        let mut resources = Resources::default();
        let mut owners: BTreeMap<ResourceKey, PathBuf> = BTreeMap::new();
        self.duplicates.clear();
        for (path, file) in &self.files {
            for (key, (resource, origin)) in &file.resources {
                if let Some(first) = owners.get(key) {
                    let place = self.files.get(first).and_then(|f| f.resources.get(key)?.1.as_ref());
                    let place = place.map_or_else(|| first.display().to_string(), |o| o.location.to_string());
                    let message = format!("is already defined at {place}, which is used");
                    let mut diagnostic = Diagnostic::error(Code::DuplicateResource, key.clone(), Default::default(), message);
                    diagnostic.location = origin.as_ref().map(|o| o.location.clone());
                    self.duplicates.push(diagnostic.help("rename one of the two, or remove it"));
                    continue;
                }
                // Objects that have not changed keep their identity, which is what the compiler caches by.
                resources.upsert(self.resources.get(key).filter(|old| old == resource).unwrap_or_else(|| resource.clone()));
                owners.insert(key.clone(), path.clone());
            }
        }
        (self.resources, self.owners) = (resources, owners);
    }
}

/// Reads a file. Resources that were there before and cannot be read now are kept.
fn parse(path: &Path, stamp: Stamp, previous: File, limits: &Limits) -> File {
    let name = path.to_string_lossy();
    // Larger files are refused by their size, before they are in memory.
    let too_large = stamp.1 > limits.file_bytes as u64;
    let text = if too_large { Ok(vec![0; limits.file_bytes + 1]) } else { fs::read(path) };
    let parsed = match text {
        Ok(text) => load::parse(&name, &text, limits),
        Err(error) => {
            let location = Location { file: name.as_ref().into(), line: 1, column: 1 };
            let diagnostic = Diagnostic::file_error(Code::UnreadableFile, location, format!("cannot be read: {error}"));
            load::Parsed { loaded: Vec::new(), diagnostics: vec![diagnostic] }
        }
    };
    let mut file = File { stamp: Some(stamp), diagnostics: parsed.diagnostics, ..File::default() };
    let mut anonymous = file.diagnostics.iter().any(|d| d.is_error() && d.resource.is_none());
    for loaded in parsed.loaded {
        let (Some(key), origin) = (loaded.key, loaded.origin) else {
            anonymous = true;
            continue;
        };
        match loaded.resource {
            Some(resource) => match file.resources.entry(key.clone()) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert((resource, Some(origin)));
                }
                std::collections::btree_map::Entry::Occupied(entry) => {
                    let first = entry.get().1.as_ref().map_or_else(String::new, |o| o.location.to_string());
                    let message = format!("is already defined at {first}, which is used");
                    let diagnostic = Diagnostic::error(Code::DuplicateResource, key, Default::default(), message);
                    file.diagnostics.push(diagnostic.at(origin.location).help("rename one of the two, or remove it"));
                }
            },
            None => {
                if let Some((old, _)) = previous.resources.get(&key) {
                    file.kept.insert(key.clone());
                    file.resources.entry(key).or_insert((old.clone(), Some(origin)));
                }
            }
        }
    }
    // A document so broken that it has no name may be any of those that are missing.
    if anonymous {
        for (key, (old, origin)) in previous.resources {
            if let std::collections::btree_map::Entry::Vacant(entry) = file.resources.entry(key.clone()) {
                entry.insert((old, origin));
                file.kept.insert(key);
            }
        }
    }
    file
}
