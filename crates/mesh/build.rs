//! Generates the Workload API from `proto/`, without the `protoc` program.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let file = folder.join("workload.proto");
    println!("cargo::rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&folder])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
