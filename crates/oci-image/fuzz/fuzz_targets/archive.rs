//! Any bytes as an image archive.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|archive: &[u8]| common::replay::archive(archive));
