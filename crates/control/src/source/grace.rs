//! A moment of patience with files that vanish: many editors rename a file away before they write it anew, and its
//! resources must not be gone for those milliseconds.

use super::{Changes, folder::Folder};
use std::{collections::BTreeSet, path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep_until};

/// How long a file may be gone before it counts as deleted. Editors need milliseconds; nobody notices this much when a
/// route is deleted on purpose.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// Changes that wait because one of their files is missing. All of them wait: a file that was renamed would else be
/// there twice.
#[derive(Default)]
pub(super) struct Grace {
    held: BTreeSet<PathBuf>,
    until: Option<Instant>,
}

impl Grace {
    /// What is to be looked at now, if anything.
    pub(super) fn told(&mut self, told: Changes, folder: &Folder) -> Option<Changes> {
        let Changes::Files(files) = told else {
            *self = Self::default();
            return Some(told);
        };
        self.held.extend(files);
        if self.held.iter().any(|path| folder.misses(path)) {
            self.until.get_or_insert_with(|| Instant::now() + GRACE);
            return None;
        }
        Some(self.release())
    }

    /// Waits until the time of what is missing has run out. Giving up the future loses nothing.
    pub(super) async fn over(&mut self) -> Changes {
        match self.until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
        self.release()
    }

    fn release(&mut self) -> Changes {
        Changes::Files(std::mem::take(self).held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tokio::time::timeout;

    const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";

    struct Bench {
        root: PathBuf,
        folder: Folder,
        grace: Grace,
    }

    impl Bench {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("selvedge-grace-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            fs::write(root.join("a.yaml"), MAP).unwrap();
            // What is left when that is gone: a folder that is emptied is kept.
            fs::write(root.join("other.yaml"), MAP.replace("name: a", "name: other")).unwrap();
            let mut folder = Folder::new(vec![root.clone()]);
            folder.read(&Changes::Everything);
            Self { root, folder, grace: Grace::default() }
        }

        fn told(&mut self, names: &[&str]) -> Option<Changes> {
            let files = names.iter().map(|name| self.root.join(name)).collect();
            self.grace.told(Changes::Files(files), &self.folder)
        }

        /// Takes in what there is to be looked at; the resources there are then.
        fn read(&mut self, changes: Option<Changes>) -> usize {
            self.folder.read(&changes.expect("something to look at"));
            self.folder.resources().len()
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_an_editor_renames_away_is_never_gone() {
        let mut bench = Bench::new("editor");
        let (file, aside) = (bench.root.join("a.yaml"), bench.root.join("a.yaml~"));
        fs::rename(&file, &aside).unwrap();
        assert_eq!(bench.told(&["a.yaml"]), None);
        // The editor has made the new one, and has not written it yet.
        fs::write(&file, "").unwrap();
        assert_eq!(bench.told(&["a.yaml"]), None);
        assert!(timeout(GRACE / 2, bench.grace.over()).await.is_err());
        fs::write(&file, MAP).unwrap();
        let now = bench.told(&["a.yaml"]);
        assert_eq!(bench.read(now), 2);
        // The time of the first has not been left running.
        assert!(timeout(GRACE * 2, bench.grace.over()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_file_is_gone_when_its_time_is_over() {
        let mut bench = Bench::new("deleted");
        let start = Instant::now();
        fs::remove_file(bench.root.join("a.yaml")).unwrap();
        assert_eq!(bench.told(&["a.yaml"]), None);
        tokio::time::advance(GRACE / 2).await;
        // What else is told does not give it more time.
        assert_eq!(bench.told(&["b.yaml"]), None);
        let due = bench.grace.over().await;
        assert_eq!(start.elapsed(), GRACE);
        assert_eq!(bench.read(Some(due)), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renamed_file_is_not_there_twice() {
        let mut bench = Bench::new("renamed");
        fs::rename(bench.root.join("a.yaml"), bench.root.join("b.yaml")).unwrap();
        assert_eq!(bench.told(&["b.yaml", "a.yaml"]), None);
        let due = bench.grace.over().await;
        assert_eq!(bench.read(Some(due)), 2);
        assert!(bench.folder.diagnostics().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_else_waits() {
        let mut bench = Bench::new("others");
        assert!(bench.told(&["unknown.yaml"]).is_some(), "what was never read is not missed");
        fs::remove_file(bench.root.join("a.yaml")).unwrap();
        assert_eq!(bench.told(&["a.yaml"]), None);
        let everything = bench.grace.told(Changes::Everything, &bench.folder);
        assert_eq!(bench.read(everything), 1);
    }
}
