//! A repository: typed objects on a backend. Opens and makes one, loads and saves what is in it.
//!
//! Names and order of writes: format-spec/README.md.

pub mod index;
pub mod keyring;
pub mod lease;
pub mod local_packs;
pub mod snapshots;
pub mod sorter;
pub mod state;
pub mod together;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use crate::backend::{Backend, BackendError, ObjectInfo, PutReceipt};
use crate::format::FormatError;
use crate::format::config::{Config, Feature, KNOWN_FEATURES};
use crate::id::{HostId, ObjectId, RepoId, SlotId};
use crate::limits::{INDEX_PUT_EVERY, RAW_BYTES_MAX};
use crate::seal::boxed::{HEADER_BYTES, OpenError, TAG_BYTES, open_object, seal_object};
use crate::seal::keys::{Keys, Kind, MasterKey};
use crate::seal::slot::{Secret, SlotError};

use index::LocalIndex;
use local_packs::LocalPacks;
use together::both;

/// Why something could not be done with a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    #[error("no repository in {location}: make one with `vault init`, or say where it is with --repo or VAULT_REPO")]
    NoRepository { location: String },
    #[error("{location} already holds a repository (or part of one): choose another place, or use it as it is")]
    Exists { location: String },
    #[error("{} with this password or key file: check VAULT_PASSWORD, --password-file, --key-file", no_slot_opens(.slots))]
    WrongKey { slots: usize },
    #[error("the repository uses {}, which this vault does not know: use vault {since} or newer to {action}", .names.join(", "))]
    Feature { names: Vec<String>, since: String, action: &'static str },
    #[error("{name} is damaged: {detail}; run `vault check --read-data` to see what else is")]
    Damaged { name: String, detail: String },
    #[error(
        "the repository in {location} went back in time: {detail}; if it was restored from a copy on purpose, run `vault repair state`"
    )]
    Rollback { location: String, detail: String },
    #[error("the last key slot cannot be removed: add another first with `vault key add`")]
    LastSlot,
    #[error("{detail}")]
    Refused { detail: String },
    #[error("the local index in {} cannot be used: {detail}; it may be deleted at any time", .path.display())]
    Cache { path: PathBuf, detail: String },
    #[error(
        "a temporary file in {} cannot be used: make room there, or set XDG_CACHE_HOME to a folder that has some", .folder.display()
    )]
    Scratch { folder: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("{name} cannot be read")]
    Format { name: String, source: FormatError },
    #[error("random numbers are not to be had from the operating system: {0}")]
    Random(getrandom::Error),
}

/// Where this installation keeps what is its own. Both may be deleted; the first only costs time.
#[derive(Debug, Clone)]
pub struct Places {
    /// The local index.
    pub cache: PathBuf,
    /// What this installation remembers of repositories, so that it notices one that went back in time.
    pub state: PathBuf,
}

/// How often a long run puts what keeps its work safe. Only tests have it otherwise than [`Pace::default`].
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long a lease holds, and when a new one is put.
    pub lease_holds: SignedDuration,
    pub lease_renew: Duration,
    /// How long a pack may be in the store before an index object lists it.
    pub index_put: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { lease_holds: lease::LEASE_HOLDS, lease_renew: lease::LEASE_RENEW, index_put: INDEX_PUT_EVERY }
    }
}

/// An opened repository. Shared by all threads of a command.
pub struct Repository {
    pub backend: Arc<dyn Backend>,
    pub keys: Arc<Keys>,
    pub config: Config,
    pub host_id: HostId,
    pub index: LocalIndex,
    pub state: state::State,
    /// This repository's own folder in the cache: the local index, temporary files, packs written last or being checked.
    pub cache: PathBuf,
    /// Packs that this host wrote itself, if the store is far away.
    pub written: Option<Arc<LocalPacks>>,
    pub pace: Pace,
    /// The key slot that opened it.
    pub slot: SlotId,
    master: MasterKey,
}

/// Returns `N` bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], RepoError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(RepoError::Random)?;
    Ok(bytes)
}

