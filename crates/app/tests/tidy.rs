//! Keeps the repository in order: which crate may use which, who imports what, how long files are, whether links lead
//! anywhere. A rule that is broken says where and what to do.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

/// What each crate may use of the others, in any way but `dev-dependencies` (ARCHITECTURE.md, "Crates").
const MAY_USE: &[(&str, &[&str])] = &[
    ("selvedge-model", &["selvedge-wire"]),
    ("selvedge-wire", &[]),
    ("selvedge-compile", &["selvedge-model", "selvedge-wire"]),
    ("selvedge-identity", &["selvedge-wire"]),
    ("selvedge-proxy", &["selvedge-compile", "selvedge-identity", "selvedge-model", "selvedge-wire"]),
    ("selvedge-mesh", &["selvedge-compile", "selvedge-identity", "selvedge-proxy", "selvedge-wire"]),
    ("selvedge-control", &["selvedge-compile", "selvedge-identity", "selvedge-model", "selvedge-wire"]),
    ("selvedge-admin", &["selvedge-control", "selvedge-proxy", "selvedge-compile", "selvedge-model"]),
    (
        "selvedge",
        &[
            "selvedge-admin",
            "selvedge-control",
            "selvedge-identity",
            "selvedge-mesh",
            "selvedge-proxy",
            "selvedge-compile",
            "selvedge-model",
            "selvedge-wire",
        ],
    ),
    ("selvedge-testkit", &[]),
    ("xtask", &["selvedge-testkit", "selvedge-wire", "selvedge-model"]),
];

/// Crates that are pure: no runtime, no network stack, no Kubernetes client.
const PURE: &[&str] = &["selvedge-model", "selvedge-wire", "selvedge-compile"];
const IMPURE: &[&str] = &["tokio", "hyper", "hyper-util", "h2", "axum", "tonic", "kube", "rustls", "tokio-rustls"];

/// Longest file of source code, in lines; ARCHITECTURE.md must name and explain every exception.
const MAX_LINES: usize = 800;
const LONGER: &[&str] = &[];

/// Files that may hold `unsafe`, each with its argument written down in it.
const UNSAFE: &[&str] = &["crates/app/src/memory.rs", "crates/proxy/tests/h2_abuse.rs", "xtask/src/bench/process.rs"];

/// What must not be in any file: places on one machine, and promises. Written in two halves, for this file is read too.
const FORBIDDEN: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("TO", "DO"), concat!("FIX", "ME")];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/app is two folders deep");
    root.to_path_buf()
}

/// Files of the repository by their path in it: those that git knows or, outside a clone, all but build products.
fn files() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z", "--cached"]).current_dir(root()).output();
    if let Ok(listed) = listed
        && listed.status.success()
        && !listed.stdout.is_empty()
    {
        let all = String::from_utf8_lossy(&listed.stdout).into_owned();
        return all.split('\0').filter(|f| !f.is_empty() && root().join(f).is_file()).map(str::to_owned).collect();
    }
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of the repository is readable").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            match path.is_dir() {
                true if name == "target" || name == ".git" || name == "artifacts" => {}
                true => folders.push(path),
                false => found.push(path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned()),
            }
        }
    }
    found
}

/// The text of a file; nothing for one that is not text.
fn text(file: &str) -> Option<String> {
    String::from_utf8(fs::read(root().join(file)).expect("a file of the repository is readable")).ok()
}

/// Source files of crates below `folder`.
fn sources<'f>(files: &'f [String], folder: &'f str) -> impl Iterator<Item = &'f String> {
    files.iter().filter(move |f| f.starts_with(folder) && f.ends_with(".rs"))
}

/// The lines of code of a file, without comments on lines of their own, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, l)| (i + 1, l)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `line` has `word` with no letter, digit or underscore before it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn none(broken: &[String], help: &str) {
    assert!(broken.is_empty(), "\n  {}\n{help}", broken.join("\n  "));
}

#[test]
fn crates_depend_one_way() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON");
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut broken = Vec::new();
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = rules.get(name) else {
            broken.push(format!("{name} is not in the list of crates"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            if dependency["kind"] == "dev" {
                continue;
            }
            if ours.contains(other) && !allowed.contains(&other) {
                broken.push(format!("{name} must not use {other}"));
            }
            if PURE.contains(&name) && IMPURE.contains(&other) {
                broken.push(format!("{name} is pure and must not use {other}"));
            }
        }
    }
    none(
        &broken,
        "see \"Crates\" in ARCHITECTURE.md: move the code to the crate that may use both, or invert the call",
    );
}

