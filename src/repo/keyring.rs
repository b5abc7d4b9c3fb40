//! The key slots of a repository: unlock one, list, add, remove.
//!
//! Layout: format-spec/keys.md.

use bytes::Bytes;
use jiff::Timestamp;

use crate::backend::{Backend, BackendError};
use crate::format::slot::{LABEL_BYTES_MAX, Slot};
use crate::id::{RepoId, SlotId};
use crate::limits::{SLOT_BYTES_MAX, SLOTS_MAX, SMALL_OBJECTS_AT_ONCE};
use crate::repo::together::together;
use crate::repo::{RepoError, Repository, random};
use crate::seal::keys::MasterKey;
use crate::seal::slot::{Secret, SlotEntropy, SlotError, make_slot, open_slot};

const FOLDER: &str = "keys/";

/// Key slots as they are stored, by name.
pub(super) type StoredSlots = Vec<(String, Bytes)>;

/// Gets all slots of a repository.
pub(super) fn stored_slots(backend: &dyn Backend) -> Result<StoredSlots, BackendError> {
    let mut names = Vec::new();
    backend.list(FOLDER, &mut |info| {
        if info.bytes <= SLOT_BYTES_MAX as u64 && names.len() < SLOTS_MAX {
            names.push(info.name);
        }
        Ok(())
    })?;
    let got = together(SMALL_OBJECTS_AT_ONCE, &names, |name| match backend.get(name, None) {
        Err(BackendError::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    })?;
    Ok(names.into_iter().zip(got).filter_map(|(name, raw)| Some((name, raw?))).collect())
}

/// Returns those slots that are the repository's, oldest first. One that cannot be read is skipped if others can.
fn decode(stored: StoredSlots, repo: RepoId) -> Result<Vec<Slot>, RepoError> {
    let mut slots = Vec::new();
    let mut unreadable = None;
    for (name, raw) in stored {
        match Slot::decode(&raw) {
            Ok(slot) if slot.repo == repo && name == format!("{FOLDER}{}", slot.id) => slots.push(slot),
            Ok(_) => {
                let detail = "it is a slot of another repository or under another name".to_owned();
                unreadable = Some(RepoError::Damaged { name, detail });
            }
            Err(source) => unreadable = Some(RepoError::Format { name, source }),
        }
    }
    if let (true, Some(error)) = (slots.is_empty(), unreadable) {
        return Err(error);
    }
    slots.sort_by_key(|slot| (slot.created, slot.id));
    Ok(slots)
}

/// Returns the master key from the first slot that `secret` opens, and which slot that is.
pub(super) fn unlock(stored: StoredSlots, repo: RepoId, secret: &Secret) -> Result<(MasterKey, SlotId), RepoError> {
    let slots = decode(stored, repo)?;
    for slot in &slots {
        match open_slot(slot, secret) {
            Ok(master) => return Ok((master, slot.id)),
            Err(SlotError::WrongSecret) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RepoError::WrongKey { slots: slots.len() })
}

/// Adds a slot for `secret` and opens it again from the store before it says so.
pub fn add(
    backend: &dyn Backend,
    repo: RepoId,
    master: &MasterKey,
    secret: &Secret,
    label: &str,
    now: Timestamp,
) -> Result<SlotId, RepoError> {
    if label.len() > LABEL_BYTES_MAX {
        return Err(RepoError::Refused { detail: format!("a label has at most {LABEL_BYTES_MAX} bytes") });
    }
    let entropy = SlotEntropy { id: random()?, salt: random()?, nonce: random()? };
    let created = u64::try_from(now.as_second()).unwrap_or(0);
    let slot = make_slot(repo, master, secret, label, created, entropy)?;
    let name = format!("{FOLDER}{}", slot.id);
    backend.put(&name, slot.encode().into())?;
    let stored = backend.get(&name, None)?;
    let stored = Slot::decode(&stored).map_err(|source| RepoError::Format { name: name.clone(), source })?;
    if stored != slot {
        return Err(RepoError::Damaged { name, detail: "the store returned other bytes than it was given".to_owned() });
    }
    Ok(slot.id)
}

impl Repository {
    /// Returns all slots, oldest first.
    pub fn slots(&self) -> Result<Vec<Slot>, RepoError> {
        decode(stored_slots(&*self.backend)?, self.config.repository)
    }

    /// Adds a slot.
    pub fn add_slot(&self, secret: &Secret, label: &str, now: Timestamp) -> Result<SlotId, RepoError> {
        if self.slots()?.len() >= SLOTS_MAX {
            let detail = format!("a repository has at most {SLOTS_MAX} key slots: remove one with `vault key remove`");
            return Err(RepoError::Refused { detail });
        }
        add(&*self.backend, self.config.repository, self.master(), secret, label, now)
    }

    /// Removes a slot, but never the last.
    pub fn remove_slot(&self, id: &SlotId) -> Result<(), RepoError> {
        let slots = self.slots()?;
        if slots.iter().all(|slot| slot.id == *id) {
            return Err(RepoError::LastSlot);
        }
        self.backend.delete(&format!("{FOLDER}{id}"))?;
        Ok(())
    }
}
