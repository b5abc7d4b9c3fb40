//! Blobs: a run of chunks compressed as one, against bases if there are any, and sealed.
//!
//! Layout: format-spec/blob.md. Every sealed blob is opened, inflated and compared before it leaves this module.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, ResetDirective};

use crate::format::manifest::ChunkEntry;
use crate::format::pack::{BlobContents, BlobKind};
pub use crate::seal::boxed::OpenError;
use crate::seal::boxed::{Compression, inflate, open_box, seal_box};
use crate::seal::keys::{Keys, Kind};
use crate::seal::matches::Finder;
use crate::seal::sequences::{Blocks, SequenceDeflater};

/// The standard level, with tables that fit a core's cache beside everything else that goes on: measured on 525 MB of text
/// in blobs of 2 MiB, 14 % less time than with zstd's own tables of this level for 0.6 % more bytes.
const LEVEL_TUNED: i32 = 3;

/// What a blob may be compressed against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bases<'a> {
    /// The plaintext of the bases, concatenated.
    pub plaintext: &'a [u8],
    /// How many bytes the blob should take without them.
    pub alone_bytes: usize,
}

/// Compresses and seals blobs. Holds the codec's contexts and buffers: one a thread.
pub struct Sealer {
    deflate: CCtx<'static>,
    finder: Finder,
    blocks: Blocks,
    deflate_delta: SequenceDeflater,
    opener: Opener,
    level: i32,
    packed: Vec<u8>,
    contents: Vec<u8>,
    check: Vec<u8>,
}

/// A sealed blob did not come back as it went in: memory or codec are broken, nothing was stored.
#[derive(Debug, thiserror::Error)]
#[error("a blob did not survive being sealed and opened again; this host's memory may be faulty, nothing was stored")]
pub struct SealError;

impl Sealer {
    /// `level` is zstd's, 1 to 19, of blobs that stand alone.
    pub fn new(level: i32) -> Self {
        Self {
            deflate: CCtx::create(),
            finder: Finder::new(),
            blocks: Blocks::new(),
            deflate_delta: SequenceDeflater::new(),
            opener: Opener::default(),
            level,
            packed: Vec::new(),
            contents: Vec::new(),
            check: Vec::new(),
        }
    }

    /// To open blobs with between two that are sealed.
    pub fn opener(&mut self) -> &mut Opener {
        &mut self.opener
    }

    /// Compresses and seals `plaintext`, the chunks of `contents` in order, and appends the box to `out`.
    ///
    /// `bases` are those of `contents`. If they do not help clearly, `contents` loses them: a blob that stands alone is worth
    /// more than a few bytes.
    pub fn seal(
        &mut self,
        keys: &Keys,
        contents: &mut BlobContents,
        plaintext: &[u8],
        bases: Bases<'_>,
        entropy: &[u8; 32],
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        debug_assert_eq!(contents.raw_bytes(), plaintext.len(), "contents list the plaintext");
        let bases = self.compress_best(contents, plaintext, bases);
        let (compression, payload) = if self.packed.len() < plaintext.len() {
            (Compression::Zstd, &self.packed[..])
        } else {
            (Compression::None, plaintext)
        };
        self.contents.clear();
        contents.encode(&mut self.contents);
        let object_id = keys.blob_list(&self.contents);
        let start = out.len();
        seal_box(keys, box_kind(contents.kind), &object_id, compression, plaintext.len(), payload, entropy, out);

        let check = &mut self.check;
        let opened = self.opener.open_front(keys, contents, &out[start..], bases, plaintext.len(), check);
        if opened.is_ok() && check == plaintext { Ok(()) } else { Err(SealError) }
    }

