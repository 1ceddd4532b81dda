//! `selvedge capture` as its users meet it. What the rules do is tested in `crates/mesh/tests/capture.rs`.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    process::{self, Command, Output},
};

fn selvedge(args: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(env!("CARGO_BIN_EXE_selvedge")).args(args).env("PATH", path).output().expect("the binary")
}

#[track_caller]
fn says(out: &Output, code: i32, text: &str) {
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(said.contains(text), "no `{text}` in:\n{said}");
    assert_eq!(out.status.code(), Some(code), "{said}");
}

/// A namespace of this test alone; `None`: not to be had here.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Option<Self> {
        let name = format!("sv-capture-{}-{name}", process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output().is_ok_and(|out| out.status.success());
        if !made {
            selvedge_testkit::left_out("network namespaces cannot be made here (that needs root and `ip`)");
        }
        made.then_some(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

#[test]
fn rules_come_are_shown_and_go() {
    let Some(space) = Namespace::new("cli") else { return };
    let run = |args: &[&str]| selvedge(&[&["capture"], args, &["--netns", &space.0]].concat());
    says(&run(&["show"]), 1, "is not captured");
    says(&run(&["apply", "--dns", "--exclude-out", "5432,10.9.0.0/16"]), 0, "is captured by nftables");
    says(&run(&["apply", "--dns", "--exclude-out", "10.9.0.0/16,5432"]), 0, "already; nothing changed");
    says(&run(&["show", "--dns", "--exclude-out", "5432,10.9.0.0/16"]), 0, "the rules that the options ask for");
    says(&run(&["show"]), 1, "these are not the rules that the options ask for");
    says(&run(&["remove"]), 0, "is no longer captured");
    says(&run(&["remove"]), 0, "was not captured");
}

#[test]
fn without_rights_the_way_out_is_named() {
    let Some(space) = Namespace::new("rights") else { return };
    let as_nobody = |args: &[&str]| {
        let nobody = ["--reuid", "65534", "--clear-groups", "--bounding-set", "-all"];
        // Nobody may not be allowed to read where the binary was built.
        let copy = tempfile::tempdir().expect("a folder");
        let binary = copy.path().join("selvedge");
        std::fs::copy(env!("CARGO_BIN_EXE_selvedge"), &binary).expect("copied");
        std::fs::set_permissions(copy.path(), Permissions::from_mode(0o755)).expect("open to all");
        Command::new("setpriv").args(nobody).arg(&binary).args(args).output().expect("setpriv")
    };
    says(&as_nobody(&["capture", "apply"]), 1, "CAP_NET_ADMIN is missing; run it as root");
    let out = as_nobody(&["capture", "apply", "--netns", &space.0]);
    says(&out, 1, "CAP_NET_ADMIN is missing");
    let listed = Command::new("ip").args(["netns", "exec", &space.0, "nft", "list", "ruleset"]).output().expect("ip");
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "", "nothing half done");
}

#[test]
fn what_makes_no_sense_is_refused() {
    says(&selvedge(&["capture", "apply", "--netns", "no-such-space"]), 1, "/run/netns/no-such-space does not exist");
    says(&selvedge(&["capture", "apply", "--exclude-out", "high"]), 2, "neither a port (443)");
    says(&selvedge(&["capture", "apply", "--dns", "--exclude-out", "53"]), 1, "port 53 is both excluded and captured");
    says(
        &selvedge(&["capture", "apply", "--inbound-port", "15001"]),
        1,
        "port 15001 of the proxy is given to two uses",
    );
}
