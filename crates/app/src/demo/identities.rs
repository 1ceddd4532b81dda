//! Certificates of the members of the mesh, as they lie in the state folders of their proxies.

use super::ports::DEFAULT_BASE;
use anyhow::{Context, Result, bail, ensure};
use selvedge_identity::Svid;
use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// Between two requests while a certificate is waited for.
const PAUSE: Duration = Duration::from_millis(20);
/// A renewal takes half of a certificate's life at most; whoever asks for longer lives need not watch.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, clap::Args)]
pub struct Folder {
    /// Folder of a running demo.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Watch {
    #[command(flatten)]
    folder: Folder,
    /// Whose certificate.
    #[arg(default_value = "gateway")]
    member: String,
    /// HTTP port of the gateway.
    #[arg(long, default_value_t = DEFAULT_BASE)]
    port: u16,
}

/// Process, certificate.
pub fn all(folder: &Path) -> Vec<(String, Svid)> {
    let Ok(processes) = fs::read_dir(folder.join("state")) else { return Vec::new() };
    let mut all: Vec<(String, Svid)> = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        let Ok(files) = fs::read_dir(process.path().join("identity")) else { continue };
        let pem = files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "pem"));
        let svids = pem.filter_map(|path| fs::read(path).ok()).filter_map(|text| Svid::from_pem(&text, &text).ok());
        all.extend(svids.map(|svid| (name.clone(), svid)));
    }
    all.sort_by(|a, b| (&a.0, a.1.id().as_str()).cmp(&(&b.0, b.1.id().as_str())));
    all
}

/// One line for each.
pub fn table(folder: &Path) -> String {
    let mut text = String::new();
    for (name, svid) in all(folder) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<14}{:<50} ends in {} s", svid.id().as_str(), left(&svid));
    }
    text
}

/// Prints them, with their serial numbers.
pub fn print(folder: &Folder) -> Result<()> {
    let all = all(&folder.dir);
    ensure!(!all.is_empty(), "{} is not the folder of a running demo", folder.dir.display());
    for (name, svid) in all {
        super::say(&format!("{name:<14}{:<50} {}  ends in {} s", svid.id().as_str(), svid.serial(), left(&svid)));
    }
    Ok(())
}

/// Sends requests until a member has a new certificate, and says what became of them.
pub async fn watch(watch: &Watch) -> Result<()> {
    let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, watch.port));
    let find = || all(&watch.folder.dir).into_iter().find(|(name, _)| *name == watch.member).map(|(_, svid)| svid);
    let before = find().with_context(|| {
        format!("{} has no certificate in {}: is the demo running?", watch.member, watch.folder.dir.display())
    })?;
    super::say(&format!("before  {}  {}  ends in {} s", before.id(), before.serial(), left(&before)));
    let (began, mut sent, mut failed) = (Instant::now(), 0_u32, 0_u32);
    // Some requests with the new one, too.
    let mut after: Option<(Svid, u32)> = None;
    while after.as_ref().is_none_or(|(_, at)| sent < at + 20) {
        let answered = super::answers(gateway, "/cart").await.is_ok_and(|ok| ok);
        sent += 1;
        failed += u32::from(!answered);
        if after.is_none() {
            after = find().filter(|svid| svid.serial() != before.serial()).map(|svid| (svid, sent));
        }
        if began.elapsed() > LIMIT {
            bail!("no new certificate within five minutes");
        }
        tokio::time::sleep(PAUSE).await;
    }
    if let Some((svid, _)) = after {
        super::say(&format!("after   {}  {}  ends in {} s", svid.id(), svid.serial(), left(&svid)));
    }
    super::say(&format!("{sent} requests meanwhile, {failed} failed"));
    Ok(())
}

fn left(svid: &Svid) -> u64 {
    svid.not_after().duration_since(SystemTime::now()).unwrap_or_default().as_secs()
}
