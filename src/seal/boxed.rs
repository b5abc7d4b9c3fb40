//! The box: header, ciphertext, tag. Every sealed byte of a repository is in one.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with the kind, version, repository and object in the associated data.
//! Layout: format-spec/box.md.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::limits::{RAW_BYTES_MAX, WINDOW_BYTES_MAX};
use crate::seal::keys::{Keys, Kind};

/// First bytes of every box.
pub const BOX_MAGIC: &[u8; 4] = b"VLT1";
/// Version of every kind, so far.
pub const BOX_VERSION: u8 = 1;
/// XChaCha20-Poly1305 with BLAKE3.
pub const SUITE: u8 = 1;
/// Bytes before the ciphertext.
pub const HEADER_BYTES: usize = 40;
/// Bytes after it.
pub const TAG_BYTES: usize = 16;
/// Object id in the associated data of objects that are named by the hash of their bytes.
pub const NAMED_BY_HASH: [u8; 32] = [0; 32];

/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Longest header of one (RFC 8878, 3.1.1.1).
const FRAME_HEADER_BYTES_MAX: usize = 18;

/// How the payload of a box is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    /// As it is.
    None = 0,
    /// One zstd frame (RFC 8878).
    Zstd = 1,
}

/// Why a box could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("{what} is cut short: {bytes} bytes")]
    Truncated { what: &'static str, bytes: usize },
    #[error("{what} does not begin as a sealed object")]
    Magic { what: &'static str },
    #[error("{what} is of kind {found}, not {wanted}")]
    WrongKind { what: &'static str, found: u8, wanted: u8 },
    #[error("{what} is of version {version}, suite {suite}, compression {compression}: use a newer vault")]
    Unknown { what: &'static str, version: u8, suite: u8, compression: u8 },
    #[error("{what} was sealed in key epoch {found}; this key is of epoch {known}")]
    Epoch { what: &'static str, found: u32, known: u32 },
    #[error("{what}: wrong key, or the stored bytes were changed")]
    Authentication { what: &'static str },
    #[error("{what} claims or holds {bytes} bytes, past the limit")]
    TooLarge { what: &'static str, bytes: u64 },
    #[error("{what} does not decompress to the {bytes} bytes it claims: {detail}")]
    Decompress { what: &'static str, bytes: usize, detail: String },
    /// The plaintext is not what the name of a chunk says.
    #[error("chunk {id} of {what} does not hash to its name")]
    Content { what: &'static str, id: crate::id::ChunkId },
}

/// Seals `payload` and appends header, ciphertext and tag to `out`.
///
/// `raw_bytes` is the size of the payload once decompressed. `entropy` must be fresh from the operating system: the nonce
/// is a keyed hash of it, the associated data and the payload, so that even repeated entropy repeats a nonce only for the
/// same message.
#[expect(clippy::too_many_arguments, reason = "each is another field of the box")]
pub fn seal_box(
    keys: &Keys,
    kind: Kind,
    object_id: &[u8; 32],
    compression: Compression,
    raw_bytes: usize,
    payload: &[u8],
    entropy: &[u8; 32],
    out: &mut Vec<u8>,
) {
    assert!(raw_bytes <= RAW_BYTES_MAX, "callers keep every sealed plaintext within RAW_BYTES_MAX");
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(BOX_MAGIC);
    header[4..8].copy_from_slice(&[kind as u8, BOX_VERSION, SUITE, compression as u8]);
    header[8..12].copy_from_slice(&keys.epoch.to_le_bytes());
    header[12..16].copy_from_slice(&(raw_bytes as u32).to_le_bytes());
    let aad = associated_data(keys, &header, object_id);
    let mut hasher = blake3::Hasher::new_keyed(keys.for_nonces());
    hasher.update(entropy).update(&aad).update(payload);
    header[16..].copy_from_slice(&hasher.finalize().as_bytes()[..24]);

    out.reserve(HEADER_BYTES + payload.len() + TAG_BYTES);
    out.extend_from_slice(&header);
    let start = out.len();
    out.extend_from_slice(payload);
    let tag = cipher(keys, kind)
        .encrypt_inout_detached(&nonce(&header), &aad, (&mut out[start..]).into())
        .expect("a payload is far below the cipher's limit of 256 GiB");
    out.extend_from_slice(&tag);
}

/// What a box that was authenticated and decrypted says of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub compression: Compression,
    /// Size of the payload once decompressed, in bytes.
    pub raw_bytes: usize,
}

/// Authenticates and decrypts one box that fills `sealed` exactly, into `payload`, which is emptied first.
///
/// `object_id` is what the caller asked for; a box that was sealed as another one fails with `Authentication`.
pub fn open_box(
    keys: &Keys,
    kind: Kind,
    object_id: &[u8; 32],
    sealed: &[u8],
    payload: &mut Vec<u8>,
) -> Result<Opened, OpenError> {
    let (opened, locked) = parse(keys, kind, object_id, sealed)?;
    payload.clear();
    payload.extend_from_slice(&sealed[HEADER_BYTES..sealed.len() - TAG_BYTES]);
    locked.decrypt(keys, kind, opened, payload)?;
    Ok(opened)
}

/// What it takes to decrypt a box.
struct Locked {
    associated_data: [u8; 75],
    nonce: XNonce,
    tag: Tag,
}

impl Locked {
    /// Authenticates a ciphertext and decrypts it where it is.
    fn decrypt(&self, keys: &Keys, kind: Kind, opened: Opened, payload: &mut [u8]) -> Result<(), OpenError> {
        let what = kind.word();
        cipher(keys, kind)
            .decrypt_inout_detached(&self.nonce, &self.associated_data, payload.into(), &self.tag)
            .map_err(|_| OpenError::Authentication { what })?;
        if opened.compression == Compression::None && payload.len() != opened.raw_bytes {
            let detail = format!("it holds {}", payload.len());
            return Err(OpenError::Decompress { what, bytes: opened.raw_bytes, detail });
        }
        Ok(())
    }
}

/// What a box says of its payload, before it was authenticated. The ciphertext lies between header and tag.
fn parse(keys: &Keys, kind: Kind, object_id: &[u8; 32], sealed: &[u8]) -> Result<(Opened, Locked), OpenError> {
    let what = kind.word();
    let (header, body) =
        sealed.split_first_chunk::<HEADER_BYTES>().ok_or(OpenError::Truncated { what, bytes: sealed.len() })?;
    let (ciphertext, tag) =
        body.split_last_chunk::<TAG_BYTES>().ok_or(OpenError::Truncated { what, bytes: sealed.len() })?;
    if &header[..4] != BOX_MAGIC {
        return Err(OpenError::Magic { what });
    }
    if header[4] != kind as u8 {
        return Err(OpenError::WrongKind { what, found: header[4], wanted: kind as u8 });
    }
    let compression = match (header[5], header[6], header[7]) {
        (BOX_VERSION, SUITE, 0) => Compression::None,
        (BOX_VERSION, SUITE, 1) => Compression::Zstd,
        (version, suite, compression) => return Err(OpenError::Unknown { what, version, suite, compression }),
    };
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes of the header"));
    let (epoch, raw_bytes) = (field(8), field(12) as usize);
    if epoch != keys.epoch {
        return Err(OpenError::Epoch { what, found: epoch, known: keys.epoch });
    }
    if raw_bytes > RAW_BYTES_MAX {
        return Err(OpenError::TooLarge { what, bytes: raw_bytes as u64 });
    }
    if ciphertext.len() > RAW_BYTES_MAX {
        return Err(OpenError::TooLarge { what, bytes: ciphertext.len() as u64 });
    }
    let associated_data = associated_data(keys, header, object_id);
    let locked = Locked { associated_data, nonce: nonce(header), tag: Tag::from(*tag) };
    Ok((Opened { compression, raw_bytes }, locked))
}

/// Seals a whole object that is named by the hash of its bytes, compressed if that helps.
pub fn seal_object(keys: &Keys, kind: Kind, plaintext: &[u8], entropy: &[u8; 32]) -> Vec<u8> {
    let packed = zstd::bulk::compress(plaintext, 3).expect("zstd compresses any bytes into a buffer of its own bound");
    let (compression, payload) =
        if packed.len() < plaintext.len() { (Compression::Zstd, &packed[..]) } else { (Compression::None, plaintext) };
    let mut out = Vec::new();
    seal_box(keys, kind, &NAMED_BY_HASH, compression, plaintext.len(), payload, entropy, &mut out);
    out
}

/// Opens what [`seal_object`] made, where it is if `sealed` is the caller's to give. The caller has compared the object's name with
/// its hash.
pub fn open_object(keys: &Keys, kind: Kind, sealed: impl Into<Vec<u8>>) -> Result<Vec<u8>, OpenError> {
    let mut payload = sealed.into();
    let (opened, locked) = parse(keys, kind, &NAMED_BY_HASH, &payload)?;
    payload.truncate(payload.len() - TAG_BYTES);
    payload.drain(..HEADER_BYTES);
    locked.decrypt(keys, kind, opened, &mut payload)?;
    match opened.compression {
        Compression::None => Ok(payload),
        Compression::Zstd => {
            let (mut context, mut out) = (DCtx::create(), Vec::new());
            inflate(&mut context, kind.word(), &payload, &[], opened.raw_bytes, opened.raw_bytes, &mut out)?;
            Ok(out)
        }
    }
}

/// Inflates exactly one zstd frame of exactly `raw_bytes` into `out`, which is emptied first; or no more of it than what its
/// first `wanted` bytes lie in.
///
/// `prefix` is the plaintext that the frame was compressed against, or empty.
pub(super) fn inflate(
    context: &mut DCtx<'static>,
    what: &'static str,
    frame: &[u8],
    prefix: &[u8],
    raw_bytes: usize,
    wanted: usize,
    out: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let wrong = |detail: &str| OpenError::Decompress { what, bytes: raw_bytes, detail: detail.to_owned() };
    let zstd_error = |code| wrong(zstd::zstd_safe::get_error_name(code));
    // The frame must be of today's format, say its size, be the only one, and use no dictionary: nothing is left to the
    // decoder's mercy. Without the magic the decoder would take older formats and frames that it skips.
    if !frame.starts_with(&ZSTD_MAGIC) || raw_bytes == 0 {
        return Err(wrong("it is not one zstd frame"));
    }
    if window_bytes(frame).is_none_or(|window| window > WINDOW_BYTES_MAX) {
        return Err(wrong("the frame asks for a window past the limit"));
    }
    match zstd::zstd_safe::get_frame_content_size(frame) {
        Ok(Some(size)) if size == raw_bytes as u64 => {}
        _ => return Err(wrong("the frame states another size")),
    }
    match zstd::zstd_safe::find_frame_compressed_size(frame) {
        Ok(size) if size == frame.len() => {}
        _ => return Err(wrong("the frame is cut short or followed by other bytes")),
    }
    out.clear();
    // Exactly: buffers are used again, and one that doubled would be another size each time.
    out.reserve_exact(raw_bytes);
    let inflated = if prefix.is_empty() {
        inflate_until(context, frame, raw_bytes, wanted, out)
    } else {
        context_for(prefix).and_then(|mut context| inflate_until(&mut context, frame, raw_bytes, wanted, out))
    };
    inflated.map_err(zstd_error)?;
    if (wanted..=raw_bytes).contains(&out.len()) { Ok(()) } else { Err(wrong("it inflates to another size")) }
}

/// `ref_prefix` binds the prefix's lifetime to the context, so each prefix gets a context of its own.
fn context_for(prefix: &[u8]) -> Result<DCtx<'_>, usize> {
    let mut context = DCtx::create();
    context.set_parameter(DParameter::WindowLogMax(23))?;
    context.ref_prefix(prefix)?;
    Ok(context)
}

/// Inflates a frame into `out`, which has room for all of it; block by block if that saves an eighth at least.
fn inflate_until(
    context: &mut DCtx<'_>,
    mut frame: &[u8],
    raw_bytes: usize,
    wanted: usize,
    out: &mut Vec<u8>,
) -> Result<(), usize> {
    if wanted > raw_bytes - raw_bytes / 8 {
        return context.decompress(out, frame).map(|_| ());
    }
    context.reset(ResetDirective::SessionOnly)?;
    // Blocks go where they belong at once, and find what they refer to there.
    context.set_parameter(DParameter::StableOutBuffer(true))?;
    let mut next = FRAME_HEADER_BYTES_MAX;
    while out.len() < wanted && !frame.is_empty() {
        let (block, rest) = frame.split_at(next.min(frame.len()));
        frame = rest;
        let start = out.len();
        // What zstd asks for is the rest of a block and the header of the next one.
        next = context.decompress_stream(&mut OutBuffer::around_pos(out, start), &mut InBuffer::around(block))?;
    }
    Ok(())
}

/// Size of the window that a frame asks for, 0 if that is the frame's own size (RFC 8878, 3.1.1.1.2).
fn window_bytes(frame: &[u8]) -> Option<u64> {
    let descriptor = *frame.get(4)?;
    if descriptor & 0x20 != 0 {
        return Some(0);
    }
    let window = *frame.get(5)?;
    let base = 1u64 << (10 + (window >> 3));
    Some(base + base / 8 * u64::from(window & 7))
}

fn associated_data(keys: &Keys, header: &[u8; HEADER_BYTES], object_id: &[u8; 32]) -> [u8; 75] {
    let mut aad = [0; 75];
    aad[..11].copy_from_slice(b"vault/obj/1");
    aad[11..27].copy_from_slice(keys.repo.as_bytes());
    aad[27..43].copy_from_slice(&header[..16]);
    aad[43..].copy_from_slice(object_id);
    aad
}

fn cipher(keys: &Keys, kind: Kind) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(keys.for_box(kind).into())
}

fn nonce(header: &[u8; HEADER_BYTES]) -> XNonce {
    let bytes: [u8; 24] = header[16..].try_into().expect("40 - 16 is 24");
    XNonce::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RepoId;
    use crate::seal::keys::MasterKey;

    fn keys(repo: u8) -> Keys {
        Keys::derive(&MasterKey { secret: [7; 32], epoch: 0 }, RepoId([repo; 16]))
    }

    #[test]
    fn a_box_opens_only_as_what_it_was_sealed() {
        let id = [3; 32];
        let mut sealed = Vec::new();
        seal_box(&keys(1), Kind::DataBlob, &id, Compression::None, 5, b"hello", &[9; 32], &mut sealed);
        let open = |keys: &Keys, kind, id: &[u8; 32], bytes: &[u8]| {
            let mut payload = b"from before".to_vec();
            open_box(keys, kind, id, bytes, &mut payload).map(|_| payload)
        };
        assert_eq!(open(&keys(1), Kind::DataBlob, &id, &sealed).unwrap(), b"hello");
        let refused = |keys: &Keys, kind, id: &[u8; 32], bytes: &[u8]| open(keys, kind, id, bytes).is_err();
        assert!(refused(&keys(2), Kind::DataBlob, &id, &sealed), "another repository");
        assert!(refused(&keys(1), Kind::MetaBlob, &id, &sealed), "another kind");
        assert!(refused(&keys(1), Kind::DataBlob, &[4; 32], &sealed), "another object");
        let mut as_other_kind = sealed.clone();
        as_other_kind[4] = Kind::MetaBlob as u8;
        assert!(refused(&keys(1), Kind::MetaBlob, &id, &as_other_kind), "another kind, said so");
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&keys(1), Kind::DataBlob, &id, &flipped), "bit {bit} flipped");
        }
        for len in 0..sealed.len() {
            assert!(refused(&keys(1), Kind::DataBlob, &id, &sealed[..len]), "cut to {len}");
        }
    }

    #[test]
    fn repeated_entropy_does_not_repeat_a_nonce_for_another_message() {
        let nonce_of = |payload: &[u8], id: u8| {
            let mut out = Vec::new();
            seal_box(&keys(1), Kind::Index, &[id; 32], Compression::None, payload.len(), payload, &[0; 32], &mut out);
            out[16..40].to_vec()
        };
        assert_ne!(nonce_of(b"a", 0), nonce_of(b"b", 0));
        assert_ne!(nonce_of(b"a", 0), nonce_of(b"a", 1));
    }

    #[test]
    fn a_frame_that_lies_about_its_size_is_refused() {
        let keys = keys(1);
        let frame = zstd::bulk::compress(&[0; 1000], 3).unwrap();
        for (claimed, frame) in [(999, frame.clone()), (1001, frame.clone()), (1000, [&frame[..], &frame[..]].concat())]
        {
            let mut sealed = Vec::new();
            seal_box(&keys, Kind::Index, &NAMED_BY_HASH, Compression::Zstd, claimed, &frame, &[0; 32], &mut sealed);
            assert!(
                matches!(open_object(&keys, Kind::Index, &sealed[..]), Err(OpenError::Decompress { .. })),
                "{claimed}"
            );
        }
    }
}
