#![no_main]
//! Marks, leases and removal records.

use libfuzzer_sys::fuzz_target;
use vault::format::records::{Lease, Mark, Removal, decode_record, encode_record};

fuzz_target!(|data: &[u8]| {
    if let Ok(mark) = decode_record::<Mark>("mark", data) {
        assert_eq!(decode_record::<Mark>("mark", &encode_record(&mark)).unwrap(), mark);
    }
    if let Ok(lease) = decode_record::<Lease>("lease", data) {
        assert_eq!(decode_record::<Lease>("lease", &encode_record(&lease)).unwrap(), lease);
    }
    if let Ok(removal) = decode_record::<Removal>("removal", data) {
        assert_eq!(decode_record::<Removal>("removal", &encode_record(&removal)).unwrap(), removal);
    }
});
