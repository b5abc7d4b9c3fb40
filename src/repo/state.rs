//! What this installation remembers beside the repository: who it is, and the last manifest it saw of every host.
//!
//! Small JSON files under the user's state folder. Losing them loses the notice of a rollback, nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::id::{HostId, ObjectId, RepoId};
use crate::repo::{RepoError, private_folder, random};

/// The last manifest seen of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub seq: u64,
    pub id: ObjectId,
}

/// What is remembered of one repository.
pub struct State {
    path: PathBuf,
    seen: Mutex<BTreeMap<String, Seen>>,
}

/// Returns the id of this installation, drawn at first use.
pub fn host_id(folder: &Path) -> Result<HostId, RepoError> {
    let path = folder.join("host-id");
    if let Some(id) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(id);
    }
    let id = HostId(random()?);
    // Where nothing can be kept, every run is a host of its own; that costs a broken chain and no backup.
    if let Err(error) = private_folder(folder).and_then(|()| replace(&path, id.hex().as_bytes())) {
        tracing::warn!("{} cannot be written ({error}): this run counts as a host of its own", path.display());
    }
    // Another process may have been first.
    Ok(std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(id))
}

impl State {
    /// Reads what is remembered; nothing, if nothing can be read.
    pub fn load(folder: &Path, repo: RepoId) -> Self {
        let path = folder.join(format!("{repo}.json"));
        let seen = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, seen: Mutex::new(seen) }
    }

    /// The last manifest seen of every host.
    pub fn seen(&self) -> Vec<(HostId, Seen)> {
        let seen = self.seen.lock().expect("no code panics while it holds this lock");
        seen.iter().filter_map(|(host, seen)| Some((host.parse().ok()?, *seen))).collect()
    }

    /// Remembers the newest manifest of each host; older ones never replace newer ones.
    pub fn remember(&self, newest: impl IntoIterator<Item = (HostId, Seen)>) {
        let mut seen = self.seen.lock().expect("no code panics while it holds this lock");
        let mut changed = false;
        for (host, new) in newest {
            let slot = seen.entry(host.hex()).or_insert(Seen { seq: 0, id: new.id });
            if new.seq > slot.seq {
                *slot = new;
                changed = true;
            }
        }
        if changed {
            self.write(&seen);
        }
    }

    /// Forgets everything: for a repository that went back in time on purpose.
    pub fn reset(&self) {
        let mut seen = self.seen.lock().expect("no code panics while it holds this lock");
        seen.clear();
        self.write(&seen);
    }

    fn write(&self, seen: &BTreeMap<String, Seen>) {
        let text = serde_json::to_vec(seen).expect("only string keys");
        let folder = self.path.parent().expect("the path was joined to a folder");
        if let Err(error) = private_folder(folder).and_then(|()| replace(&self.path, &text)) {
            tracing::warn!("{} cannot be written ({error}): a rollback would go unnoticed", self.path.display());
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let folder = path.parent().expect("callers pass files inside a folder");
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
