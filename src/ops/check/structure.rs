//! Reads every object but the packs, and follows every backup to chunks that the index knows.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use super::findings::Findings;
use super::{FindingKind, Garbage};
use crate::backend::{BackendError, ObjectInfo};
use crate::format::config::Config;
use crate::format::manifest::{ChunkEntry, Item, Manifest};
use crate::format::pack::BlobKind;
use crate::format::records::{Lease, Mark, Removal};
use crate::format::slot::Slot;
use crate::id::ObjectId;
use crate::limits::{LOOKED_UP_TOGETHER, SMALL_OBJECTS_AT_ONCE};
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::rows::Row;
use crate::ops::holdings::{Holdings, is_damage, of_kind};
use crate::ops::walk::{Sums, Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::together::{both, together};
use crate::repo::{RepoError, Repository, object_name, pack_name};
use crate::seal::keys::Kind;

/// What is wrong with the config and the key slots: kind, object, detail.
pub(super) fn config_and_keys(repo: &Repository) -> Result<Vec<(FindingKind, String, String)>, RepoError> {
    let (config, slots) = both(|| config(repo), || slots(repo));
    Ok(config?.into_iter().chain(slots?).collect())
}

fn config(repo: &Repository) -> Result<Option<(FindingKind, String, String)>, RepoError> {
    let wrong = |detail: String| Ok(Some((FindingKind::Config, "config".to_owned(), detail)));
    let raw = match repo.backend.get("config", None) {
        Err(error @ (BackendError::NotFound { .. } | BackendError::Damaged { .. })) => return wrong(error.to_string()),
        other => other?,
    };
    match Config::decode(&raw).and_then(|config| config.check(|text| repo.keys.config_mac(text))) {
        Ok(config) if config == repo.config => Ok(None),
        Ok(_) => wrong("it is of another repository".to_owned()),
        Err(error) => wrong(error.to_string()),
    }
}

fn slots(repo: &Repository) -> Result<Vec<(FindingKind, String, String)>, RepoError> {
    let mut names = Vec::new();
    repo.backend.list("keys/", &mut |info| {
        names.push(info.name);
        Ok(())
    })?;
    if names.is_empty() {
        let detail = "there is no key slot: nobody can open this repository again";
        return Ok(vec![(FindingKind::Key, "keys/".to_owned(), detail.to_owned())]);
    }
    let wrong = together(SMALL_OBJECTS_AT_ONCE, &names, |name| {
        let raw = match repo.backend.get(name, None) {
            Err(BackendError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let detail = match Slot::decode(&raw) {
            Ok(slot) if slot.repo == repo.config.repository && *name == format!("keys/{}", slot.id) => return Ok(None),
            Ok(_) => "it is a slot of another repository or under another name".to_owned(),
            Err(error) => error.to_string(),
        };
        Ok::<_, RepoError>(Some((FindingKind::Key, name.clone(), detail)))
    })?;
    Ok(wrong.into_iter().flatten().collect())
}

/// Loads every manifest from the store, whatever the local index holds. Returns those that cannot be read as errors.
pub(super) fn manifests(repo: &Repository) -> Result<(Manifests, Vec<(ObjectId, RepoError)>), RepoError> {
    let listed = repo.list(Kind::Manifest)?;
    let loaded = together(SMALL_OBJECTS_AT_ONCE, &listed, |(id, info)| {
        let loaded = repo.load(Kind::Manifest, id).and_then(|text| {
            Manifest::decode(&text).map_err(|source| RepoError::Format { name: info.name.clone(), source })
        });
        match loaded {
            // Dropped since the listing.
            Err(RepoError::Backend(BackendError::NotFound { .. })) => Ok(None),
            Err(error) if !is_damage(&error) => Err(error),
            loaded => Ok(Some((*id, loaded))),
        }
    })?;
    let (mut manifests, mut damaged) = (Vec::with_capacity(loaded.len()), Vec::new());
    for (id, loaded) in loaded.into_iter().flatten() {
        match loaded {
            Ok(manifest) => manifests.push((id, manifest)),
            Err(error) => damaged.push((id, error)),
        }
    }
    manifests.sort_by_key(|(id, manifest)| (manifest.time, manifest.seq, *id));
    Ok((manifests, damaged))
}

/// All manifests that can be read, oldest first.
pub(super) type Manifests = Vec<(ObjectId, Manifest)>;

/// Marks, leases and removal records; those that cannot be read as errors.
pub(super) struct Records {
    marks: Vec<(ObjectId, Timestamp, Result<Mark, RepoError>)>,
    leases: Vec<(ObjectId, Timestamp, Result<Lease, RepoError>)>,
    removals: Vec<(ObjectId, Timestamp, Result<Removal, RepoError>)>,
}

impl Records {
    pub(super) fn load(repo: &Repository) -> Result<Self, RepoError> {
        let marks = || repo.records_and_damage("mark", Kind::Mark);
        let leases = || repo.records_and_damage("lease", Kind::Lease);
        let removals = || repo.records_and_damage("removal", Kind::Removal);
        let (marks, (leases, removals)) = both(marks, || both(leases, removals));
        Ok(Self { marks: marks?, leases: leases?, removals: removals? })
    }
}

/// Looks at marks, leases and removal records, and follows the chains of manifests.
pub(super) fn records(
    repo: &Repository,
    records: Records,
    manifests: &[(ObjectId, Manifest)],
    findings: &mut Findings,
) -> Result<Garbage, RepoError> {
    let mut note = |kind, id: &ObjectId, error: RepoError| {
        findings.add(FindingKind::Record, object_name(kind, id), detail_of(&error));
    };
    let garbage = Garbage { marks: records.marks.len(), leases: records.leases.len(), ..Garbage::default() };
    for (id, _, mark) in records.marks {
        if let Err(error) = mark {
            note(Kind::Mark, &id, error);
        }
    }
    for (id, _, lease) in records.leases {
        if let Err(error) = lease {
            note(Kind::Lease, &id, error);
        }
    }
    let mut known: HashSet<ObjectId> = HashSet::new();
    for (id, _, removal) in records.removals {
        match removal {
            Ok(removal) => known.extend(removal.backups.iter().map(|backup| backup.id)),
            Err(error) => note(Kind::Removal, &id, error),
        }
    }
    known.extend(manifests.iter().map(|(id, _)| *id));
    known.extend(findings.all.iter().filter_map(|finding| crate::repo::id_of_name(&finding.object)));
    let mut lost: BTreeMap<ObjectId, &Manifest> = BTreeMap::new();
    for (_, manifest) in manifests {
        if let Some(previous) = manifest.previous.filter(|previous| !known.contains(previous)) {
            lost.entry(previous).or_insert(manifest);
        }
    }
    // One dropped since the manifests were listed has a record by now.
    let removed = if lost.is_empty() { HashSet::new() } else { repo.removed().unwrap_or_default() };
    for (id, next) in lost.into_iter().filter(|(id, _)| !removed.contains(id)) {
        let detail = format!(
            "the backup before number {} of host {} is gone, and no record says that it was dropped",
            next.seq, next.host
        );
        let finding = findings.add(FindingKind::LostBackup, object_name(Kind::Manifest, &id), detail);
        findings.hit(finding, &id, None);
    }
    Ok(garbage)
}

pub(super) fn index(holdings: &Holdings, findings: &mut Findings) {
    for (id, error) in &holdings.damaged {
        findings.add(FindingKind::Index, object_name(Kind::Index, id), detail_of(error));
    }
    for pack in &holdings.contradicted {
        findings.add(FindingKind::Index, pack_name(pack), "two index objects say different things about it");
    }
}

/// What a listing says of a pack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PackState {
    Whole,
    /// Missing or of another size, with the finding that says so.
    Lost(usize),
}

/// `listed` is a listing that was made after `holdings` were read.
pub(super) fn packs(
    listed: Vec<(ObjectId, ObjectInfo)>,
    holdings: &Holdings,
    findings: &mut Findings,
    garbage: &mut Garbage,
) -> Vec<PackState> {
    let mut stored: HashMap<ObjectId, u64> = HashMap::new();
    for (id, info) in listed {
        // One in another folder is not found where it is looked for.
        if info.name == pack_name(&id) {
            stored.insert(id, info.bytes);
        }
        if holdings.pack(&id).is_none() {
            garbage.packs_unlisted += 1;
            garbage.packs_unlisted_bytes += info.bytes;
        }
    }
    let states = holdings.packs.iter().map(|pack| {
        let wanted = u64::from(pack.bytes);
        match stored.get(&pack.id) {
            Some(&bytes) if bytes == wanted => PackState::Whole,
            Some(bytes) => {
                let detail = format!("it has {bytes} bytes, {wanted} were written");
                PackState::Lost(findings.add(FindingKind::PackSize, pack_name(&pack.id), detail))
            }
            None => {
                let detail = "it is listed in the index and not in the store";
                PackState::Lost(findings.add(FindingKind::MissingPack, pack_name(&pack.id), detail))
            }
        }
    });
    states.collect()
}

/// Follows every manifest and notes the copies of chunks that are reached. Returns the number of items.
pub(super) fn follow(
    reader: &Reader,
    manifests: &[(ObjectId, Manifest)],
    holdings: &Holdings,
    reached: &mut Bits,
    findings: &mut Findings,
    progress: &Progress,
) -> Result<u64, PipelineError> {
    let mut walker = Walker::new(reader);
    let mut items = 0;
    let mut wanted = Vec::new();
    for (id, manifest) in manifests {
        if progress.is_cancelled() {
            return Err(Cancelled.into());
        }
        let mut follow = Follow { holdings, reached, findings, wanted: &mut wanted, backup: *id };
        match walker.walk(0, manifest, &mut follow) {
            Ok(sums) => {
                let stated = Sums { items: manifest.items, bytes: manifest.bytes, rows: manifest.rows };
                if sums != stated {
                    let detail = format!("its items add up to {sums:?}, it says {stated:?}");
                    let finding = findings.add(FindingKind::Sums, object_name(Kind::Manifest, id), detail);
                    findings.hit(finding, id, None);
                }
            }
            Err(error) => {
                let finding = findings.add_list(&damage_only(error)?);
                findings.hit(finding, id, None);
            }
        }
        items += manifest.items;
        progress.add_items(1);
    }
    look_up(holdings, &mut wanted, reached, findings)?;
    Ok(items)
}

/// Marks what is reached, and notes what is reached and not there.
struct Follow<'a> {
    holdings: &'a Holdings,
    reached: &'a mut Bits,
    findings: &'a mut Findings,
    /// Chunks to be looked up, with their kind.
    wanted: &'a mut Vec<Row>,
    backup: ObjectId,
}

fn look_up(
    holdings: &Holdings,
    wanted: &mut Vec<Row>,
    reached: &mut Bits,
    findings: &mut Findings,
) -> Result<(), RepoError> {
    holdings.reach(wanted, reached, |missing| {
        if findings.missing.is_none() {
            let detail = "chunks that backups need are in no pack that the index lists; \
                          `vault repair index` looks for them in the packs";
            findings.missing = Some(findings.add(FindingKind::MissingChunks, "index/", detail));
        }
        findings.missing_chunks.insert(missing.prefix);
    })
}

impl Visit for Follow<'_> {
    fn chunk(&mut self, kind: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        self.wanted.push(of_kind(entry, kind));
        if self.wanted.len() >= LOOKED_UP_TOGETHER {
            look_up(self.holdings, self.wanted, self.reached, self.findings)?;
        }
        Ok(())
    }

    fn item(&mut self, item: &Item, walked: Result<(), PipelineError>) -> Result<(), PipelineError> {
        if let Err(error) = walked {
            let finding = self.findings.add_list(&damage_only(error)?);
            self.findings.hit(finding, &self.backup, Some(&item.path));
        }
        Ok(())
    }
}

