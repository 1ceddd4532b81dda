//! Resources from folders of YAML and JSON files. Only documents that have changed are read again.

use super::{Changes, files};
use crate::saved::Saved;
use selvedge_model::{
    Code, Collected, Diagnostic, FieldPath, Limits, Location, Origins, Parsed, Reader, Resource, ResourceKey,
    Resources, fill_locations,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// All resources of some folders and files, kept in step with the disk.
///
/// What a broken document defined before stays (last-good) until the document is mended or removed; when a document is
/// so broken that it has no name, everything stays that its file defined before; when a whole folder vanishes, or holds
/// nothing any more, all of it stays. A file that is deleted takes its resources along, unless it was the last.
pub struct Folder {
    roots: Vec<PathBuf>,
    limits: Limits,
    reader: Reader,
    files: BTreeMap<PathBuf, File>,
    /// Which file a resource is taken from.
    owners: BTreeMap<ResourceKey, PathBuf>,
    resources: Resources,
    /// Some resource is in several files.
    contested: bool,
    duplicates: Vec<Diagnostic>,
    unreadable: Vec<Diagnostic>,
    /// What was taken out in this round, until it is clear that something is left.
    lost: BTreeMap<PathBuf, File>,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    /// What it holds, with what is kept from before.
    content: Collected,
    /// Resources that stay from before because their documents are broken now.
    kept: BTreeSet<ResourceKey>,
    /// It is gone or empty, and stays as it was because nothing else is left of its root.
    emptied: bool,
    /// What was handed over instead of being read from disk.
    text: Option<Arc<[u8]>>,
}

/// Inode, length and time of change: when they are the same, a scan need not read the file.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp(u64, u64, i64, i64);

/// Changed files in one go after which everything is put together anew, which is cheaper then.
const MANY: usize = 64;

impl Folder {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            limits: Limits::default(),
            reader: Reader::default(),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            resources: Resources::default(),
            contested: false,
            duplicates: Vec::new(),
            unreadable: Vec::new(),
            lost: BTreeMap::new(),
        }
    }

    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Takes over what was saved by an earlier run, to be used where the files are broken or missing; files that the
    /// roots do not cover are left out. Call it before the first [`Folder::read`].
    pub fn remember(&mut self, saved: &Saved) {
        for (path, resources) in &saved.files {
            if !self.ours(path) {
                continue;
            }
            let content = Collected { resources: resources.iter().cloned().collect(), ..Collected::default() };
            self.files.insert(path.clone(), File { content, ..File::default() });
        }
        self.merge();
    }

    /// What would be saved now.
    pub fn to_saved(&self) -> Saved {
        Saved {
            files: self.files.iter().map(|(path, f)| (path.clone(), f.content.resources.iter().collect())).collect(),
            mark: None,
        }
    }

    /// Takes in a text that is no file, such as standard input. `name` is how diagnostics call it.
    pub fn insert(&mut self, name: &str, text: Vec<u8>) {
        let path = PathBuf::from(name);
        let parsed = self.reader.parse(name, &text, &self.limits);
        let mut file = File::new(None, parsed, &Collected::default());
        file.text = Some(text.into());
        self.files.insert(path, file);
        self.merge();
    }

    /// Brings everything up to date. Returns whether resources or diagnostics may have changed.
    pub fn read(&mut self, changes: &Changes) -> bool {
        let unreadable = self.unreadable.clone();
        // Whoever names a file knows that it was written, even where its stamp is too coarse to show it.
        let forced = matches!(changes, Changes::Files(_));
        let (changed, mut touched) = match changes {
            Changes::Files(paths) => {
                (paths.iter().filter(|p| self.ours(p)).flat_map(|p| self.at_or_below(p)).collect(), Vec::new())
            }
            Changes::Everything => self.scan(),
        };
        for path in changed {
            if let Some(keys) = self.read_file(&path, forced) {
                touched.push((path, keys));
            }
        }
        touched.extend(self.keep_emptied());
        self.apply(&touched);
        !touched.is_empty() || unreadable != self.unreadable
    }

    /// Takes back what this round has taken out, where nothing is left of a root; and lets go of it once there is
    /// something again. Returns the files let go of, with the keys they had.
    fn keep_emptied(&mut self) -> Vec<(PathBuf, BTreeSet<ResourceKey>)> {
        let mut touched = Vec::new();
        for root in self.roots.clone() {
            let lives = |file: &File| !file.emptied && !file.content.resources.is_empty();
            if self.files.iter().any(|(path, file)| path.starts_with(&root) && lives(file)) {
                let stale = self.files.iter().filter(|(path, file)| path.starts_with(&root) && file.emptied);
                let stale: Vec<PathBuf> = stale.map(|(path, _)| path.clone()).collect();
                touched.extend(stale.into_iter().filter_map(|path| self.forget(&path).map(|keys| (path, keys))));
                continue;
            }
            for (path, lost) in self.lost.extract_if(.., |path, _| path.starts_with(&root)) {
                let stamp = self.files.remove(&path).and_then(|now| now.stamp);
                let content = Collected { diagnostics: Vec::new(), ..lost.content };
                let kept = content.resources.iter().map(|resource| resource.key()).collect();
                self.files.insert(path, File { stamp, content, kept, emptied: true, text: None });
            }
        }
        self.lost.clear();
        touched
    }

    /// One for each root of which nothing is left.
    fn emptied(&self) -> impl Iterator<Item = Diagnostic> {
        self.roots.iter().filter_map(|root| {
            let kept = self.files.iter().filter(|(path, file)| file.emptied && path.starts_with(root));
            let resources: usize = kept.map(|(_, file)| file.content.resources.len()).sum();
            let counted = if resources == 1 { "1 resource".to_owned() } else { format!("{resources} resources") };
            let message = format!("it held {counted} and holds none now: what it said before stays in effect");
            (resources > 0).then(|| {
                Diagnostic::file_error(Code::Emptied, top_of(root), message).help(
                    "put the files back; to have nothing served, end the process, or leave one resource that serves nothing, such as a Namespace",
                )
            })
        })
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Whether something was read there, or below, that is gone now or empty.
    pub(super) fn misses(&self, path: &Path) -> bool {
        let gone = |path: &Path| path.metadata().map_or(true, |meta| meta.is_file() && meta.len() == 0);
        gone(path) && self.at_or_below(path).iter().any(|file| self.files.contains_key(file))
    }

    /// Files that were read, or are remembered.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Resources that are there but broken, and not served, for nothing is known of them from before.
    pub fn broken(&self) -> impl Iterator<Item = &ResourceKey> {
        self.files.values().flat_map(|f| &f.content.broken).filter(|key| !self.owners.contains_key(*key))
    }

    /// What is wrong with files, by path.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let files = self.files.values().flat_map(|f| f.content.diagnostics.iter());
        self.unreadable.iter().chain(files).chain(&self.duplicates).cloned().chain(self.emptied()).collect()
    }

    /// Whether some resource is served that the files no longer (readably) say.
    pub fn is_last_good(&self) -> bool {
        !self.unreadable.is_empty() || self.files.values().any(|f| !f.kept.is_empty())
    }

    /// Gives diagnostics about resources the place in their file.
    pub fn locate(&self, diagnostics: &mut [Diagnostic]) {
        let mut origins = Origins::new();
        for key in diagnostics.iter().filter(|d| d.location.is_none()).filter_map(|d| d.resource.as_ref()) {
            let file = self.owners.get(key).and_then(|path| self.files.get(path));
            if let Some(origin) = file.and_then(|file| file.content.origins.get(key)) {
                origins.insert(key.clone(), origin.clone());
            }
        }
        fill_locations(diagnostics, &origins, &self.limits, |name| self.text(Path::new(name)));
        // What is kept from before has no line any more, but a file.
        for diagnostic in diagnostics.iter_mut().filter(|d| d.location.is_none()) {
            let path = diagnostic.resource.as_ref().and_then(|key| self.owners.get(key));
            diagnostic.location = path.map(|path| top_of(path));
        }
    }

    /// The text of a file, if it can be read and is not over the limit.
    pub fn text(&self, path: &Path) -> Option<Vec<u8>> {
        match self.files.get(path).and_then(|file| file.text.as_ref()) {
            Some(text) => Some(text.to_vec()),
            None => files::read(path, self.limits.file_bytes).ok(),
        }
    }

    /// The file of that name, or the known files of the folder of that name.
    fn at_or_below(&self, path: &Path) -> Vec<PathBuf> {
        if files::is_resource_file(path) {
            return vec![path.to_owned()];
        }
        let from = self.files.range(path.to_owned()..).map(|(file, _)| file);
        from.take_while(|file| file.starts_with(path)).cloned().collect()
    }

    fn ours(&self, path: &Path) -> bool {
        let hidden_below = |root: &Path| {
            let below = path.strip_prefix(root).unwrap_or(path);
            below.components().any(|c| c.as_os_str().to_string_lossy().starts_with('.'))
        };
        self.roots.iter().any(|root| path == root || (path.starts_with(root) && !root.is_file() && !hidden_below(root)))
    }

    /// Lists all files that are there. Those that are gone are removed, and come back with the keys they had.
    fn scan(&mut self) -> (Vec<PathBuf>, Vec<(PathBuf, BTreeSet<ResourceKey>)>) {
        self.unreadable.clear();
        let mut present = BTreeSet::new();
        let mut doubtful = BTreeSet::new();
        for root in self.roots.clone() {
            let errors = match files::find(&root) {
                Ok((found, errors)) => {
                    present.extend(found);
                    errors
                }
                Err(error) => vec![(root, error)],
            };
            for (path, error) in errors {
                // What it defined stays, as it would when it is broken.
                doubtful.extend(self.files.keys().filter(|f| f.starts_with(&path)).cloned());
                self.cannot_read(&path, &error);
            }
        }
        let stays = |path: &PathBuf, file: &File| {
            file.text.is_some() || file.emptied || present.contains(path) || doubtful.contains(path)
        };
        let gone: Vec<PathBuf> =
            self.files.iter().filter(|(path, file)| !stays(path, file)).map(|(p, _)| p.clone()).collect();
        let gone = gone.into_iter().filter_map(|path| self.forget(&path).map(|keys| (path, keys))).collect();
        (present.into_iter().collect(), gone)
    }

    fn cannot_read(&mut self, path: &Path, error: &io::Error) {
        let diagnostic = Diagnostic::file_error(Code::UnreadableFile, top_of(path), format!("cannot be read: {error}"));
        self.unreadable.push(
            diagnostic.help("check that it exists and may be read; until then what it defined before stays in use"),
        );
    }

    fn forget(&mut self, path: &Path) -> Option<BTreeSet<ResourceKey>> {
        let file = self.files.remove(path)?;
        let name = path.to_string_lossy();
        self.reader.retain(|other| other != name);
        let keys = file.keys();
        self.lose(path, file);
        Some(keys)
    }

    /// Remembers what a file said that says nothing more, until the end of this round.
    fn lose(&mut self, path: &Path, file: File) {
        if !file.emptied && file.text.is_none() && !file.content.resources.is_empty() {
            self.lost.insert(path.to_owned(), file);
        }
    }

    /// Reads one file again if it has changed. Returns the keys it had before.
    fn read_file(&mut self, path: &Path, forced: bool) -> Option<BTreeSet<ResourceKey>> {
        let stamp = match fs::metadata(path) {
            Ok(meta) => Stamp(meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
            Err(_) => {
                // Gone, unless it cannot be seen because its folder is gone too.
                let root_there = self.roots.iter().filter(|r| path.starts_with(r)).all(|r| r.exists());
                let emptied = self.files.get(path).is_some_and(|file| file.emptied);
                let gone = root_there && !emptied && path.symlink_metadata().is_err();
                return gone.then(|| self.forget(path)).flatten();
            }
        };
        if !forced && self.files.get(path).is_some_and(|f| f.stamp == Some(stamp)) {
            return None;
        }
        let previous = self.files.remove(path).unwrap_or_default();
        let name = path.to_string_lossy();
        let parsed = match files::read(path, self.limits.file_bytes) {
            Ok(text) => self.reader.parse(&name, &text, &self.limits),
            Err(error) => Parsed { loaded: Vec::new(), diagnostics: vec![unread(path, &error)] },
        };
        let file = File::new(Some(stamp), parsed, &previous.content);
        let (keys, empty) = (previous.keys(), file.content.resources.is_empty());
        self.files.insert(path.to_path_buf(), file);
        if empty {
            self.lose(path, File { emptied: false, ..previous });
        }
        Some(keys)
    }

    /// Takes the new content of files into the whole.
    fn apply(&mut self, touched: &[(PathBuf, BTreeSet<ResourceKey>)]) {
        // Who wins among several of one name depends on all files, which is rare enough to start over.
        let mut new = BTreeSet::new();
        let mut clashes = |(path, _): &(PathBuf, BTreeSet<ResourceKey>)| {
            let keys = self.files.get(path).map(File::keys).unwrap_or_default();
            keys.into_iter().any(|key| self.owners.get(&key).is_some_and(|owner| owner != path) || !new.insert(key))
        };
        if self.contested || touched.len() > MANY || touched.iter().any(&mut clashes) {
            return self.merge();
        }
        for (path, before) in touched {
            let now = self.files.get(path).map(|f| &f.content.resources);
            for key in before.iter().filter(|key| now.is_none_or(|now| now.get(key).is_none())) {
                self.resources.remove(key);
                self.owners.remove(key);
            }
            for resource in now.into_iter().flat_map(Resources::iter) {
                self.owners.insert(resource.key(), path.clone());
                self.resources.upsert(resource);
            }
        }
    }

    /// Puts all files together, in the order of their paths: the first of several of one name wins. What is only kept
    /// from before yields to what is written elsewhere, for it may have been moved.
    fn merge(&mut self) {
        let mut resources = Resources::default();
        let mut owners: BTreeMap<ResourceKey, PathBuf> = BTreeMap::new();
        self.duplicates.clear();
        self.contested = false;
        for kept in [false, true] {
            for (path, file) in &self.files {
                for resource in file.content.resources.iter() {
                    let key = resource.key();
                    if file.kept.contains(&key) != kept {
                        continue;
                    }
                    self.contested |= owners.contains_key(&key);
                    match owners.get(&key) {
                        Some(first) if !kept => {
                            let (first, second) = (self.place(first, &key), self.place(path, &key));
                            self.duplicates.push(duplicate(key, &first, second));
                        }
                        Some(_) => {}
                        None => {
                            // Objects that have not changed keep their identity, which is what the compiler caches by.
                            resources
                                .upsert(self.resources.get(&key).filter(|old| *old == resource).unwrap_or(resource));
                            owners.insert(key, path.clone());
                        }
                    }
                }
            }
        }
        (self.resources, self.owners) = (resources, owners);
    }

    fn place(&self, path: &Path, key: &ResourceKey) -> Location {
        let origin = self.files.get(path).and_then(|f| f.content.origins.get(key));
        origin.map_or_else(|| top_of(path), |o| o.location.clone())
    }
}

