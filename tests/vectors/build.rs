//! Makes objects from the pages of format-spec/, sharing nothing with the library: this is what the parsers are held to.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use crate::bytes::Given;

/// Master key, repository id and epoch: keys.md.
#[derive(Clone, Copy)]
pub struct Keys {
    pub master: [u8; 32],
    pub repository: [u8; 16],
    pub epoch: u32,
}

pub const KEYS: Keys =
    Keys { master: *b"thirty-two bytes of a master key", repository: *b"0123456789abcdef", epoch: 0 };

impl Keys {
    fn derive(&self, purpose: &str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_derive_key(&format!("vault 2026-11 v1 {purpose}"));
        hasher.update(&self.master).update(&self.repository).update(&self.epoch.to_le_bytes());
        hasher
    }

    pub fn sub(&self, purpose: &str) -> [u8; 32] {
        *self.derive(purpose).finalize().as_bytes()
    }

    pub fn table(&self) -> Vec<u64> {
        let mut bytes = [0; 2048];
        self.derive("cdc-table").finalize_xof().fill(&mut bytes);
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    pub fn name(&self, purpose: &str, data: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.sub(purpose), data).as_bytes()
    }

    pub fn given(&self) -> Given {
        Given::default().bytes("master", self.master).bytes("repository", self.repository).value("epoch", self.epoch)
    }
}

pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

/// Purpose of the key of boxes of a kind.
pub const PURPOSES: [&str; 8] =
    ["data-blob", "meta-blob", "pack-directory", "index", "manifest", "mark", "lease", "removal"];
pub const NO_ID: [u8; 32] = [0; 32];

/// A box: box.md. Every field can be set to what it should not be.
#[derive(Clone)]
pub struct Sealed {
    pub keys: Keys,
    /// Kind whose key seals it, if not the one in the header.
    pub key_of: Option<u8>,
    pub kind: u8,
    pub version: u8,
    pub suite: u8,
    pub compression: u8,
    pub length: Option<u32>,
    pub object_id: [u8; 32],
    pub payload: Vec<u8>,
}

impl Sealed {
    pub fn new(kind: u8, payload: &[u8]) -> Self {
        Self {
            keys: KEYS,
            key_of: None,
            kind,
            version: 1,
            suite: 1,
            compression: 0,
            length: None,
            object_id: NO_ID,
            payload: payload.to_vec(),
        }
    }

    pub fn frame(kind: u8, length: u32, frame: &[u8]) -> Self {
        Self { compression: 1, length: Some(length), ..Self::new(kind, frame) }
    }

    pub fn make(&self) -> Vec<u8> {
        let mut out = b"VLT1".to_vec();
        out.extend_from_slice(&[self.kind, self.version, self.suite, self.compression]);
        out.extend_from_slice(&self.keys.epoch.to_le_bytes());
        out.extend_from_slice(&self.length.unwrap_or(self.payload.len() as u32).to_le_bytes());
        let aad = [b"vault/obj/1", &self.keys.repository[..], &out, &self.object_id].concat();
        let mut hasher = blake3::Hasher::new_keyed(&self.keys.sub("nonce"));
        // In a vector the 32 random bytes are 32 zero bytes.
        hasher.update(&[0; 32]).update(&aad).update(&self.payload);
        let nonce: [u8; 24] = *hasher.finalize().as_bytes().first_chunk().expect("32 > 24");
        out.extend_from_slice(&nonce);
        let purpose = PURPOSES[usize::from(self.key_of.unwrap_or(self.kind)) - 1];
        let cipher = XChaCha20Poly1305::new(&self.keys.sub(purpose).into());
        out.extend(cipher.encrypt(&nonce.into(), Payload { msg: &self.payload, aad: &aad }).expect("short"));
        out
    }
}

