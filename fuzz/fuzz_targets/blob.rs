#![no_main]
//! Blobs whose frame is the fuzzer's, with and without bases, as a whole and in part.

use libfuzzer_sys::fuzz_target;
use vault::format::manifest::ChunkEntry;
use vault::format::pack::{BlobContents, BlobKind};
use vault::id::ChunkId;
use vault::seal::blob::{OpenError, Opener};
use vault::seal::boxed::{Compression, seal_box};
use vault::seal::keys::Kind;

fuzz_target!(|data: &[u8]| {
    let Some((&[bases, low, high], rest)) = data.split_first_chunk::<3>() else { return };
    let (bases, frame) = rest.split_at(usize::from(bases).min(rest.len()));
    let (keys, bytes) = (vault_fuzz::keys(), u32::from(u16::from_le_bytes([low, high])) + 1);
    let entry = |bytes| ChunkEntry { id: ChunkId([0; 32]), bytes };
    let (depth, listed) = if bases.is_empty() { (0, vec![]) } else { (1, vec![entry(bases.len() as u32)]) };
    let contents = BlobContents { kind: BlobKind::Data, depth, chunks: vec![entry(bytes)], bases: listed };
    let mut encoded = Vec::new();
    contents.encode(&mut encoded);
    let (id, mut sealed, mut out) = (keys.blob_list(&encoded), Vec::new(), Vec::new());
    seal_box(&keys, Kind::DataBlob, &id, Compression::Zstd, bytes as usize, frame, &[0; 32], &mut sealed);
    let (bytes, wanted) = (bytes as usize, bytes as usize / 3 + 1);
    let (mut opener, mut front) = (Opener::default(), Vec::new());
    let in_part = opener.open_front(&keys, &contents, &sealed, bases, wanted, &mut front);
    assert!(
        front.len() <= bytes && (in_part.is_err() || front.len() >= wanted),
        "what is wanted, and never more than there is"
    );
    let error = opener.open(&keys, &contents, &sealed, bases, &mut out).expect_err("no bytes have this name");
    assert!(out.len() <= bytes, "never more than the contents list");
    // Block by block zstd also refuses a block that is larger than the window, which it takes in a whole frame.
    if in_part.is_ok() && matches!(error, OpenError::Content { .. }) {
        assert_eq!(front, out[..front.len()], "a part is the beginning of the whole");
    }
});
