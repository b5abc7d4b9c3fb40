#![no_main]
//! Directories of packs.

use libfuzzer_sys::fuzz_target;
use vault::format::pack::{blobs_end, check_filled, decode_directory, encode_directory};

fuzz_target!(|data: &[u8]| {
    if let Ok(directory) = decode_directory(data) {
        assert_eq!(encode_directory(&directory), data, "what is read is what would be written");
        let end = blobs_end(&directory);
        assert!(check_filled(&directory, end).is_ok() && check_filled(&directory, end + 1).is_err());
    }
});
