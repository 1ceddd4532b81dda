//! Keeps docs/conformance.md true: the cases and tests it names exist, each conformance test has one or a reason, and its
//! features are those that a GatewayClass declares.

use selvedge_compile::SUPPORTED_FEATURES;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/app is two folders deep").to_path_buf()
}

/// The cells of the rows of all tables under a heading `## HEADING`.
fn rows<'t>(text: &'t str, heading: &str) -> Vec<Vec<&'t str>> {
    let section = text.split("\n## ").find(|s| s.starts_with(heading)).unwrap_or_else(|| panic!("no ## {heading}"));
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.map(|row| row.split(" | ").map(str::trim).collect::<Vec<_>>());
    rows.filter(|row| row[0] != "test" && row[0] != "feature").collect()
}

/// What a cell has between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Where a test that is written `FILE::FUNCTION` is, and what its line begins with.
fn place(test: &str) -> (PathBuf, String) {
    let (file, function) = test.split_once("::").unwrap_or_else(|| panic!("{test} is not FILE::FUNCTION"));
    match file {
        "examples" => (root().join("crates/app/tests/examples/main.rs"), format!("fn {function}(")),
        _ if file.ends_with(".py") => (root().join("tests/e2e").join(file), format!("def {function}(")),
        _ => (root().join("crates").join(file), format!("fn {function}(")),
    }
}

#[test]
fn every_case_and_test_named_exists() {
    let text = fs::read_to_string(root().join("docs/conformance.md")).expect("docs/conformance.md");
    let mut missing = Vec::new();
    let mut seen = BTreeSet::new();
    for row in rows(&text, "Tests") {
        let [name, compiled, served] = row[..] else { panic!("a row has three cells: {row:?}") };
        assert!(seen.insert(name), "{name} is there twice");
        let cases: Vec<&str> = quoted(compiled).collect();
        for case in &cases {
            if !root().join(format!("crates/compile/testdata/{case}.case")).exists() {
                missing.push(format!("{name}: no golden case {case}"));
            }
        }
        let tests: Vec<&str> = quoted(served).collect();
        for test in &tests {
            let (file, function) = place(test);
            if !fs::read_to_string(&file).is_ok_and(|text| text.contains(&function)) {
                missing.push(format!("{name}: no test {test}"));
            }
        }
        let reason = served.contains("needs a cluster") || served.contains("only for who");
        if cases.is_empty() && tests.is_empty() && !reason {
            missing.push(format!("{name}: neither a case, nor a test, nor a reason"));
        }
    }
    assert!(missing.is_empty(), "docs/conformance.md:\n{}", missing.join("\n"));
    assert_eq!(seen.len(), 153, "the suite of v1.6.1 has 153 tests");
}

#[test]
fn the_features_are_those_declared() {
    let text = fs::read_to_string(root().join("docs/conformance.md")).expect("docs/conformance.md");
    let tests: BTreeSet<&str> = rows(&text, "Tests").into_iter().map(|row| row[0]).collect();
    let (declared, left_out): (Vec<_>, Vec<_>) =
        rows(&text, "Features").into_iter().partition(|row| SUPPORTED_FEATURES.contains(&row[0]));
    let listed: Vec<&str> = declared.iter().map(|row| row[0]).collect();
    assert_eq!(listed, SUPPORTED_FEATURES, "the table of docs/conformance.md, and what is declared, sorted");
    for row in declared {
        let known = row[1].split([',', ' ']).filter(|word| tests.contains(word)).count();
        assert!(known > 0 || quoted(row[1]).next().is_some(), "{} has no test", row[0]);
    }
    for row in left_out {
        assert!(row[1].len() > 10, "{} is not declared, and nothing says why", row[0]);
    }
}
