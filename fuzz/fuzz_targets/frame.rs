#![no_main]
//! Boxes that open and hold a zstd frame of the fuzzer's making.

use libfuzzer_sys::fuzz_target;
use vault::limits::RAW_BYTES_MAX;
use vault::seal::boxed::{Compression, NAMED_BY_HASH, open_object, seal_box};
use vault::seal::keys::Kind;

fuzz_target!(|data: &[u8]| {
    let Some((length, frame)) = data.split_first_chunk::<4>() else { return };
    let (keys, length) = (vault_fuzz::keys(), u32::from_le_bytes(*length) as usize % (RAW_BYTES_MAX + 1));
    let mut sealed = Vec::new();
    seal_box(&keys, Kind::Index, &NAMED_BY_HASH, Compression::Zstd, length, frame, &[0; 32], &mut sealed);
    if let Ok(plaintext) = open_object(&keys, Kind::Index, &sealed[..]) {
        assert_eq!(plaintext.len(), length, "a frame inflates to what its box states");
    }
});
