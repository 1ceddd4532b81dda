//! For tests only: certificates, servers and clients on loopback.

pub mod backend;
pub mod certs;
pub mod etcd;
pub mod http1;
pub mod load;
pub mod process;
pub mod selvedge;
pub mod tcp;
pub mod websocket;

/// Says that a test leaves itself out, as this machine lacks something.
///
/// # Panics
/// With `SELVEDGE_TEST_ALL` in the environment, as in CI, where nothing may be missing.
#[track_caller]
pub fn left_out(why: &str) {
    assert!(std::env::var_os("SELVEDGE_TEST_ALL").is_none(), "left out, although SELVEDGE_TEST_ALL is set: {why}");
    eprintln!("left out: {why}");
}
