#![no_main]
//! Manifests, with the stream references in them.

use libfuzzer_sys::fuzz_target;
use vault::format::manifest::Manifest;

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::decode(data) {
        let again = Manifest::decode(&manifest.encode()).unwrap();
        assert_eq!(again.encode(), manifest.encode(), "a manifest survives being written");
    }
});
