#![no_main]
//! The chunker: whatever the bytes and the geometry, chunks fill the stream and keep their sizes.

use libfuzzer_sys::fuzz_target;
use vault::chunk::Chunker;
use vault::format::manifest::ChunkerParams;

fuzz_target!(|data: &[u8]| {
    let Some((&[a, b, c], mut rest)) = data.split_first_chunk::<3>() else { return };
    let [min, avg, max] = [64 + u32::from(a), 256 + 2 * u32::from(b), 512 + 4 * u32::from(c)];
    let params = ChunkerParams { chunker: 1, min, avg, max };
    let Ok(chunker) = Chunker::new(params, vault_fuzz::keys().cdc_table()) else { return };
    while let Some(length) = chunker.cut(rest, true) {
        let last = length == rest.len();
        assert!(length > 0 && length <= max as usize && (last || length >= min as usize), "{length} of {params:?}");
        if rest.len() >= max as usize {
            assert_eq!(chunker.cut(&rest[..max as usize], false), Some(length), "what comes later changes no cut");
        }
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "every byte is in a chunk");
});