/// The folder of a kind of object that is named by the hash of its bytes; packs have one more level.
pub fn folder(kind: Kind) -> &'static str {
    match kind {
        Kind::Index => "index/",
        Kind::Manifest => "snapshots/",
        Kind::Mark => "marks/",
        Kind::Lease => "leases/",
        Kind::Removal => "removals/",
        Kind::Directory | Kind::DataBlob | Kind::MetaBlob => "packs/",
    }
}

/// Name of a pack in the backend.
pub fn pack_name(id: &ObjectId) -> String {
    let hex = id.hex();
    format!("packs/{}/{hex}", &hex[..2])
}

/// Name of any other object that is named by the hash of its bytes.
pub fn object_name(kind: Kind, id: &ObjectId) -> String {
    format!("{}{id}", folder(kind))
}

/// The id in a listed name, or `None` if it is not one of ours.
pub fn id_of_name(name: &str) -> Option<ObjectId> {
    name.rsplit('/').next()?.parse().ok()
}

impl Repository {
    /// Makes a repository with the standard settings on an empty backend and opens it.
    pub fn init(
        backend: Arc<dyn Backend>,
        secret: &Secret,
        label: &str,
        now: Timestamp,
        places: &Places,
    ) -> Result<Self, RepoError> {
        Self::init_with(backend, secret, label, Config::new(RepoId(random()?), now), places)
    }

    /// Makes the repository of `config` on an empty backend and opens it.
    pub fn init_with(
        backend: Arc<dyn Backend>,
        secret: &Secret,
        label: &str,
        config: Config,
        places: &Places,
    ) -> Result<Self, RepoError> {
        let location = backend.properties().location;
        let mut taken = false;
        for prefix in ["keys/", "snapshots/", "index/", "packs/"] {
            backend.list(prefix, &mut |_| {
                taken = true;
                Ok(())
            })?;
        }
        if taken {
            return Err(RepoError::Exists { location });
        }
        let (repo, now) = (config.repository, config.created);
        let master = MasterKey { secret: random()?, epoch: 0 };
        // The slot first: a config that can be seen can be opened.
        let slot = keyring::add(&*backend, repo, &master, secret, label, now)?;
        let keys = Keys::derive(&master, repo);
        let bytes = config.encode(|text| keys.config_mac(text));
        match backend.put("config", bytes.into()) {
            Err(BackendError::AlreadyExists { .. }) => return Err(RepoError::Exists { location }),
            other => other?,
        };
        Self::assemble(backend, config, master, slot, keys, places)
    }

    /// Opens a repository: reads the config, unlocks a slot, brings the local index up to date.
    pub fn open(backend: Arc<dyn Backend>, secret: &Secret, places: &Places) -> Result<Self, RepoError> {
        let location = backend.properties().location;
        let (slots, raw) = both(|| keyring::stored_slots(&*backend), || backend.get("config", None));
        let raw = match raw {
            Err(BackendError::NotFound { .. }) => return Err(RepoError::NoRepository { location }),
            other => other?,
        };
        let format = |source| RepoError::Format { name: "config".to_owned(), source };
        let unchecked = Config::decode(&raw).map_err(format)?;
        let repo = unchecked.repository();
        let (master, slot) = keyring::unlock(slots?, repo, secret)?;
        let keys = Keys::derive(&master, repo);
        let config = unchecked.check(|text| keys.config_mac(text)).map_err(format)?;
        require_features(&config.features.read, "read it")?;
        Self::assemble(backend, config, master, slot, keys, places)
    }

    fn assemble(
        backend: Arc<dyn Backend>,
        config: Config,
        master: MasterKey,
        slot: SlotId,
        keys: Keys,
        places: &Places,
    ) -> Result<Self, RepoError> {
        let keys = Arc::new(keys);
        let host_id = state::host_id(&places.state)?;
        let state = state::State::load(&places.state, config.repository);
        let index = LocalIndex::open(&places.cache, keys.clone())?;
        let cache = places.cache.join(keys.repo.hex());
        let is_far = backend.properties().is_far();
        let written = is_far.then(|| Arc::new(LocalPacks::new(cache.join("packs"))));
        Ok(Self { backend, keys, config, host_id, index, state, cache, written, pace: Pace::default(), slot, master })
    }

