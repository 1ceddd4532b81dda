#![no_main]

#[path = "../mesh.rs"]
#[allow(dead_code)]
mod mesh;

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh::jwt(data));