/// A zstd frame of blocks that need no encoder (RFC 8878, 3.1.1).
pub struct Frame {
    pub magic: u32,
    /// Content size and how many bytes it takes in the header.
    pub size: Option<(u64, u8)>,
    /// Window descriptor; without one the content size is the window.
    pub window: Option<u8>,
    pub dictionary: Option<u8>,
    pub reserved: bool,
    pub blocks: Vec<Block>,
}

pub enum Block {
    Raw(Vec<u8>),
    Run(u8, usize),
}

impl Frame {
    pub fn raw(data: &[u8]) -> Self {
        Self::of(data.len() as u64, vec![Block::Raw(data.to_vec())])
    }

    pub fn of(size: u64, blocks: Vec<Block>) -> Self {
        Self { magic: 0xfd2f_b528, size: Some((size, 8)), window: None, dictionary: None, reserved: false, blocks }
    }

    pub fn make(&self) -> Vec<u8> {
        let mut out = self.magic.to_le_bytes().to_vec();
        let flag = match self.size {
            None | Some((_, 1)) => 0,
            Some((_, 2)) => 1,
            Some((_, 4)) => 2,
            Some(_) => 3,
        };
        let single = u8::from(self.window.is_none());
        out.push(flag << 6 | single << 5 | u8::from(self.reserved) << 3 | u8::from(self.dictionary.is_some()));
        out.extend(self.window);
        out.extend(self.dictionary);
        if let Some((size, bytes)) = self.size {
            let stored = if bytes == 2 { size - 256 } else { size };
            out.extend_from_slice(&stored.to_le_bytes()[..usize::from(bytes)]);
        }
        for (at, block) in self.blocks.iter().enumerate() {
            let last = u32::from(at + 1 == self.blocks.len());
            let (kind, size, content) = match block {
                Block::Raw(data) => (0, data.len(), data.clone()),
                Block::Run(byte, times) => (1, *times, vec![*byte]),
            };
            out.extend_from_slice(&(last | kind << 1 | (size as u32) << 3).to_le_bytes()[..3]);
            out.extend(content);
        }
        out
    }
}

/// A key slot: keys.md.
#[derive(Clone)]
pub struct Slot {
    pub magic: [u8; 4],
    pub version: u8,
    pub derivation: u8,
    pub label_length: Option<u16>,
    pub repository: [u8; 16],
    pub id: [u8; 16],
    pub costs: [u32; 3],
    pub label: Vec<u8>,
    pub secret: Vec<u8>,
    pub keys: Keys,
}

pub const PASSWORD: &[u8] = "correct horse, Größe".as_bytes();
pub const KEY_FILE: [u8; 32] = *b"thirty-two bytes from a key file";
pub const SLOT_ID: [u8; 16] = *b"name of the slot";

impl Slot {
    pub fn password() -> Self {
        Self { derivation: 1, costs: [19_456, 1, 1], secret: PASSWORD.to_vec(), ..Self::key_file() }
    }

    pub fn key_file() -> Self {
        Self {
            magic: *b"VLTK",
            version: 1,
            derivation: 2,
            label_length: None,
            repository: KEYS.repository,
            id: SLOT_ID,
            costs: [0; 3],
            label: b"laptop".to_vec(),
            secret: KEY_FILE.to_vec(),
            keys: KEYS,
        }
    }

    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend_from_slice(&[self.version, self.derivation]);
        out.extend_from_slice(&self.label_length.unwrap_or(self.label.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.repository);
        out.extend_from_slice(&self.id);
        self.costs.iter().for_each(|cost| out.extend_from_slice(&cost.to_le_bytes()));
        out.extend_from_slice(&1_790_000_000_u64.to_le_bytes());
        out.extend_from_slice(b"thirty-two bytes of slot's salt.");
        out.extend_from_slice(b"twenty-four bytes: nonce");
        out.extend_from_slice(&self.label);
        out
    }

