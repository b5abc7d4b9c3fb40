#![no_main]
//! Boxes as they come from the store: nobody but the holder of the key makes one that opens.

use libfuzzer_sys::fuzz_target;
use vault::seal::boxed::{NAMED_BY_HASH, open_box, open_object};
use vault::seal::keys::Kind;

fuzz_target!(|data: &[u8]| {
    let keys = vault_fuzz::keys();
    for kind in Kind::ALL {
        let opened = open_box(&keys, kind, &NAMED_BY_HASH, data, &mut Vec::new()).is_ok()
            || open_object(&keys, kind, data).is_ok();
        assert!(!opened, "a forged {kind:?}");
    }
});
