#![no_main]
//! Key slots: bounds before anything is allocated, and what opens them.

use libfuzzer_sys::fuzz_target;
use vault::format::slot::Slot;
use vault::seal::slot::{Secret, open_slot};

fuzz_target!(|data: &[u8]| {
    if let Ok(slot) = Slot::decode(data) {
        assert_eq!(slot.encode(), data, "what is read is what would be written");
        // A key file needs no Argon2id, so this costs nothing whatever the slot asks for.
        let _ = open_slot(&slot, &Secret::KeyFile([1; 32].into()));
    }
});