impl File {
    /// Resources that were there before and cannot be read now are kept.
    fn new(stamp: Option<Stamp>, parsed: Parsed, previous: &Collected) -> Self {
        // A document so broken that it has no name may be any of those that are missing.
        let nameless = parsed.loaded.iter().any(|l| l.key.is_none())
            || parsed.diagnostics.iter().any(|d| d.is_error() && d.resource.is_none());
        let mut content = Collected::from_files([parsed]);
        let mut kept = BTreeSet::new();
        let missing = |old: &Resource| {
            let key = old.key();
            content.broken.contains(&key) || (nameless && !content.origins.contains_key(&key))
        };
        let keep: Vec<Resource> = previous.resources.iter().filter(missing).collect();
        for resource in keep {
            kept.insert(resource.key());
            content.resources.upsert(resource);
        }
        Self { stamp, content, kept, ..Self::default() }
    }

    fn keys(&self) -> BTreeSet<ResourceKey> {
        self.content.resources.iter().map(|r| r.key()).collect()
    }
}

fn duplicate(key: ResourceKey, first: &Location, second: Location) -> Diagnostic {
    let message = format!("{key} is given twice: here and at {first}");
    let diagnostic = Diagnostic::error(Code::DuplicateResource, key, FieldPath::root(), message);
    diagnostic.at(second).help("the first is used; rename or remove one of them")
}

