//! Files that are generated from the types are as the types say. `UPDATE=1` writes them anew.

use std::path::{Path, PathBuf};

use selvedge_model::{Kind, schema};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn check(path: &str, wanted: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE").is_some() {
        let folder = path.parent().expect("a folder");
        std::fs::create_dir_all(folder).expect("the folder can be made");
        std::fs::write(&path, wanted).expect("the file can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is out of date: run UPDATE=1 cargo test -p selvedge-model", path.display());
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).expect("JSON"))
}

#[test]
fn configuration_reference() {
    check("docs/configuration.md", &schema::reference_markdown());
}

#[test]
fn diagnostics_reference() {
    check("docs/diagnostics.md", &schema::diagnostics_markdown());
}

#[test]
fn schemas() {
    for kind in Kind::ALL {
        check(&format!("schemas/{}.json", kind.name().to_lowercase()), &pretty(schema::schema(*kind)));
    }
    check("schemas/all.json", &pretty(&schema::schema_bundle()));
}
