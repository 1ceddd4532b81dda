//! `cargo xtask dist`: the program as it is shipped, laid out and optimized by a profile of its own benchmarks.
//!
//! The compiler is told what runs (profile-guided optimization): functions that serve requests get its effort and lie side
//! by side, the others become small and lie elsewhere. It takes two builds, the first of which counts while the benchmarks
//! run on it.

use anyhow::{Context, Result, ensure};
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What the program is trained by: requests, connections, changes, a mesh and a control plane.
const TRAINING: [&[&str]; 3] = [
    &["bench", "--alone", "--seconds", "3", "--rounds", "1"],
    &["bench", "mesh", "--alone", "--seconds", "5", "--rounds", "1"],
    &["bench", "control", "--quick"],
];

/// How the counts are used: parts of functions that did not run lie elsewhere than the rest of them, and the linker keeps what runs
/// often, what runs and what does not apart, so that a process touches few pages of its code.
const LAYOUT: &str = "-Cllvm-args=-enable-split-machine-functions -Clink-arg=-Wl,-z,keep-text-section-prefix";

/// Builds the program and says where it is.
pub fn run() -> Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// Builds the program: `target/dist/selvedge`.
pub fn build() -> Result<PathBuf> {
    let target = std::path::absolute(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target")))?;
    let compiler = Compiler::find()?;
    let dir = target.join("pgo");
    let counts = dir.join("counts");
    let _ = fs::remove_dir_all(&counts);
    fs::create_dir_all(&counts)?;
    let counting = compiler.selvedge(&dir.join("counting"), &format!("-Cprofile-generate={}", counts.display()))?;
    for arguments in TRAINING {
        let status = Command::new(env::current_exe()?).args(arguments).arg("--bin").arg(&counting).status()?;
        ensure!(status.success(), "the program could not be trained: {} ended with {status}", arguments.join(" "));
    }
    let profile = dir.join("selvedge.profdata");
    compiler.merge(&counts, &profile)?;
    // Cargo does not see that the profile is another than the last time.
    let guided = dir.join("guided");
    let _ = fs::remove_dir_all(&guided);
    let built = compiler.selvedge(&guided, &format!("-Cprofile-use={} {LAYOUT}", profile.display()))?;
    let program = target.join("dist/selvedge");
    fs::create_dir_all(target.join("dist"))?;
    fs::copy(built, &program)?;
    Ok(program)
}

struct Compiler {
    /// The target triple that it runs on, and builds for.
    host: String,
    /// Its folder of LLVM's tools.
    tools: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self> {
        let says = |argument: &[&str]| -> Result<String> {
            let output = Command::new("rustc").args(argument).output().context("cannot run rustc")?;
            Ok(String::from_utf8(output.stdout)?)
        };
        let version = says(&["-vV"])?;
        let host =
            version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?.to_owned();
        let tools = Path::new(says(&["--print", "sysroot"])?.trim()).join("lib/rustlib").join(&host).join("bin");
        Ok(Self { host, tools })
    }

    /// The program with a flag for what is in it; the target is named so that build scripts and macros go without.
    fn selvedge(&self, dir: &Path, flag: &str) -> Result<PathBuf> {
        let status = Command::new("cargo")
            .args(["build", "--profile", "dist", "--package", "selvedge", "--target", &self.host, "--target-dir"])
            .arg(dir)
            .env("RUSTFLAGS", flag)
            .status()?;
        ensure!(status.success(), "the build with {flag} failed");
        Ok(dir.join(&self.host).join("dist/selvedge"))
    }

    fn merge(&self, counts: &Path, profile: &Path) -> Result<()> {
        let tool = self.tools.join("llvm-profdata");
        ensure!(tool.exists(), "{} is not there: rustup component add llvm-tools", tool.display());
        let status = Command::new(tool).args(["merge", "-o"]).arg(profile).arg(counts).status()?;
        ensure!(status.success(), "the counts in {} cannot be merged", counts.display());
        Ok(())
    }
}
