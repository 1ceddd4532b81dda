//! Golden cases: `testdata/*.case` holds resources as YAML, a line `---expect---`, and what compiling them must say.
//! `UPDATE=1 cargo test -p selvedge-compile --test cases` rewrites the expectations; read the difference before you commit it.

use selvedge_compile::{FixedPort, LocalWorkload, Options, Ports, Position, check, compile, snapshot::Netns, summary};
use selvedge_model::{Limits, Resources, parse};
use std::{fs, path::PathBuf};

const MARK: &str = "---expect---\n";

#[test]
fn cases() {
    let update = std::env::var_os("UPDATE").is_some();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).expect("testdata").map(|e| e.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "case"));
    paths.sort();
    assert!(!paths.is_empty(), "no cases in {}", folder.display());
    let mut failed = Vec::new();
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("case");
        let (input, expected) = text.split_once(MARK).unwrap_or((&text, ""));
        let found = run(input);
        if found == expected {
            continue;
        }
        if update {
            fs::write(path, format!("{input}{MARK}{found}")).expect("write");
        } else {
            failed.push(name.clone());
            eprintln!("=== {name}");
            for line in diff(expected, &found) {
                eprintln!("{line}");
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} cases differ: {failed:?}; UPDATE=1 rewrites them", failed.len(), paths.len());
}

/// Comments before the first document set options: `# now: SECONDS`, `# identity: SPIFFE-ID`, `# zone: ZONE`,
/// `# region: REGION`, and `# workload: NAMESPACE/NAME [netns=N] [capture] [hbone=ADDRESS] [proxy=ADDRESS]
/// [fixed=ADDRESS>HOST:PORT]` for each local workload. `# check` asks for the findings of `selvedge check`, too.
fn run(input: &str) -> String {
    let parsed = parse("case", input.as_bytes(), &Limits::default());
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|l| l.resource.or(l.stand_in)));
    let mut options = Options::default();
    for line in input.lines().take_while(|l| l.starts_with('#')) {
        if let Some(now) = line.strip_prefix("# now: ") {
            options.now = now.trim().parse().expect("now");
        }
        if let Some(id) = line.strip_prefix("# identity: ") {
            options.identity = Some(id.trim().parse().expect("identity"));
        }
        options.zone = line.strip_prefix("# zone: ").map(str::to_owned).or(options.zone);
        options.region = line.strip_prefix("# region: ").map(str::to_owned).or(options.region);
        if let Some(text) = line.strip_prefix("# workload: ") {
            match &mut options.position {
                Position::Workloads(list) => list.push(local(text)),
                position => *position = Position::Workloads(vec![local(text)]),
            }
        }
    }
    let mut out = String::new();
    for diagnostic in &parsed.diagnostics {
        out.push_str(&format!("load: {diagnostic}\n"));
    }
    let compiled = if input.lines().take_while(|l| l.starts_with('#')).any(|l| l == "# check") {
        check(&resources, &options)
    } else {
        compile(&resources, &options)
    };
    out.push_str(&summary(&compiled));
    out
}

fn local(text: &str) -> LocalWorkload {
    let mut words = text.split_whitespace();
    let (namespace, workload) = words.next().and_then(|w| w.split_once('/')).expect("NAMESPACE/NAME");
    let mut ports = Ports::default();
    let mut netns = Netns::default();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("capture", "") => ports.capture = true,
            ("netns", number) => netns = Netns(number.parse().expect("a number")),
            ("hbone", address) => ports.hbone = Some(address.parse().expect("an address")),
            ("proxy", address) => ports.http_proxy = Some(address.parse().expect("an address")),
            ("fixed", text) => {
                let (listen, to) = text.split_once('>').expect("ADDRESS>HOST:PORT");
                let (host, port) = to.rsplit_once(':').expect("HOST:PORT");
                let (listen, port) = (listen.parse().expect("an address"), port.parse().expect("a port"));
                ports.fixed.push(FixedPort { listen, host: host.to_owned(), port });
            }
            _ => panic!("unknown word {word}"),
        }
    }
    LocalWorkload { namespace: namespace.to_owned(), workload: workload.to_owned(), own: None, netns, ports }
}

/// Lines that differ, with a sign; good enough to read.
fn diff(old: &str, new: &str) -> Vec<String> {
    let gone = old.lines().filter(|l| !new.lines().any(|n| n == *l)).map(|l| format!("- {l}"));
    let added = new.lines().filter(|l| !old.lines().any(|o| o == *l)).map(|l| format!("+ {l}"));
    gone.chain(added).collect()
}