#[test]
fn only_codecs_import_http_stacks_and_only_tls_imports_rustls() {
    let files = files();
    let mut broken = Vec::new();
    for file in sources(&files, "crates/proxy/src/") {
        let Some(text) = text(file) else { continue };
        let inside = |folder: &str| file.starts_with(&format!("crates/proxy/src/{folder}/"));
        // `use crate::codec::h2` puts our own module in the place of the crate of that name; tests have it from `super`.
        let own_h2 = text.contains("codec::") || text.contains("use super::");
        for (number, line) in code(&text) {
            let codec = ["hyper::", "hyper_util::", "::h2::", "use h2::", "h3::"];
            let codec = codec.iter().any(|w| has_word(line, w)) || !own_h2 && has_word(line, "h2::");
            let tls = ["rustls::", "tokio_rustls::"].iter().any(|w| has_word(line, w));
            if codec && !inside("codec") || tls && !inside("tls") {
                broken.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    none(&broken, "only codec/ may import hyper, h2 or h3, and only tls/ may import rustls: use what they offer");
}

#[test]
fn files_are_short() {
    let files = files();
    let all = sources(&files, "crates/").filter(|f| f.contains("/src/")).chain(sources(&files, "xtask/src/"));
    let long = |file: &&String| text(file).is_some_and(|text| text.lines().count() > MAX_LINES);
    let broken: Vec<String> = all.filter(long).filter(|f| !LONGER.contains(&f.as_str())).cloned().collect();
    none(&broken, "longer than 800 lines: split by noun, or add it to LONGER here and explain it in ARCHITECTURE.md");
    let architecture = text("ARCHITECTURE.md").expect("ARCHITECTURE.md is text");
    let silent = |file: &&&str| !architecture.contains(**file);
    let broken: Vec<String> = LONGER.iter().filter(silent).map(|f| (*f).to_owned()).collect();
    none(&broken, "an exception to the length of files must be explained in ARCHITECTURE.md");
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let files = files();
    let mut broken = Vec::new();
    for file in files.iter().filter(|f| f.ends_with(".rs") && !UNSAFE.contains(&f.as_str())) {
        let Some(text) = text(file) else { continue };
        for (number, line) in code(&text) {
            let word = concat!("un", "safe");
            let opens = [" {", " fn", " impl", " trait", " extern"].map(|next| format!("{word}{next}"));
            if opens.iter().any(|w| has_word(line, w)) {
                broken.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    none(&broken, "unsafe code needs a module of its own with its argument, listed in UNSAFE here");
}

#[test]
fn nothing_speaks_of_one_machine_or_of_later() {
    let mut broken = Vec::new();
    for file in files().iter().filter(|f| !f.ends_with(".lock") && !f.starts_with("fuzz/corpus/")) {
        let Some(text) = text(file) else { continue };
        for (i, line) in text.lines().enumerate() {
            if FORBIDDEN.iter().any(|word| line.contains(word)) {
                broken.push(format!("{file}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    none(&broken, "absolute paths of one machine and notes about later work do not belong here");
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files().iter().filter(|f| f.ends_with(".md")) {
        let Some(text) = text(file) else { continue };
        for (number, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let at = if path.is_empty() { PathBuf::from(file) } else { beside(file, path) };
            let there = root().join(&at);
            if !there.exists() {
                broken.push(format!("{file}:{number}: {target}: there is no such file"));
            } else if !anchor.is_empty() && at.extension().is_some_and(|e| e == "md") {
                let document = fs::read_to_string(there).unwrap_or_default();
                if !anchors(&document).contains(anchor) {
                    broken.push(format!("{file}:{number}: {target}: there is no such heading"));
                }
            }
        }
    }
    none(&broken, "correct the link, or the name of what it leads to");
}

/// A path relative to the folder of `file`, from the root of the repository.
fn beside(file: &str, path: &str) -> PathBuf {
    let mut at = PathBuf::from(file);
    at.pop();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(at.pop()),
            Component::Normal(name) => at.push(name),
            _ => {}
        }
    }
    at
}

/// Lines outside fenced blocks, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let (mut fenced, mut lines) = (false, Vec::new());
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((i + 1, line));
        }
    }
    lines
}

/// Targets of `[text](target)` and `![text](target)`.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Inline code holds no links.
        let spoken: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for (at, _) in spoken.match_indices("](") {
            let target = spoken[at + 2..].split([')', ' ']).next().unwrap_or_default();
            found.push((number, target.trim_matches(['<', '>']).to_owned()));
        }
    }
    found
}

/// The anchors of headings, as hosts of repositories make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text)
        .into_iter()
        .filter_map(|(_, line)| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    let named = headings.map(|heading| {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let times = seen.entry(anchor.clone()).or_default();
        *times += 1;
        if *times == 1 { anchor } else { format!("{anchor}-{}", *times - 1) }
    });
    named.collect()
}