/// Lets damage pass as a value; anything else ends the check.
pub(super) fn damage_only(error: PipelineError) -> Result<PipelineError, PipelineError> {
    match error {
        PipelineError::Repo(inner) if !is_damage(&inner) => Err(inner.into()),
        PipelineError::Cancelled(cancelled) => Err(cancelled.into()),
        damage => Ok(damage),
    }
}

pub(super) fn detail_of(error: &RepoError) -> String {
    match error {
        RepoError::Damaged { detail, .. } => detail.clone(),
        RepoError::Format { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// Counts what no backup reaches.
pub(super) fn dead(
    holdings: &Holdings,
    reached: Bits,
    packs: &[PackState],
    garbage: &mut Garbage,
) -> Result<(), RepoError> {
    // Copies beside the first are dead too, but which one is, prune decides: here all of them live.
    let live = holdings.with_bases(reached)?;
    let mut reached = vec![0u64; holdings.blobs.len()];
    let mut raw = vec![0u64; holdings.blobs.len()];
    for (position, chunk) in holdings.chunks.iter().enumerate() {
        let chunk = chunk?;
        raw[chunk.blob as usize] += u64::from(chunk.bytes);
        if live.get(position) {
            reached[chunk.blob as usize] += u64::from(chunk.bytes);
        }
    }
    for (pack, state) in holdings.packs.iter().zip(packs) {
        if *state != PackState::Whole {
            continue;
        }
        let blobs = pack.blobs.clone().map(|blob| blob as usize);
        if blobs.clone().all(|blob| reached[blob] == 0) {
            garbage.packs_dead += 1;
            garbage.dead_bytes += u64::from(pack.bytes);
        } else {
            let dead = |blob: usize| {
                let held = &holdings.blobs[blob];
                u64::from(held.stored) * (raw[blob] - held.kept_bytes(reached[blob])) / raw[blob].max(1)
            };
            garbage.dead_bytes += blobs.map(dead).sum::<u64>();
        }
    }
    Ok(())
}