    pub fn make(&self) -> Vec<u8> {
        let mut out = self.header();
        let (salt, nonce): (&[u8], [u8; 24]) = (&out[60..92], out[92..116].try_into().expect("24 bytes"));
        let mut prk = [0; 32];
        let [memory, passes, lanes] = self.costs;
        // Where the costs are the fault nothing need fit them: a reader stops before it derives anything.
        let derives = self.derivation == 1 && memory == 19_456 && (1..=4).contains(&passes) && (1..=4).contains(&lanes);
        if derives {
            let params = argon2::Params::new(memory, passes, lanes, Some(32)).expect("in range");
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
                .hash_password_into(&self.secret, salt, &mut prk)
                .expect("in range");
        } else {
            prk = blake3::derive_key("vault 2026-11 v1 slot key-file", &[&self.secret, salt].concat());
        }
        let material = [prk, *blake3::hash(&out).as_bytes()].concat();
        let kek = blake3::derive_key("vault 2026-11 v1 slot kek", &material);
        let commitment = blake3::derive_key("vault 2026-11 v1 slot commit", &material);
        let master = [&self.keys.master[..], &self.keys.epoch.to_le_bytes()].concat();
        let cipher = XChaCha20Poly1305::new(&kek.into());
        let wrapped = cipher.encrypt(&nonce.into(), Payload { msg: &master, aad: &out }).expect("short");
        out.extend_from_slice(&commitment);
        out.extend(wrapped);
        out
    }
}

/// The config of a line: config.md.
pub fn config(keys: &Keys, line: &str) -> Vec<u8> {
    format!("{line}\n{}\n", hex(keys.name("config-mac", line.as_bytes()))).into_bytes()
}

pub fn config_fields() -> Value {
    json!({
        "vault": 1,
        "needs": "0.1.0",
        "repository": hex(KEYS.repository),
        "created": "2026-11-21T12:00:00Z",
        "chunker": { "chunker": 1, "min": 16384, "avg": 65536, "max": 262_144 },
        "features": { "read": [], "write": [], "delete": [] },
    })
}

/// A chunk entry: chunking.md.
pub fn entry(id: [u8; 32], length: u32) -> Vec<u8> {
    [&id[..], &length.to_le_bytes()].concat()
}

/// The entry of a chunk of an item.
pub fn chunk(plaintext: &[u8]) -> Vec<u8> {
    entry(KEYS.name("chunk-id", plaintext), plaintext.len() as u32)
}

/// The entry of a chunk of a list.
pub fn list_chunk(plaintext: &[u8]) -> Vec<u8> {
    entry(KEYS.name("list-id", plaintext), plaintext.len() as u32)
}

/// The contents of a blob: blob.md.
pub fn contents(kind: u8, depth: u8, chunks: &[Vec<u8>], bases: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![kind, depth];
    out.extend_from_slice(&(chunks.len() as u16).to_le_bytes());
    out.extend_from_slice(&(bases.len() as u16).to_le_bytes());
    out.extend(chunks.concat());
    out.extend(bases.concat());
    out
}

/// The box of a blob, uncompressed.
pub fn blob(contents: &[u8], plaintext: &[u8]) -> Sealed {
    Sealed { object_id: KEYS.name("blob-list", contents), ..Sealed::new(contents[0], plaintext) }
}

/// One line of a directory: pack.md.
pub fn placed(offset: u32, stored: u32, contents: &[u8]) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &stored.to_le_bytes(), contents].concat()
}

/// Plaintext of the directory of blobs that lie back to back.
pub fn directory(blobs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut at = 0;
    let mut out = Vec::new();
    for (contents, sealed) in blobs {
        out.extend(placed(at, sealed.len() as u32, contents));
        at += sealed.len() as u32;
    }
    out
}

/// A pack of blobs, each its contents and its box.
pub fn pack(blobs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let bodies: Vec<u8> = blobs.iter().flat_map(|(_, sealed)| sealed.clone()).collect();
    let sealed = Sealed::new(3, &directory(blobs)).make();
    let length = sealed.len() as u32;
    [bodies, sealed, length.to_le_bytes().to_vec(), b"VLTPACK1".to_vec()].concat()
}

