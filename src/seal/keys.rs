//! The master key and what is derived from it. One subkey a purpose, none serves two.
//!
//! Derivation: format-spec/keys.md.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::{ChunkId, RepoId};

/// 32 random bytes from which everything else is derived, and the epoch they belong to.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey {
    pub secret: [u8; 32],
    pub epoch: u32,
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterKey(epoch {}, [redacted])", self.epoch)
    }
}

/// What a box holds. Each kind has a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    DataBlob = 1,
    MetaBlob = 2,
    Directory = 3,
    Index = 4,
    Manifest = 5,
    Mark = 6,
    Lease = 7,
    Removal = 8,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Kind::DataBlob,
        Kind::MetaBlob,
        Kind::Directory,
        Kind::Index,
        Kind::Manifest,
        Kind::Mark,
        Kind::Lease,
        Kind::Removal,
    ];

    /// The word for it, in errors and as purpose of its key.
    pub fn word(self) -> &'static str {
        match self {
            Kind::DataBlob => "data-blob",
            Kind::MetaBlob => "meta-blob",
            Kind::Directory => "pack-directory",
            Kind::Index => "index",
            Kind::Manifest => "manifest",
            Kind::Mark => "mark",
            Kind::Lease => "lease",
            Kind::Removal => "removal",
        }
    }
}

/// The subkeys of one repository.
pub struct Keys {
    pub repo: RepoId,
    pub epoch: u32,
    boxes: [[u8; 32]; 8],
    nonce: [u8; 32],
    chunk_id: [u8; 32],
    list_id: [u8; 32],
    blob_list: [u8; 32],
    config_mac: [u8; 32],
    cache_row: [u8; 32],
    cdc_table: [u64; 256],
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.boxes.zeroize();
        for key in [
            &mut self.nonce,
            &mut self.chunk_id,
            &mut self.list_id,
            &mut self.blob_list,
            &mut self.config_mac,
            &mut self.cache_row,
        ] {
            key.zeroize();
        }
        self.cdc_table.zeroize();
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({}, [redacted])", self.repo)
    }
}

impl Keys {
    /// Derives all subkeys.
    pub fn derive(master: &MasterKey, repo: RepoId) -> Self {
        let mut material = [0; 52];
        material[..32].copy_from_slice(&master.secret);
        material[32..48].copy_from_slice(repo.as_bytes());
        material[48..].copy_from_slice(&master.epoch.to_le_bytes());
        let hasher = |purpose: &str| {
            let mut hasher = blake3::Hasher::new_derive_key(&format!("vault 2026-11 v1 {purpose}"));
            hasher.update(&material);
            hasher
        };
        let subkey = |purpose: &str| *hasher(purpose).finalize().as_bytes();
        let mut table_bytes = [0; 2048];
        hasher("cdc-table").finalize_xof().fill(&mut table_bytes);
        let mut cdc_table = [0; 256];
        for (word, bytes) in cdc_table.iter_mut().zip(table_bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let keys = Self {
            repo,
            epoch: master.epoch,
            boxes: Kind::ALL.map(|kind| subkey(kind.word())),
            nonce: subkey("nonce"),
            chunk_id: subkey("chunk-id"),
            list_id: subkey("list-id"),
            blob_list: subkey("blob-list"),
            config_mac: subkey("config-mac"),
            cache_row: subkey("cache-row"),
            cdc_table,
        };
        table_bytes.zeroize();
        material.zeroize();
        keys
    }

    /// The key of boxes of `kind`.
    pub(super) fn for_box(&self, kind: Kind) -> &[u8; 32] {
        &self.boxes[kind as usize - 1]
    }

    pub(super) fn for_nonces(&self) -> &[u8; 32] {
        &self.nonce
    }

    /// Names a chunk of an item's plaintext.
    pub fn chunk_id(&self, plaintext: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.chunk_id, plaintext).as_bytes())
    }

    /// Names a chunk of item lines or of a chunk list.
    pub fn list_id(&self, plaintext: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.list_id, plaintext).as_bytes())
    }

    /// Names what a blob holds, from its encoded contents.
    pub fn blob_list(&self, contents: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.blob_list, contents).as_bytes()
    }

    /// MAC of the config's text.
    pub fn config_mac(&self, text: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.config_mac, text).as_bytes()
    }

    /// Check value of a row of the local index, which is not part of the repository.
    pub fn cache_row(&self, row: &[u8]) -> [u8; 8] {
        *blake3::keyed_hash(&self.cache_row, row).as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    /// The gear table of this repository.
    pub fn cdc_table(&self) -> &[u64; 256] {
        &self.cdc_table
    }
}
