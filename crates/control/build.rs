//! Generates the gRPC services and messages of `proto/`, without the `protoc` program.

use std::{env, error::Error, ffi::OsString, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "proto") {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path.into());
        }
    }
    files.sort();
    let descriptors = protox::compile(&files, [&folder])?;
    tonic_prost_build::configure().bytes(".selvedge.discovery.v1").compile_fds(descriptors)?;
    Ok(())
}