fn unread(path: &Path, error: &files::ReadError) -> Diagnostic {
    match error {
        files::ReadError::TooLarge { bytes, limit } => {
            let message = format!("the file has {bytes} bytes; at most {limit} are read");
            Diagnostic::file_error(Code::FileTooLarge, top_of(path), message).help("split the file into several")
        }
        files::ReadError::Io(error) => {
            Diagnostic::file_error(Code::UnreadableFile, top_of(path), format!("cannot be read: {error}"))
        }
    }
}

fn top_of(path: &Path) -> Location {
    Location { file: path.to_string_lossy().into(), line: 1, column: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Disk {
        dir: tempfile::TempDir,
    }

    impl Disk {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn root(&self) -> PathBuf {
            self.dir.path().join("conf")
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.root().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // A new file each time, so that its inode or time of change differs.
            let new = self.dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
            path
        }

        fn folder(&self) -> Folder {
            let mut folder = Folder::new(vec![self.root()]);
            folder.read(&Changes::Everything);
            folder
        }
    }

    fn map(name: &str, value: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: \"{value}\"}}\n")
    }

    /// `name=value` of every ConfigMap, sorted.
    fn maps(folder: &Folder) -> String {
        let one =
            |m: &Arc<selvedge_model::ConfigMap>| format!("{}={}", m.metadata.name, m.data.get("k").map_or("", |v| v));
        folder.resources().config_maps().iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn codes(folder: &Folder) -> Vec<Code> {
        folder.diagnostics().iter().map(|d| d.code).collect()
    }

    #[test]
    fn a_folder_that_is_renamed_takes_its_files_along() {
        let disk = Disk::new();
        fs::create_dir_all(disk.root().join("sub")).unwrap();
        disk.write("sub/a.yaml", &map("a", "1"));
        disk.write("sub.yaml", &map("b", "1"));
        let mut folder = disk.folder();
        assert_eq!(maps(&folder), "a=1 b=1");
        fs::rename(disk.root().join("sub"), disk.root().join(".away")).unwrap();
        assert!(folder.read(&Changes::Files([disk.root().join("sub")].into())));
        assert_eq!(maps(&folder), "b=1");
    }

    #[test]
    fn a_broken_document_keeps_its_resource() {
        let disk = Disk::new();
        disk.write("a.yaml", &format!("{}---\n{}", map("a", "1"), map("b", "1")));
        let mut folder = disk.folder();
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=1 b=1", false));
        disk.write("a.yaml", &format!("{}---\n{}extra: 1\n", map("a", "2"), map("b", "2")));
        assert!(folder.read(&Changes::Everything));
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=2 b=1", true));
        assert_eq!(codes(&folder), [Code::UnknownField]);
        assert_eq!(folder.broken().count(), 0, "it is served as it was");
        // Removing the broken document removes the resource.
        disk.write("a.yaml", &map("a", "2"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=2", false));
        assert!(!folder.read(&Changes::Everything), "nothing has changed");
    }

    #[test]
    fn a_document_without_a_name_keeps_all_that_is_missing() {
        let disk = Disk::new();
        let path = disk.write("a.yaml", &format!("{}---\n{}", map("a", "1"), map("b", "1")));
        let mut folder = disk.folder();
        disk.write("a.yaml", &format!("{}---\nkind: [\n", map("a", "2")));
        assert!(folder.read(&Changes::Files([path].into())));
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=2 b=1", true));
        // What was moved to another file is taken from there, without a complaint about two of one name.
        disk.write("0.yaml", &map("b", "3"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!(maps(&folder), "a=2 b=3");
        disk.write("z.yaml", &map("b", "3"));
        fs::remove_file(disk.root().join("0.yaml")).unwrap();
        assert!(folder.read(&Changes::Everything));
        assert_eq!((maps(&folder).as_str(), codes(&folder).as_slice()), ("a=2 b=3", [Code::Syntax].as_slice()));
    }

    #[test]
    fn a_deleted_file_takes_its_resources_along() {
        let disk = Disk::new();
        disk.write("a.yaml", &map("a", "1"));
        let path = disk.write("sub/b.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}"#);
        disk.write(".hidden.yaml", &map("hidden", "1"));
        disk.write(".git/c.yaml", &map("hidden", "1"));
        let mut folder = disk.folder();
        assert_eq!(maps(&folder), "a=1 b=");
        fs::remove_file(&path).unwrap();
        assert!(folder.read(&Changes::Files([path].into())));
        assert_eq!(maps(&folder), "a=1");
    }

    #[test]
    fn a_folder_that_is_emptied_keeps_everything() {
        let disk = Disk::new();
        let first = disk.write("a.yaml", &map("a", "1"));
        let second = disk.write("sub/b.yaml", &map("b", "1"));
        let state = |folder: &Folder| (maps(folder), folder.is_last_good(), codes(folder));
        let sound = |maps: &str| (maps.to_owned(), false, Vec::new());
        let kept = |maps: &str| (maps.to_owned(), true, vec![Code::Emptied]);
        let mut folder = disk.folder();
        // A deleted file takes its resources along as long as another is left.
        fs::remove_file(&first).unwrap();
        assert!(folder.read(&Changes::Files([first.clone()].into())));
        assert_eq!(state(&folder), sound("b=1"));
        fs::remove_file(&second).unwrap();
        assert!(folder.read(&Changes::Files([second.clone()].into())));
        assert_eq!(state(&folder), kept("b=1"));
        assert!(!folder.read(&Changes::Everything), "still nothing: nothing new");
        assert_eq!(state(&folder), kept("b=1"));
        let told = folder.diagnostics().remove(0).to_string();
        assert!(told.contains("conf:1:1: error[SELV0012]: it held 1 resource and holds none now"), "{told}");
        // A file without resources is nothing either.
        disk.write("c.yaml", "# nothing\n");
        folder.read(&Changes::Everything);
        assert_eq!(state(&folder), kept("b=1"));
        // Something else is there: what was kept goes.
        disk.write("a.yaml", &map("a", "2"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!(state(&folder), sound("a=2"));
        // All at once, and back.
        fs::remove_file(&first).unwrap();
        assert!(folder.read(&Changes::Everything));
        assert_eq!(state(&folder), kept("a=2"));
        disk.write("a.yaml", &map("a", "2"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!(state(&folder), sound("a=2"));
        // A file that is emptied is kept in the same way.
        disk.write("a.yaml", "");
        assert!(folder.read(&Changes::Everything));
        assert_eq!(state(&folder), kept("a=2"));
        assert!(!folder.read(&Changes::Everything), "it has not changed again");
        disk.write("a.yaml", &map("a", "3"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!(state(&folder), sound("a=3"));
    }

    #[test]
    fn of_several_folders_one_that_is_emptied_is_kept() {
        let disk = Disk::new();
        disk.write("one/a.yaml", &map("a", "1"));
        disk.write("two/b.yaml", &map("b", "1"));
        let roots = ["one", "two"].map(|name| disk.root().join(name));
        let mut folder = Folder::new(roots.to_vec());
        folder.read(&Changes::Everything);
        fs::remove_file(disk.root().join("one/a.yaml")).unwrap();
        assert!(folder.read(&Changes::Everything));
        assert_eq!((maps(&folder).as_str(), codes(&folder)), ("a=1 b=1", vec![Code::Emptied]));
        // What was moved elsewhere is taken from there.
        disk.write("two/a.yaml", &map("a", "2"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!(maps(&folder), "a=2 b=1");
    }

    #[test]
    fn a_folder_that_is_empty_from_the_first_is_served_so() {
        let disk = Disk::new();
        fs::create_dir_all(disk.root()).unwrap();
        let folder = disk.folder();
        assert_eq!((maps(&folder).as_str(), folder.is_last_good(), codes(&folder)), ("", false, vec![]));
    }

    #[test]
    fn a_vanished_folder_keeps_everything() {
        let disk = Disk::new();
        let path = disk.write("a.yaml", &map("a", "1"));
        let mut folder = disk.folder();
        let aside = disk.dir.path().join("aside");
        fs::rename(disk.root(), &aside).unwrap();
        assert!(folder.read(&Changes::Everything));
        folder.read(&Changes::Files([path].into()));
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=1", true));
        assert_eq!(codes(&folder), [Code::UnreadableFile]);
        assert!(!folder.read(&Changes::Everything), "it is still gone: nothing new");
        fs::rename(aside, disk.root()).unwrap();
        assert!(folder.read(&Changes::Everything), "the diagnostic goes");
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=1", false));
    }

    #[test]
    fn links_in_circles_end() {
        let disk = Disk::new();
        disk.write("sub/a.yaml", &map("a", "1"));
        symlink(disk.root(), disk.root().join("sub/up")).unwrap();
        symlink(disk.root().join("sub"), disk.root().join("again")).unwrap();
        symlink("self.yaml", disk.root().join("self.yaml")).unwrap();
        let mut folder = disk.folder();
        assert_eq!(maps(&folder), "a=1");
        assert_eq!(codes(&folder), [Code::UnreadableFile], "of the link to itself");
        assert!(!folder.read(&Changes::Everything));
    }

    #[test]
    fn a_mounted_config_map_changes_as_one() {
        let disk = Disk::new();
        for (version, value) in [("..1", "old"), ("..2", "new")] {
            disk.write(&format!("{version}/a.yaml"), &map("a", value));
            disk.write(&format!("{version}/b.yaml"), &map("b", value));
        }
        let point = |version: &str| {
            symlink(version, disk.root().join("..data_tmp")).unwrap();
            fs::rename(disk.root().join("..data_tmp"), disk.root().join("..data")).unwrap();
        };
        point("..1");
        for name in ["a.yaml", "b.yaml"] {
            symlink(format!("..data/{name}"), disk.root().join(name)).unwrap();
        }
        let mut folder = disk.folder();
        assert_eq!(maps(&folder), "a=old b=old");
        point("..2");
        assert!(folder.read(&Changes::Everything));
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=new b=new", false));
    }

    #[test]
    fn of_two_files_with_one_name_the_first_is_used() {
        let disk = Disk::new();
        disk.write("b.yaml", &map("x", "b"));
        let mut folder = disk.folder();
        disk.write("a.yaml", &map("x", "a"));
        assert!(folder.read(&Changes::Everything));
        assert_eq!(maps(&folder), "x=a");
        let [diagnostic] = folder.diagnostics().try_into().unwrap();
        let root = disk.root();
        assert_eq!(
            diagnostic.to_string(),
            format!(
                "{0}/b.yaml:1:1: error[SELV0008] ConfigMap default/x: ConfigMap default/x is given twice: here and at {0}/a.yaml:1:1\n  help: the first is used; rename or remove one of them",
                root.display()
            )
        );
        assert_eq!(disk.folder().diagnostics(), [diagnostic], "in one go too");
        fs::remove_file(root.join("a.yaml")).unwrap();
        assert!(folder.read(&Changes::Everything));
        assert_eq!((maps(&folder).as_str(), folder.diagnostics()), ("x=b", vec![]));
    }

    #[test]
    fn what_was_saved_stands_in_for_broken_and_missing_files() {
        let disk = Disk::new();
        for name in ["a", "b", "c"] {
            disk.write(&format!("{name}.yaml"), &map(name, "1"));
        }
        let state = disk.dir.path().join("state");
        let mut saved = disk.folder().to_saved();
        saved.files.insert("/elsewhere/x.yaml".into(), saved.files.values().next().unwrap().clone());
        saved.store(&state).unwrap();
        let saved = Saved::load(&state).unwrap().unwrap();
        disk.write("a.yaml", "}");
        disk.write("b.yaml", &map("b", "2"));
        fs::remove_file(disk.root().join("c.yaml")).unwrap();
        let mut folder = Folder::new(vec![disk.root()]);
        folder.remember(&saved);
        folder.read(&Changes::Everything);
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=1 b=2", true));
        let key = folder.resources().config_map("default", "a").map(|m| selvedge_model::Object::key(&**m)).unwrap();
        let mut about = [Diagnostic::error(Code::MissingField, key, FieldPath::root(), "x")];
        folder.locate(&mut about);
        assert_eq!(about[0].location, Some(top_of(&disk.root().join("a.yaml"))));
        // Without the folder all of it is served.
        fs::remove_dir_all(disk.root()).unwrap();
        let mut folder = Folder::new(vec![disk.root()]);
        folder.remember(&saved);
        folder.read(&Changes::Everything);
        assert_eq!((maps(&folder).as_str(), folder.is_last_good()), ("a=1 b=1 c=1", true));
    }

    #[test]
    fn large_files_are_refused_unread() {
        let disk = Disk::new();
        let path = disk.write("a.yaml", "");
        fs::File::options().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
        let folder = disk.folder();
        let [diagnostic] = folder.diagnostics().try_into().unwrap();
        assert_eq!(diagnostic.code, Code::FileTooLarge);
        assert!(diagnostic.message.contains("104857600 bytes"), "{diagnostic}");
        assert!(folder.text(&path).is_none());
    }

    #[test]
    fn a_text_is_read_like_a_file() {
        let mut folder = Folder::new(Vec::new());
        folder.insert("<stdin>", format!("{}---\n{}oops: 1\n", map("a", "1"), map("b", "1")).into_bytes());
        folder.read(&Changes::Everything);
        assert_eq!(maps(&folder), "a=1");
        assert_eq!(folder.broken().map(ToString::to_string).collect::<Vec<_>>(), ["ConfigMap default/b"]);
        let [diagnostic] = folder.diagnostics().try_into().unwrap();
        assert!(
            diagnostic.to_string().starts_with("<stdin>:10:1: error[SELV0100] ConfigMap default/b oops: "),
            "{diagnostic}"
        );
    }
}