    /// Leaves the better frame in `self.packed` and returns the bases that it needs.
    fn compress_best<'b>(&mut self, contents: &mut BlobContents, plaintext: &[u8], bases: Bases<'b>) -> &'b [u8] {
        let Bases { plaintext: bases, alone_bytes } = bases;
        if bases.is_empty() {
            self.compress_alone(plaintext);
            return bases;
        }
        self.compress_against(bases, plaintext);
        if surely_helps(self.packed.len(), alone_bytes.min(plaintext.len())) {
            return bases;
        }
        let delta = std::mem::take(&mut self.packed);
        self.compress_alone(plaintext);
        if helps(delta.len(), self.packed.len()) {
            self.packed = delta;
            return bases;
        }
        tracing::debug!("bases of {} bytes help too little: {} for {}", bases.len(), delta.len(), self.packed.len());
        contents.stand_alone();
        &[]
    }

    /// Compresses `plaintext` against `bases` into `self.packed`.
    fn compress_against(&mut self, bases: &[u8], plaintext: &[u8]) {
        self.blocks.begin(bases.len());
        self.finder.find(bases, plaintext, |sequence| self.blocks.push(sequence));
        self.blocks.finish(plaintext.len());
        make_room(&mut self.packed, plaintext);
        expect_done(self.deflate_delta.compress(&self.blocks, plaintext, &mut self.packed));
    }

    /// Compresses `plaintext` by itself into `self.packed`.
    fn compress_alone(&mut self, plaintext: &[u8]) {
        let (level, packed) = (self.level, &mut self.packed);
        make_room(packed, plaintext);
        let mut compress = || {
            let context = &mut self.deflate;
            context.reset(ResetDirective::SessionAndParameters)?;
            context.set_parameter(CParameter::CompressionLevel(level))?;
            if level == LEVEL_TUNED {
                context.set_parameter(CParameter::HashLog(16))?;
                context.set_parameter(CParameter::ChainLog(14))?;
            }
            context.set_parameter(CParameter::ContentSizeFlag(true))?;
            context.set_parameter(CParameter::ChecksumFlag(false))?;
            context.set_parameter(CParameter::DictIdFlag(false))?;
            context.compress2(packed, plaintext)
        };
        expect_done(compress());
    }
}

/// Empties `packed`, and makes room for whatever zstd may leave of `plaintext`.
fn make_room(packed: &mut Vec<u8>, plaintext: &[u8]) {
    packed.clear();
    packed.reserve(zstd::zstd_safe::compress_bound(plaintext.len()));
}

/// What was `compressed` into such a room.
fn expect_done<T>(compressed: Result<T, usize>) -> T {
    compressed
        .map_err(zstd::zstd_safe::get_error_name)
        .expect("zstd compresses any bytes into a buffer of its own bound")
}

/// Whether a frame against bases is kept without compressing the blob alone, which takes as long again: `alone_bytes` is a guess.
///
/// Where that is up to half as long again as the truth, a blob rests on bases for nothing, but it is hardly longer than alone.
fn surely_helps(delta_bytes: usize, alone_bytes: usize) -> bool {
    delta_bytes < alone_bytes / 3 * 2
}

/// Whether a frame against bases is so much shorter than the blob alone that it may rest on them.
fn helps(delta_bytes: usize, alone_bytes: usize) -> bool {
    delta_bytes < alone_bytes / 4 * 3
}

/// Opens blobs. Holds the codec's context and a buffer: one a thread.
pub struct Opener {
    inflate: DCtx<'static>,
    payload: Vec<u8>,
}

impl Default for Opener {
    fn default() -> Self {
        Self { inflate: DCtx::create(), payload: Vec::new() }
    }
}

impl Opener {
    /// Opens a blob, inflates it and compares every chunk with its name. `out` then holds the plaintext.
    ///
    /// `bases` is the plaintext of `contents.bases`, concatenated. On error `out` holds nothing of use.
    pub fn open(
        &mut self,
        keys: &Keys,
        contents: &BlobContents,
        sealed: &[u8],
        bases: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        self.open_front(keys, contents, sealed, bases, contents.raw_bytes(), out)?;
        compare_names(keys, contents.kind, &contents.chunks, out)
    }

    /// Like [`open`](Self::open), but compares no chunk with its name, and stops once `out` holds the first `wanted` bytes: they
    /// and perhaps some after them.
    pub fn open_front(
        &mut self,
        keys: &Keys,
        contents: &BlobContents,
        sealed: &[u8],
        bases: &[u8],
        wanted: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let kind = box_kind(contents.kind);
        let mut encoded = Vec::new();
        contents.encode(&mut encoded);
        let object_id = keys.blob_list(&encoded);
        let opened = open_box(keys, kind, &object_id, sealed, &mut self.payload)?;
        if opened.raw_bytes != contents.raw_bytes() {
            let detail = format!("its chunks add up to {}", contents.raw_bytes());
            return Err(OpenError::Decompress { what: kind.word(), bytes: opened.raw_bytes, detail });
        }
        match opened.compression {
            Compression::None => std::mem::swap(out, &mut self.payload),
            Compression::Zstd => {
                inflate(&mut self.inflate, kind.word(), &self.payload, bases, opened.raw_bytes, wanted, out)?;
            }
        }
        Ok(())
    }
}

