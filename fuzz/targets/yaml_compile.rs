//! Any bytes as a file of resources: reading and compiling ends without panic, and twice the same.

#![no_main]

use selvedge_compile::{Options, compile, diff, summary};
use selvedge_model::{Limits, Resources, parse};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Small limits: the fuzzer should look for shapes, not for size.
    let limits = Limits { file_bytes: 64 * 1024, values: 20_000, alias_bytes: 64 * 1024, ..Limits::default() };
    let parsed = parse("fuzz", data, &limits);
    let resources: Resources = parsed.loaded.into_iter().filter_map(|l| l.resource).collect();
    let options = Options { now: 1_900_000_000, ..Options::default() };
    let compiled = compile(&resources, &options);
    let again = compile(&resources, &options);
    assert_eq!(summary(&compiled), summary(&again));
    assert!(diff(&compiled.snapshot, &again.snapshot).is_empty());
});
