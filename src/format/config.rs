//! The config object: what a reader must know before it has a key, under a MAC that it checks once it has one.
//!
//! Layout: format-spec/config.md.

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::format::FormatError;
use crate::format::manifest::ChunkerParams;
use crate::id::RepoId;
use crate::limits::{CHUNK_BYTES_AVG_STD, CHUNK_BYTES_MAX_STD, CHUNK_BYTES_MIN_STD, CONFIG_BYTES_MAX, DELTA_DEPTH_STD};

/// The repository format that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Features of repositories that this code knows, beyond what version 1 always has.
pub const KNOWN_FEATURES: &[&str] = &[];

/// Facts fixed when a repository was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// [`FORMAT_VERSION`].
    pub vault: u32,
    /// First release of vault that reads this format version.
    pub needs: String,
    pub repository: RepoId,
    pub created: Timestamp,
    /// Geometry of streams whose source asks for no other.
    pub chunker: ChunkerParams,
    #[serde(default)]
    pub delta: DeltaParams,
    pub features: Features,
}

/// How what changed is stored against what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaParams {
    /// Longest chains of blobs that a writer makes, up to [`DELTA_DEPTH_MAX`](crate::limits::DELTA_DEPTH_MAX); 0 for none.
    pub depth: u8,
}

impl Default for DeltaParams {
    fn default() -> Self {
        Self { depth: DELTA_DEPTH_STD }
    }
}

/// Features in use, by what a program that does not know them must refuse to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features {
    /// Must be known to do anything.
    pub read: Vec<Feature>,
    /// Must be known to add backups.
    pub write: Vec<Feature>,
    /// Must be known to remove anything.
    pub delete: Vec<Feature>,
}

/// A feature and the first release that knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub since: String,
}

impl Config {
    /// The config of a new repository.
    pub fn new(repository: RepoId, created: Timestamp) -> Self {
        Self {
            vault: FORMAT_VERSION,
            needs: "0.1.0".to_owned(),
            repository,
            created,
            chunker: standard_chunker(),
            delta: DeltaParams::default(),
            features: Features::default(),
        }
    }

    /// Returns the object: the JSON text, a newline, the MAC of the text in hex, a newline.
    pub fn encode(&self, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> Vec<u8> {
        let mut out = serde_json::to_vec(self).expect("a config has only string keys");
        let mac = HEXLOWER.encode(&mac(&out));
        out.push(b'\n');
        out.extend_from_slice(mac.as_bytes());
        out.push(b'\n');
        out
    }

    /// Reads the object. Nothing in it may be believed before [`UncheckedConfig::check`].
    pub fn decode(raw: &[u8]) -> Result<UncheckedConfig<'_>, FormatError> {
        if raw.len() > CONFIG_BYTES_MAX {
            return Err(FormatError::Range { what: "config size", value: raw.len() as u64 });
        }
        let end = raw.iter().position(|&b| b == b'\n').ok_or(FormatError::Truncated { what: "config" })?;
        let (text, mac) = (&raw[..end], &raw[end + 1..]);
        // The version is read by itself first: a newer config may have any other fields.
        #[derive(Deserialize)]
        struct Head {
            vault: u32,
            #[serde(default)]
            needs: String,
        }
        let json = |source| FormatError::Json { what: "config", source };
        let head: Head = serde_json::from_slice(text).map_err(json)?;
        // Nobody has vouched for this text yet, so only what looks like a version is passed on.
        let is_version = !head.needs.is_empty() && head.needs.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if head.vault > FORMAT_VERSION && is_version && head.needs.len() <= 32 {
            return Err(FormatError::Newer { what: "repository", found: head.vault, needs: head.needs });
        }
        if head.vault != FORMAT_VERSION {
            return Err(FormatError::Version { what: "repository", found: head.vault, known: FORMAT_VERSION });
        }
        let config = serde_json::from_slice(text).map_err(json)?;
        let mac = mac.strip_suffix(b"\n").ok_or(FormatError::Truncated { what: "config" })?;
        let mac = HEXLOWER.decode(mac).ok().and_then(|mac| mac.try_into().ok());
        Ok(UncheckedConfig { config, text, mac: mac.ok_or(FormatError::Text { what: "config MAC" })? })
    }
}

/// The geometry of streams whose source asks for no other.
pub fn standard_chunker() -> ChunkerParams {
    ChunkerParams { chunker: 1, min: CHUNK_BYTES_MIN_STD, avg: CHUNK_BYTES_AVG_STD, max: CHUNK_BYTES_MAX_STD }
}

/// A config whose MAC has not been compared yet.
#[derive(Debug)]
pub struct UncheckedConfig<'a> {
    config: Config,
    text: &'a [u8],
    mac: [u8; 32],
}

impl UncheckedConfig<'_> {
    /// The repository this config claims to be of; enough to find a key with.
    pub fn repository(&self) -> RepoId {
        self.config.repository
    }

    /// Returns the config if its MAC is right.
    pub fn check(self, mac: impl FnOnce(&[u8]) -> [u8; 32]) -> Result<Config, FormatError> {
        // blake3::Hash compares in constant time.
        if blake3::Hash::from_bytes(mac(self.text)) != blake3::Hash::from_bytes(self.mac) {
            return Err(FormatError::Mac { what: "config" });
        }
        Ok(self.config)
    }
}