    /// Refuses if backups must not be added by this version.
    pub fn require_write(&self) -> Result<(), RepoError> {
        require_features(&self.config.features.write, "add backups")
    }

    /// Refuses if nothing must be removed by this version.
    pub fn require_delete(&self) -> Result<(), RepoError> {
        require_features(&self.config.features.delete, "remove anything")
    }

    /// The master key, for new slots.
    pub(crate) fn master(&self) -> &MasterKey {
        &self.master
    }

    /// Seals and puts an object that is named by the hash of its bytes. Returns its name, size and the store's time.
    pub fn save(&self, kind: Kind, plaintext: &[u8]) -> Result<Saved, RepoError> {
        let sealed = seal_object(&self.keys, kind, plaintext, &random()?);
        // Opened again before it leaves: a flipped bit in this host's memory must not become a stored object.
        if open_object(&self.keys, kind, &sealed[..]).ok().as_deref() != Some(plaintext) {
            let detail = "it did not survive being sealed; this host's memory may be faulty".to_owned();
            return Err(RepoError::Damaged { name: kind.word().to_owned(), detail });
        }
        let id = ObjectId::of(&sealed);
        let bytes = sealed.len() as u64;
        let receipt = self.backend.put(&object_name(kind, &id), sealed.into())?;
        Ok(Saved { id, bytes, receipt })
    }

    /// Gets and opens an object that is named by the hash of its bytes.
    pub fn load(&self, kind: Kind, id: &ObjectId) -> Result<Vec<u8>, RepoError> {
        let name = object_name(kind, id);
        let sealed = self.load_sealed(kind, id)?;
        open_object(&self.keys, kind, sealed).map_err(|error| damaged(&name, &error))
    }

    /// Gets an object and compares its bytes with its name.
    pub fn load_sealed(&self, kind: Kind, id: &ObjectId) -> Result<Bytes, RepoError> {
        let name = object_name(kind, id);
        let sealed = self.backend.get(&name, None)?;
        if sealed.len() > RAW_BYTES_MAX + HEADER_BYTES + TAG_BYTES {
            return Err(RepoError::Damaged { name, detail: format!("it has {} bytes, past the limit", sealed.len()) });
        }
        if ObjectId::of(&sealed) != *id {
            return Err(RepoError::Damaged { name, detail: "its bytes do not hash to its name".to_owned() });
        }
        Ok(sealed)
    }

    /// Lists the objects of a folder that have a name of ours.
    pub fn list(&self, kind: Kind) -> Result<Vec<(ObjectId, ObjectInfo)>, RepoError> {
        let mut found = Vec::new();
        self.backend.list(folder(kind), &mut |info| {
            if let Some(id) = id_of_name(&info.name) {
                found.push((id, info));
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// What came of saving an object.
#[derive(Debug, Clone, Copy)]
pub struct Saved {
    pub id: ObjectId,
    pub bytes: u64,
    pub receipt: PutReceipt,
}

/// An object whose sealed bytes could not be opened.
pub fn damaged(name: &str, error: &OpenError) -> RepoError {
    RepoError::Damaged { name: name.to_owned(), detail: error.to_string() }
}

impl From<SlotError> for RepoError {
    fn from(error: SlotError) -> Self {
        RepoError::Damaged { name: "keys/".to_owned(), detail: error.to_string() }
    }
}

fn require_features(features: &[Feature], action: &'static str) -> Result<(), RepoError> {
    let unknown: Vec<_> = features.iter().filter(|feature| !KNOWN_FEATURES.contains(&&*feature.name)).collect();
    match unknown.iter().map(|feature| feature.since.clone()).max_by_key(|since| version_key(since)) {
        None => Ok(()),
        Some(since) => Err(RepoError::Feature {
            names: unknown.iter().map(|feature| feature.name.clone()).collect(),
            since,
            action,
        }),
    }
}

fn no_slot_opens(slots: &usize) -> String {
    match slots {
        1 => "the one key slot does not open".to_owned(),
        slots => format!("none of the {slots} key slots opens"),
    }
}

/// Orders versions as people count: 0.10.0 comes after 0.9.2.
fn version_key(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Makes a folder that only its owner can enter.
pub(crate) fn private_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