/// Compares chunks of an opened blob of `kind` with their names. `plaintext` is theirs, concatenated, as long as they say.
pub fn compare_names(keys: &Keys, kind: BlobKind, chunks: &[ChunkEntry], plaintext: &[u8]) -> Result<(), OpenError> {
    let mut rest = plaintext;
    for chunk in chunks {
        let (plaintext, after) = rest.split_at(chunk.bytes as usize);
        if name_of(keys, kind, plaintext) != chunk.id {
            return Err(OpenError::Content { what: box_kind(kind).word(), id: chunk.id });
        }
        rest = after;
    }
    Ok(())
}

/// Names a chunk of a blob of `kind`.
pub fn name_of(keys: &Keys, kind: BlobKind, plaintext: &[u8]) -> crate::id::ChunkId {
    match kind {
        BlobKind::Data => keys.chunk_id(plaintext),
        BlobKind::Meta => keys.list_id(plaintext),
    }
}

fn box_kind(kind: BlobKind) -> Kind {
    match kind {
        BlobKind::Data => Kind::DataBlob,
        BlobKind::Meta => Kind::MetaBlob,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RepoId;
    use crate::seal::keys::MasterKey;

    #[test]
    fn blobs_come_back_with_and_without_bases_and_a_wrong_base_is_noticed() {
        let keys = Keys::derive(&MasterKey { secret: [1; 32], epoch: 0 }, RepoId([2; 16]));
        let base: Vec<u8> = (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut text = base[1000..700_000].to_vec();
        text[5] ^= 1;
        let entry = |bytes: &[u8]| ChunkEntry { id: keys.chunk_id(bytes), bytes: bytes.len() as u32 };
        let plain = BlobContents { kind: BlobKind::Data, depth: 0, chunks: vec![entry(&text)], bases: vec![] };
        let delta = BlobContents { depth: 1, bases: vec![entry(&base)], ..plain.clone() };
        let (mut sealer, mut opener, mut out) = (Sealer::new(3), Opener::default(), Vec::new());
        let (mut whole, mut small) = (Vec::new(), Vec::new());
        sealer.seal(&keys, &mut plain.clone(), &text, Bases::default(), &[0; 32], &mut whole).unwrap();
        sealer
            .seal(&keys, &mut delta.clone(), &text, Bases { plaintext: &base, alone_bytes: 0 }, &[0; 32], &mut small)
            .unwrap();
        assert!(small.len() < 1000, "noise that the base holds costs nothing: {}", small.len());
        opener.open(&keys, &plain, &whole, &[], &mut out).unwrap();
        assert_eq!(out, text);
        opener.open(&keys, &delta, &small, &base, &mut out).unwrap();
        assert_eq!(out, text);
        let mut other = base.clone();
        other[300_000] ^= 1;
        assert!(opener.open(&keys, &delta, &small, &other, &mut out).is_err(), "another base gives other bytes");
        assert!(opener.open(&keys, &plain, &small, &[], &mut out).is_err(), "the list is part of what is sealed");
    }

    #[test]
    fn of_a_blob_no_more_is_inflated_than_its_front() {
        let keys = Keys::derive(&MasterKey { secret: [1; 32], epoch: 0 }, RepoId([2; 16]));
        let base: Vec<u8> = (0..600_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3] % 30).collect();
        let text: Vec<u8> = base.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at % 5000 == 7)).collect();
        let entry = |bytes: &[u8]| ChunkEntry { id: keys.chunk_id(bytes), bytes: bytes.len() as u32 };
        let plain = BlobContents { kind: BlobKind::Data, depth: 0, chunks: vec![entry(&text)], bases: vec![] };
        let delta = BlobContents { depth: 1, bases: vec![entry(&base)], ..plain.clone() };
        let (mut sealer, mut opener, mut out) = (Sealer::new(3), Opener::default(), Vec::new());
        for (mut contents, base) in [(plain, &[][..]), (delta, &base)] {
            let mut sealed = Vec::new();
            let bases = Bases { plaintext: base, alone_bytes: text.len() };
            sealer.seal(&keys, &mut contents, &text, bases, &[0; 32], &mut sealed).unwrap();
            assert_eq!(contents.bases.is_empty(), base.is_empty());
            for wanted in [1, 131_072, 131_073, 500_000, 599_999, 600_000] {
                opener.open_front(&keys, &contents, &sealed, base, wanted, &mut out).unwrap();
                assert!(out.len() >= wanted && out[..] == text[..out.len()], "{wanted}");
                let blocks = wanted.next_multiple_of(128 << 10);
                assert!(out.len() <= blocks || wanted > 525_000, "{wanted}: {}", out.len());
                opener.open(&keys, &contents, &sealed, base, &mut out).unwrap();
                assert_eq!(out, text, "the whole after {wanted}");
            }
        }
    }

    /// What `text` takes as a blob that rests on `base`.
    fn stored_against(base: &[u8], text: &[u8], alone_bytes: usize) -> usize {
        let keys = Keys::derive(&MasterKey { secret: [1; 32], epoch: 0 }, RepoId([2; 16]));
        let entry = |bytes: &[u8]| ChunkEntry { id: keys.chunk_id(bytes), bytes: bytes.len() as u32 };
        let mut contents =
            BlobContents { kind: BlobKind::Data, depth: 1, chunks: vec![entry(text)], bases: vec![entry(base)] };
        let (given, mut out) = (Bases { plaintext: base, alone_bytes }, Vec::new());
        Sealer::new(3).seal(&keys, &mut contents, text, given, &[0; 32], &mut out).unwrap();
        assert!(!contents.bases.is_empty(), "it rests on what it was");
        out.len()
    }

    #[test]
    fn a_column_that_is_new_in_every_row_takes_hardly_more_than_it_holds() {
        // As after a key was changed: its digits share runs of five with each other by accident, and matches of those hid the
        // rest of the row, so that twice as much was stored.
        let digest = |text: String| blake3::hash(text.as_bytes()).to_hex().to_string();
        let day = |day: u32| -> Vec<u8> {
            let row = |row: u32| {
                let [stays, order, changes] =
                    [format!("stays {row}"), format!("order {row}"), format!("day {day} {row}")].map(digest);
                let (name, place) = stays.split_at(24);
                format!(
                    "{row}\tsent\t{changes}\tto be delivered to {name} who lives at {place} and was not at home, order {order}\n"
                )
            };
            (0..6000).flat_map(|number| row(number).into_bytes()).collect()
        };
        let (base, text) = (day(0), day(1));
        let (stored, held) = (stored_against(&base, &text, text.len()), 6000 * 32);
        assert!(stored < held * 9 / 8, "{stored} bytes for {held} that are new");
    }

    #[test]
    fn a_time_that_is_new_in_every_row_takes_hardly_more_than_it_holds() {
        // No run is long: each row has 130 bytes that stay.
        let digest = |text: String| blake3::hash(text.as_bytes()).to_hex().to_string();
        let day = |day: u32| -> Vec<u8> {
            let row = |row: u32| {
                let [name, place] = ["name", "place"].map(|what| digest(format!("{what} {row}")));
                let millis = u64::from_str_radix(&digest(format!("{day} {row}"))[..8], 16).unwrap() % 86_400_000;
                format!("{row}\t{name}\t{millis:08}\t{place}\n")
            };
            (0..14_000).flat_map(|number| row(number).into_bytes()).collect()
        };
        let (base, text) = (day(0), day(1));
        let stored = stored_against(&base, &text, text.len() / 2);
        // Twenty-seven bits of a time, and where the rest of the row lies.
        assert!(stored < 14_000 * 5, "{stored} bytes, of {}", text.len());
    }

    #[test]
    fn a_column_that_is_added_to_wide_rows_takes_hardly_more_than_it_holds() {
        let row = |number: u32| {
            let digest = |part| blake3::hash(format!("{part} {number}").as_bytes()).to_hex().to_string();
            format!("{number}\t{}", (0..6).map(digest).collect::<String>())
        };
        let day = |added: &str| (0..5000).flat_map(|number| (row(number) + added + "\n").into_bytes()).collect();
        let (base, text): (Vec<u8>, Vec<u8>) = (day(""), day("\t\\N"));
        let stored = stored_against(&base, &text, text.len() / 2);
        assert!(stored < 5000 * 5, "{stored} bytes, of {}", text.len());
    }

    #[test]
    fn alone_is_tried_unless_the_delta_is_a_third_smaller_than_expected_and_kept_from_a_quarter_on() {
        for (delta, alone, surely, kept) in [
            (0, 0, false, false),
            (100, 900, true, true),
            (599, 900, true, true),
            (600, 900, false, true),
            (674, 900, false, true),
            (675, 900, false, false),
            (901, 900, false, false),
        ] {
            assert_eq!((surely_helps(delta, alone), helps(delta, alone)), (surely, kept), "{delta} of {alone}");
        }
    }
}
