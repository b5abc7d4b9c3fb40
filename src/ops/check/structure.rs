//! Reads every object but the packs, and follows every backup to chunks that the index knows.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::findings::Findings;
use super::{FindingKind, Garbage};
use crate::backend::BackendError;
use crate::format::config::Config;
use crate::format::manifest::{ChunkEntry, Item, Manifest};
use crate::format::pack::BlobKind;
use crate::format::records::{Lease, Mark, Removal};
use crate::format::slot::Slot;
use crate::id::ObjectId;
use crate::limits::LOOKED_UP_TOGETHER;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::rows::Row;
use crate::ops::holdings::{Holdings, is_damage, of_kind};
use crate::ops::walk::{Sums, Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::{RepoError, Repository, object_name, pack_name};
use crate::seal::keys::Kind;

pub(super) fn config_and_keys(repo: &Repository, findings: &mut Findings) -> Result<(), RepoError> {
    let raw = match repo.backend.get("config", None) {
        Err(error @ (BackendError::NotFound { .. } | BackendError::Damaged { .. })) => {
            findings.add(FindingKind::Config, "config", error.to_string());
            None
        }
        other => Some(other?),
    };
    if let Some(raw) = raw {
        match Config::decode(&raw).and_then(|config| config.check(|text| repo.keys.config_mac(text))) {
            Ok(config) if config == repo.config => {}
            Ok(_) => {
                findings.add(FindingKind::Config, "config", "it is of another repository");
            }
            Err(error) => {
                findings.add(FindingKind::Config, "config", error.to_string());
            }
        }
    }
    let mut names = Vec::new();
    repo.backend.list("keys/", &mut |info| {
        names.push(info.name);
        Ok(())
    })?;
    if names.is_empty() {
        findings.add(FindingKind::Key, "keys/", "there is no key slot: nobody can open this repository again");
    }
    for name in names {
        let raw = match repo.backend.get(&name, None) {
            Err(BackendError::NotFound { .. }) => continue,
            other => other?,
        };
        match Slot::decode(&raw) {
            Ok(slot) if slot.repo == repo.config.repository && name == format!("keys/{}", slot.id) => {}
            Ok(_) => {
                findings.add(FindingKind::Key, name, "it is a slot of another repository or under another name");
            }
            Err(error) => {
                findings.add(FindingKind::Key, name, error.to_string());
            }
        }
    }
    Ok(())
}

/// Loads every manifest from the store, whatever the local index holds.
pub(super) fn manifests(repo: &Repository, findings: &mut Findings) -> Result<Vec<(ObjectId, Manifest)>, RepoError> {
    let mut manifests = Vec::new();
    for (id, info) in repo.list(Kind::Manifest)? {
        let loaded = repo.load(Kind::Manifest, &id).and_then(|text| {
            Manifest::decode(&text).map_err(|source| RepoError::Format { name: info.name.clone(), source })
        });
        match loaded {
            Ok(manifest) => manifests.push((id, manifest)),
            // Dropped since the listing.
            Err(RepoError::Backend(BackendError::NotFound { .. })) => {}
            Err(error) if is_damage(&error) => {
                let finding = findings.add(FindingKind::Manifest, info.name, detail_of(&error));
                findings.hit(finding, &id, None);
            }
            Err(error) => return Err(error),
        }
    }
    manifests.sort_by_key(|(id, manifest)| (manifest.time, manifest.seq, *id));
    Ok(manifests)
}

/// Reads marks, leases and removal records, and follows the chains of manifests.
pub(super) fn records(
    repo: &Repository,
    manifests: &[(ObjectId, Manifest)],
    findings: &mut Findings,
) -> Result<Garbage, RepoError> {
    let mut note = |kind, id: &ObjectId, error: RepoError| {
        findings.add(FindingKind::Record, object_name(kind, id), detail_of(&error));
    };
    let mut garbage = Garbage::default();
    for (id, _, mark) in repo.records_and_damage::<Mark>("mark", Kind::Mark)? {
        garbage.marks += 1;
        if let Err(error) = mark {
            note(Kind::Mark, &id, error);
        }
    }
    for (id, _, lease) in repo.records_and_damage::<Lease>("lease", Kind::Lease)? {
        garbage.leases += 1;
        if let Err(error) = lease {
            note(Kind::Lease, &id, error);
        }
    }
    let mut known: HashSet<ObjectId> = HashSet::new();
    for (id, _, removal) in repo.records_and_damage::<Removal>("removal", Kind::Removal)? {
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

pub(super) fn index(repo: &Repository, holdings: &Holdings, findings: &mut Findings) -> Result<(), RepoError> {
    for (id, error) in &holdings.damaged {
        findings.add(FindingKind::Index, object_name(Kind::Index, id), detail_of(error));
    }
    for pack in &holdings.contradicted {
        findings.add(FindingKind::Index, pack_name(pack), "two index objects say different things about it");
    }
    // What can be read is enough to go on with.
    repo.load_index(&Progress::default())?;
    Ok(())
}

/// What a listing says of a pack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PackState {
    Whole,
    /// Missing or of another size, with the finding that says so.
    Lost(usize),
}

pub(super) fn packs(
    repo: &Repository,
    holdings: &Holdings,
    findings: &mut Findings,
    garbage: &mut Garbage,
) -> Result<Vec<PackState>, RepoError> {
    let mut stored: HashMap<ObjectId, u64> = HashMap::new();
    for (id, info) in repo.list(Kind::Directory)? {
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
    Ok(states.collect())
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

fn detail_of(error: &RepoError) -> String {
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
