//! Every YAML block of the documents is read as a file of resources would be: what users copy must be valid. And the tests that
//! the list of security checks names are there.

use selvedge_model::{Limits, Severity, parse};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder of documents is readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
}

/// The blocks fenced as `yaml`, with the line before their first.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut open): (Vec<(usize, String)>, bool) = (Vec::new(), false);
    for (i, line) in text.lines().enumerate() {
        match line.trim_end() {
            "```yaml" => {
                open = true;
                found.push((i + 1, String::new()));
            }
            "```" => open = false,
            line if open => {
                if let Some((_, block)) = found.last_mut() {
                    block.push_str(line);
                    block.push('\n');
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_yaml_block_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/app is two folders deep");
    let mut files = vec![root.join("README.md")];
    documents(&root.join("docs"), &mut files);
    let (mut read, mut broken) = (0, Vec::new());
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        for (line, block) in blocks(&fs::read_to_string(&file).expect("a document is readable")) {
            let parsed = parse(&format!("{name} (block after line {line})"), block.as_bytes(), &Limits::default());
            read += parsed.loaded.len();
            let errors = parsed.diagnostics.iter().filter(|d| d.severity == Severity::Error);
            broken.extend(errors.map(ToString::to_string));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    assert!(read > 10, "only {read} resources were found in the documents");
}

/// All texts between backticks that name a test: `file::test`.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|part| part.split_once("::")).filter(|(file, _)| file.contains('/')).collect()
}

#[test]
fn every_security_check_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/app is two folders deep");
    let list = fs::read_to_string(root.join("docs/security-checks.md")).expect("the list is readable");
    let mut missing = Vec::new();
    for (file, test) in named_tests(&list) {
        let source = fs::read_to_string(root.join(file)).unwrap_or_default();
        let marked = |line: &str| line.trim_start().starts_with("#[test]") || line.contains("#[tokio::test");
        let rust = source
            .lines()
            .zip(source.lines().skip(1))
            .any(|(mark, line)| marked(mark) && line.contains(&format!("fn {test}(")));
        if !rust && !source.lines().any(|line| line.starts_with(&format!("def {test}("))) {
            missing.push(format!("{file}::{test}"));
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
    let unnamed: Vec<_> = list
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| check") && named_tests(line).is_empty())
        .collect();
    assert!(unnamed.is_empty(), "checks without a test:\n{}", unnamed.join("\n"));
    assert!(named_tests(&list).len() > 40);
}