/// Plaintext of an index object: index.md. Each pack is its id, its size and its directory.
pub fn index(supersedes: &[[u8; 32]], packs: &[([u8; 32], u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = (supersedes.len() as u32).to_le_bytes().to_vec();
    out.extend(supersedes.concat());
    out.extend_from_slice(&(packs.len() as u32).to_le_bytes());
    for (id, size, directory) in packs {
        out.extend_from_slice(id);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
        out.extend_from_slice(directory);
    }
    out
}

/// A stream reference: manifest.md.
pub fn reference(depth: u64, entries: &[Vec<u8>]) -> Value {
    json!({ "depth": depth, "list": BASE64.encode(&entries.concat()) })
}

pub const HOST_ID: &str = "00112233445566778899aabbccddeeff";

pub fn manifest_fields(item_lines: Value) -> Value {
    json!({
        "vault": 1,
        "time": "2026-11-21T12:00:00Z",
        "source": "stdin",
        "name": "orders",
        "host": "db1",
        "host_id": HOST_ID,
        "seq": 1,
        "previous": null,
        "parent": null,
        "tags": ["nightly"],
        "warnings": [],
        "tool": "0.1.0",
        "engine": {},
        "consistency": {},
        "options": {},
        "items": 0,
        "rows": 0,
        "bytes": 0,
        "bytes_new": 0,
        "bytes_stored": 0,
        "seconds": 0.25,
        "chunkers": [{ "chunker": 1, "min": 16384, "avg": 65536, "max": 262_144 }],
        "item_lines": item_lines,
    })
}

pub fn item_fields(path: &str, data: &[u8], stream: Value) -> Value {
    json!({
        "path": path,
        "kind": "stream",
        "bytes": data.len(),
        "hash": blake3::hash(data).to_hex().to_string(),
        "stream": stream,
    })
}

/// Sets a field.
pub fn with(mut value: Value, field: &str, new: impl Into<Value>) -> Value {
    value[field] = new.into();
    value
}

/// Takes a field away.
pub fn without(mut value: Value, field: &str) -> Value {
    value.as_object_mut().expect("an object").shift_remove(field);
    value
}

/// Flips the lowest bit of the byte at `at`, counted from the end if negative.
pub fn flip(mut bytes: Vec<u8>, at: isize) -> Vec<u8> {
    let at = if at < 0 { bytes.len() - at.unsigned_abs() } else { at as usize };
    bytes[at] ^= 1;
    bytes
}

/// Where FastCDC cuts, read from chunking.md: the lengths of all chunks of `data`.
pub fn cuts(table: &[u64], min: usize, avg: usize, max: usize, mut data: &[u8]) -> Vec<usize> {
    const MASKS: [u64; 15] = [
        0x1803_5100,
        0x18_0003_5300,
        0x190_0035_3000,
        0x5900_0353_0000,
        0xd900_0353_0000,
        0xd901_0353_0000,
        0xd903_0353_0000,
        0xd903_1353_0000,
        0xd90f_0353_0000,
        0xd903_0353_7000,
        0xd907_0353_7000,
        0xd907_0753_7000,
        0xd917_0753_7000,
        0xd917_4753_7000,
        0xd917_6753_7000,
    ];
    let bits = (avg as f64).log2().round() as usize;
    let mut lengths = Vec::new();
    while !data.is_empty() {
        let window = data.len().min(max);
        let mut length = window;
        if data.len() > min {
            let mut h = 0u64;
            for at in (min..window - 1).step_by(2) {
                let mask = MASKS[if at + 1 < avg.min(window) { bits + 1 } else { bits - 1 } - 7];
                h = (h << 2).wrapping_add(table[usize::from(data[at])] << 1);
                if h & mask << 1 == 0 {
                    length = at;
                    break;
                }
                h = h.wrapping_add(table[usize::from(data[at + 1])]);
                if h & mask == 0 {
                    length = at + 1;
                    break;
                }
            }
        }
        lengths.push(length);
        data = &data[length..];
    }
    lengths
}
