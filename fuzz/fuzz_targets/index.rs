#![no_main]
//! Index objects.

use libfuzzer_sys::fuzz_target;
use vault::format::index::Index;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::decode(data) {
        assert_eq!(index.encode(), data, "what is read is what would be written");
    }
});
