#![no_main]
//! Blobs that are sealed against bases come back, whatever of them is in the bases.
//!
//! The input is a program: its pieces say what of the bases, of the text before or of the input itself comes next.

use libfuzzer_sys::fuzz_target;
use vault::format::manifest::ChunkEntry;
use vault::format::pack::{BlobContents, BlobKind};
use vault::seal::blob::{Bases, Sealer};

const BYTES_MAX: usize = 300_000;

/// Appends the next piece: bytes of the input, a run of `from`, or one of what was made so far.
fn append(made: &mut Vec<u8>, from: &[u8], [kind, a, b, c]: [u8; 4], rest: &[u8]) {
    let (place, bytes) = (usize::from(a) << 8 | usize::from(b), usize::from(c) << (kind >> 4 & 7));
    let bytes = bytes.min(BYTES_MAX - made.len());
    match kind & 3 {
        0 => made.extend_from_slice(&rest[..bytes.min(rest.len())]),
        1 => made.extend(std::iter::repeat_n(c, bytes)),
        2 => made.extend(from.iter().skip(place << 2).take(bytes)),
        _ => (0..bytes).for_each(|_| made.push(made.len().checked_sub(place + 1).map_or(a, |at| made[at]))),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[pieces], program)) = data.split_first_chunk::<1>() else { return };
    let (mut base, mut text) = (vec![pieces], Vec::new());
    for (number, piece) in program.chunks_exact(4).enumerate() {
        let (piece, rest) = (piece.try_into().expect("four bytes"), &program[number * 4..]);
        if number < usize::from(pieces) {
            append(&mut base, &[], piece, rest);
        } else {
            append(&mut text, &base, piece, rest);
        }
    }
    if text.is_empty() {
        return;
    }
    let keys = vault_fuzz::keys();
    let entry = |bytes: &[u8]| ChunkEntry { id: keys.chunk_id(bytes), bytes: bytes.len() as u32 };
    let mut contents =
        BlobContents { kind: BlobKind::Data, depth: 1, chunks: vec![entry(&text)], bases: vec![entry(&base)] };
    let (mut sealer, mut sealed, mut out) = (Sealer::new(3), Vec::new(), Vec::new());
    let given = Bases { plaintext: &base, alone_bytes: text.len() };
    sealer.seal(&keys, &mut contents, &text, given, &[0; 32], &mut sealed).expect("what is sealed comes back");
    let bases = if contents.bases.is_empty() { &[] } else { &base[..] };
    sealer.opener().open(&keys, &contents, &sealed, bases, &mut out).expect("and opens again");
    assert_eq!(out, text);
});
