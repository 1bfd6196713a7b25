//! Any bytes as the layer of an otherwise sound image.

#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|layer: &[u8]| common::replay::layer(layer));
