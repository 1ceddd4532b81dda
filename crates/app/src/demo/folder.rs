//! The folder of the demo: resources to edit, the authority's certificate and the access log.

use super::{certificate::Certificate, ports::Ports};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The example, file by file, but for its certificate, whose key is no secret: the demo makes one of its own.
const FILES: [(&str, &str); 7] = [
    ("cart.yaml", include_str!("../../../../examples/demo/cart.yaml")),
    ("catalog.yaml", include_str!("../../../../examples/demo/catalog.yaml")),
    ("gateway.yaml", include_str!("../../../../examples/demo/gateway.yaml")),
    ("mesh.yaml", include_str!("../../../../examples/demo/mesh.yaml")),
    ("services.yaml", include_str!("../../../../examples/demo/services.yaml")),
    ("streams.yaml", include_str!("../../../../examples/demo/streams.yaml")),
    ("welcome.yaml", include_str!("../../../../examples/demo/welcome.yaml")),
];
/// How the example names its access log.
const LOG_LINE: &str = "path: access.log";

/// A folder of the user's choice, which stays, or a temporary one, which goes when this is dropped.
pub struct Folder {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    /// Writes all files.
    ///
    /// # Errors
    /// When `chosen` holds something already, or the disk does not take it.
    pub fn create(chosen: Option<&Path>, ports: Ports, netns: bool) -> Result<Self> {
        let folder = match chosen {
            Some(path) => Self::chosen(path)?,
            None => {
                let temporary = tempfile::Builder::new().prefix("selvedge-demo-").tempdir();
                let temporary = temporary.context("cannot make a temporary folder; name one with --dir")?;
                Self { path: temporary.path().to_owned(), _temporary: Some(temporary) }
            }
        };
        folder.fill(ports, netns).with_context(|| format!("cannot write to {}", folder.path.display()))?;
        Ok(folder)
    }

    pub fn resources(&self) -> PathBuf {
        self.path.join("resources")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a process keeps.
    pub fn state(&self, process: &str) -> PathBuf {
        self.path.join("state").join(process)
    }

    /// What a process says.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Of a process that joins the mesh.
    pub fn token(&self, process: &str) -> PathBuf {
        self.state(process).join("token")
    }

    pub fn authority(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    pub fn access_log(&self) -> PathBuf {
        self.path.join("access.log")
    }

    fn chosen(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        let path = fs::canonicalize(path).with_context(|| format!("cannot open {}", path.display()))?;
        let empty = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?.next().is_none();
        ensure!(
            empty,
            "{} is not empty; --dir wants a new or empty folder, so that no file of yours is overwritten",
            path.display()
        );
        Ok(Self { path, _temporary: None })
    }

    fn fill(&self, ports: Ports, netns: bool) -> Result<()> {
        let resources = self.resources();
        fs::create_dir_all(&resources)?;
        fs::create_dir_all(self.logs())?;
        if netns {
            fs::write(resources.join("mesh.yaml"), include_str!("netns.yaml"))?;
            return Ok(());
        }
        let log = format!("path: {}", serde_json::to_string(&self.access_log().to_string_lossy())?);
        for (name, text) in FILES {
            fs::write(resources.join(name), ports.moved(text).replace(LOG_LINE, &log))?;
        }
        fs::write(self.access_log(), "")?;
        let certificate = Certificate::generate().context("cannot make a certificate")?;
        fs::write(self.authority(), &certificate.authority)?;
        let mut options = fs::OpenOptions::new();
        let mut secret =
            options.write(true).create(true).truncate(true).mode(0o600).open(resources.join("certificate.yaml"))?;
        secret.write_all(certificate.secret().as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_goes_and_a_chosen_one_stays() {
        let ports = Ports::new(9000);
        let folder = Folder::create(None, ports, false).expect("a folder");
        let gateway = fs::read_to_string(folder.resources().join("gateway.yaml")).expect("the gateway");
        assert!(gateway.contains("port: 9001") && !gateway.contains("808"), "{gateway}");
        assert!(gateway.contains(&format!("path: \"{}\"", folder.access_log().display())), "{gateway}");
        let path = folder.path.clone();
        drop(folder);
        assert!(!path.exists());

        let parent = tempfile::tempdir().expect("a folder");
        let chosen = parent.path().join("demo");
        drop(Folder::create(Some(&chosen), ports, false).expect("a folder"));
        assert!(chosen.join("resources/certificate.yaml").exists());
        let error = Folder::create(Some(&chosen), ports, false).err().expect("not empty").to_string();
        assert!(error.contains("--dir"), "{error}");
    }
}
