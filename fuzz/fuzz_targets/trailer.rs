#![no_main]
//! Ends of packs: where the directory lies.

use libfuzzer_sys::fuzz_target;
use vault::format::pack::{PACK_TRAILER_BYTES, directory_range};

fuzz_target!(|data: &[u8]| {
    let Some((size, tail)) = data.split_first_chunk::<8>() else { return };
    let size = u64::from_le_bytes(*size);
    if let Ok(range) = directory_range(size, tail) {
        assert!(
            range.start < range.end && range.end + PACK_TRAILER_BYTES as u64 == size,
            "the directory is in the pack"
        );
    }
});
