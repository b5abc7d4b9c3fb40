//! Small sealed JSON records beside the backups: marks and leases of prune, and removals.
//!
//! Fields and protocol: format-spec/records.md.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::format::FormatError;
use crate::id::{HostId, ObjectId};

/// Prune's word that these packs are dead and will be deleted once nobody can be using them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub time: Timestamp,
    pub host: String,
    pub packs: Vec<ObjectId>,
}

/// A running backup's word that it may rest on packs it has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub time: Timestamp,
    pub host: String,
    pub host_id: HostId,
    /// Process id, and when that process began in clock ticks since boot: tells a reused pid apart.
    pub pid: u32,
    pub pid_start: u64,
    /// The boot of the host that `pid` belongs to.
    pub boot_id: String,
    /// 16 random bytes as hex, so that two leases never share a name.
    pub nonce: String,
    /// In a renewed lease: when the store took in the first one of this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Timestamp>,
    /// Whether a prune holds it: it keeps other prunes away and no packs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prune: bool,
}

/// Word of a key holder that these backups were dropped on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub time: Timestamp,
    pub host: String,
    pub backups: Vec<RemovedBackup>,
    /// Older removal records that this one repeats and replaces.
    pub supersedes: Vec<ObjectId>,
}

/// One dropped backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedBackup {
    pub id: ObjectId,
    pub host_id: HostId,
    pub seq: u64,
}

/// Returns the JSON text that is sealed.
pub fn encode_record<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have only string keys")
}

/// Reads a record; `what` names it in errors.
pub fn decode_record<T: DeserializeOwned>(what: &'static str, text: &[u8]) -> Result<T, FormatError> {
    serde_json::from_slice(text).map_err(|source| FormatError::Json { what, source })
}
