//! What the backups take: plaintext and stored bytes, by source and in all, and what each backup alone holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::limits::LOOKED_UP_TOGETHER;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::rows::Row;
use crate::ops::holdings::{Holdings, row_of};
use crate::ops::retention::Group;
use crate::ops::walk::{Owner, Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::{RepoError, Repository};
use crate::seal::keys::Kind;

/// Sums over the repository.
#[derive(Debug, Clone, Serialize)]
pub struct StatsReport {
    pub backups: usize,
    /// Plaintext of all items of all backups.
    pub bytes_logical: u64,
    /// Plaintext of all chunks that some backup reaches, each counted once.
    pub bytes_unique: u64,
    /// All packs, index objects and manifests in the store.
    pub bytes_stored: u64,
    /// Of these, packs and parts of packs that no backup needs.
    pub bytes_unused: u64,
    /// Of these, what no backup reaches and yet others rest on.
    pub bytes_bases: u64,
    /// How many bytes more blobs with bases would take without them, if they became as small as those without.
    pub bytes_saved_estimate: u64,
    /// `bytes_logical` by `bytes_stored`.
    pub ratio: f64,
    pub packs: usize,
    pub chunks: usize,
    /// Blobs of data that backups need, by how deep they rest on others; from 0, which stand alone.
    pub depths: Vec<DepthStats>,
    pub sources: Vec<SourceStats>,
    /// Oldest first.
    pub each: Vec<BackupStats>,
}

/// Blobs of data of which backups need anything, as whole blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DepthStats {
    pub depth: u8,
    pub blobs: u64,
    /// Plaintext.
    pub bytes: u64,
    pub bytes_stored: u64,
}

/// Sums over the backups of one source, name and host.
#[derive(Debug, Clone, Serialize)]
pub struct SourceStats {
    #[serde(flatten)]
    pub group: Group,
    pub backups: usize,
    pub bytes_logical: u64,
    /// Stored bytes of what these backups reach, by the share of each blob. What sources share counts for each of them.
    pub bytes_stored: u64,
    pub ratio: f64,
}

/// What one backup is and holds.
#[derive(Debug, Clone, Serialize)]
pub struct BackupStats {
    pub id: ObjectId,
    pub time: Timestamp,
    #[serde(flatten)]
    pub group: Group,
    pub items: u64,
    pub bytes: u64,
    /// Plaintext that was new when it was taken.
    pub bytes_new: u64,
    /// Plaintext, and stored bytes, that no other backup reaches: what dropping it frees.
    pub bytes_alone: u64,
    pub bytes_alone_stored: u64,
}

/// Follows all backups twice: once for what each holds alone, once for what each source holds.
pub fn stats(repo: &Arc<Repository>, progress: &Progress) -> Result<StatsReport, PipelineError> {
    progress.phase("following the backups");
    let snapshots = repo.snapshots()?;
    repo.load_index(&Progress::default())?;
    let holdings = Holdings::load(repo)?;
    if let Some((_, error)) = holdings.damaged.first() {
        let detail = format!("{error}; `vault repair index` makes the index anew");
        return Err(RepoError::Damaged { name: "the index".to_owned(), detail }.into());
    }
    let mut groups: BTreeMap<Group, Owner> = BTreeMap::new();
    let group_of = |snapshot: &crate::repo::snapshots::Snapshot| Group {
        source: snapshot.manifest.source.clone(),
        name: snapshot.manifest.name.clone(),
        host: snapshot.manifest.host.clone(),
    };
    for snapshot in &snapshots {
        groups.entry(group_of(snapshot)).or_insert(0);
    }
    for (number, owner) in groups.values_mut().enumerate() {
        *owner = number as Owner;
    }
    progress.add_items_total(2 * snapshots.len() as u64);
    let reader = Reader::new(repo.clone(), 1, progress.clone());

    let mut reached = Reached::new(&holdings);
    let mut walker = Walker::new(&reader);
    for (number, snapshot) in snapshots.iter().enumerate() {
        stop_if_asked(progress)?;
        reached.owner = number as Owner;
        walker.walk(reached.owner, &snapshot.manifest, &mut reached)?;
        progress.add_items(1);
    }
    let (by_any, by_several) = reached.finish()?;
    // For the sources, each group is walked on its own: what two share counts for both. What one backup holds alone, its
    // group meets once.
    let mut by_group = vec![0u64; groups.len()];
    let mut alone = vec![Alone::default(); snapshots.len()];
    for (group, number) in &groups {
        let mut in_group = InGroup::new(&holdings, &by_several, &mut alone);
        let mut walker = Walker::new(&reader);
        for (number, snapshot) in snapshots.iter().enumerate().filter(|(_, snapshot)| group_of(snapshot) == *group) {
            stop_if_asked(progress)?;
            in_group.owner = number as Owner;
            walker.walk(0, &snapshot.manifest, &mut in_group)?;
            progress.add_items(1);
        }
        in_group.look_up()?;
        by_group[*number as usize] = share(&holdings, &in_group.by_group)?;
    }

    let mut each = Vec::with_capacity(snapshots.len());
    let (mut bytes_unique, mut chunks) = (0, 0);
    holdings.chunks.each_run(|start, copies| {
        chunks += 1;
        if by_any.get(start) {
            bytes_unique += u64::from(copies[0].bytes);
        }
        Ok::<_, RepoError>(())
    })?;
    for (number, snapshot) in snapshots.iter().enumerate() {
        each.push(BackupStats {
            id: snapshot.id,
            time: snapshot.manifest.time,
            group: group_of(snapshot),
            items: snapshot.manifest.items,
            bytes: snapshot.manifest.bytes,
            bytes_new: snapshot.manifest.bytes_new,
            bytes_alone: alone[number].plain,
            bytes_alone_stored: alone[number].stored.round() as u64,
        });
    }
    let mut bytes_stored = 0;
    let mut packs = 0;
    let mut packs_bytes = 0;
    for kind in [Kind::Directory, Kind::Index, Kind::Manifest] {
        for (_, info) in repo.list(kind)? {
            bytes_stored += info.bytes;
            if kind == Kind::Directory {
                packs += 1;
                packs_bytes += info.bytes;
            }
        }
    }
    let reached = share(&holdings, &by_any)?;
    let needed = holdings.with_bases(by_any)?;
    let used = share(&holdings, &needed)?;
    let depths = by_depth(&holdings, &needed)?;
    let bytes_logical = snapshots.iter().map(|snapshot| snapshot.manifest.bytes).sum();
    let sources = groups
        .into_iter()
        .map(|(group, number)| {
            let members = each.iter().filter(|backup| backup.group == group);
            let (backups, bytes_logical) =
                members.fold((0, 0), |(backups, bytes), backup| (backups + 1, bytes + backup.bytes));
            let bytes_stored = by_group[number as usize];
            SourceStats { group, backups, bytes_logical, bytes_stored, ratio: ratio(bytes_logical, bytes_stored) }
        })
        .collect();
    Ok(StatsReport {
        backups: snapshots.len(),
        bytes_logical,
        bytes_unique,
        bytes_stored,
        bytes_unused: packs_bytes.saturating_sub(used),
        bytes_bases: used.saturating_sub(reached),
        bytes_saved_estimate: saved_estimate(&depths),
        ratio: ratio(bytes_logical, bytes_stored),
        packs,
        chunks,
        depths,
        sources,
        each,
    })
}

fn stop_if_asked(progress: &Progress) -> Result<(), PipelineError> {
    if progress.is_cancelled() { Err(Cancelled.into()) } else { Ok(()) }
}

fn ratio(logical: u64, stored: u64) -> f64 {
    if stored == 0 { 0.0 } else { (100.0 * logical as f64 / stored as f64).round() / 100.0 }
}

/// The blobs of data in which a chosen chunk lies, by their depth.
fn by_depth(holdings: &Holdings, chosen: &Bits) -> Result<Vec<DepthStats>, RepoError> {
    let mut depths: Vec<DepthStats> = Vec::new();
    let needed = holdings.blobs_with(chosen)?;
    for (number, blob) in holdings.blobs.iter().enumerate() {
        if blob.kind != BlobKind::Data || !needed.get(number) {
            continue;
        }
        while depths.len() <= usize::from(blob.depth) {
            let depth = u8::try_from(depths.len()).expect("a depth is a byte");
            depths.push(DepthStats { depth, ..DepthStats::default() });
        }
        let sums = &mut depths[usize::from(blob.depth)];
        sums.blobs += 1;
        sums.bytes += u64::from(blob.raw_bytes);
        sums.bytes_stored += u64::from(blob.stored);
    }
    Ok(depths)
}

/// What blobs with bases would take more if their plaintext became as small as that of blobs without.
fn saved_estimate(depths: &[DepthStats]) -> u64 {
    let Some((alone, deltas)) = depths.split_first() else { return 0 };
    let (bytes, stored) = deltas.iter().fold((0, 0), |sums, one| (sums.0 + one.bytes, sums.1 + one.bytes_stored));
    let share = alone.bytes_stored as f64 / alone.bytes.max(1) as f64;
    ((bytes as f64 * share).round() as u64).saturating_sub(stored)
}

/// Stored bytes of the chunks chosen, by the share of each blob, with the packs' directories in the same share.
fn share(holdings: &Holdings, chosen: &Bits) -> Result<u64, RepoError> {
    let mut raw = vec![0u64; holdings.blobs.len()];
    // Of copies the first counts.
    holdings.chunks.each_run(|start, copies| {
        if chosen.get(start) {
            raw[copies[0].blob as usize] += u64::from(copies[0].bytes);
        }
        Ok::<_, RepoError>(())
    })?;
    let mut sum = 0;
    for pack in &holdings.packs {
        let (mut stored, mut of) = (0f64, 0f64);
        for blob in pack.blobs.clone().map(|blob| blob as usize) {
            let held = &holdings.blobs[blob];
            of += f64::from(held.stored);
            let kept = held.kept_bytes(raw[blob]);
            stored += f64::from(held.stored) * kept as f64 / f64::from(held.raw_bytes.max(1));
        }
        if stored > 0.0 {
            sum += (stored * f64::from(pack.bytes) / of).round() as u64;
        }
    }
    Ok(sum)
}

/// Notes which chunks are reached by any backup, and which by several. Of copies the first counts.
struct Reached<'a> {
    holdings: &'a Holdings,
    by_any: Bits,
    by_several: Bits,
    /// What the backup that is being walked reaches, as far as it was looked up.
    by_this: (Owner, Bits),
    owner: Owner,
    /// Chunks to be looked up, with their owners.
    wanted: Vec<Row>,
}

impl<'a> Reached<'a> {
    fn new(holdings: &'a Holdings) -> Self {
        let none = Bits::new(holdings.chunks.len());
        let by_this = (0, none.clone());
        Self { holdings, by_any: none.clone(), by_several: none, by_this, owner: 0, wanted: Vec::new() }
    }

    /// Returns what any backup reaches, and what several do.
    fn finish(mut self) -> Result<(Bits, Bits), RepoError> {
        self.look_up()?;
        Ok((self.by_any, self.by_several))
    }

    fn look_up(&mut self) -> Result<(), RepoError> {
        let Self { holdings, by_any, by_several, by_this: (this, by_this), owner, wanted } = self;
        // Owners come one after the other: of those before, only what `this` had reached is asked for.
        let (before, now) = (*this, *owner);
        let reached_before = by_this.clone();
        if before != now {
            by_this.clear();
            *this = now;
        }
        // The same chunk of the same owner comes twice in a row, as the rows are sorted.
        let mut last = None;
        holdings.chunks.find_all(wanted, |wanted, position, copies| {
            let again = last.replace((wanted.prefix, wanted.blob)) == Some((wanted.prefix, wanted.blob));
            if copies.is_empty() || again || (wanted.blob == before && reached_before.get(position)) {
                return Ok(());
            }
            if !by_any.set(position) {
                by_several.set(position);
            }
            if wanted.blob == now {
                by_this.set(position);
            }
            Ok(())
        })
    }
}

impl Visit for Reached<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        self.wanted.push(row_of(entry, self.owner));
        if self.wanted.len() >= LOOKED_UP_TOGETHER { Ok(self.look_up()?) } else { Ok(()) }
    }
}

/// What a backup holds alone.
#[derive(Clone, Default)]
struct Alone {
    plain: u64,
    stored: f64,
}

/// Notes what a group reaches, and sums up what each of its backups holds alone.
struct InGroup<'a> {
    holdings: &'a Holdings,
    by_several: &'a Bits,
    alone: &'a mut [Alone],
    by_group: Bits,
    owner: Owner,
    /// Chunks to be looked up, with their owners.
    wanted: Vec<Row>,
}

impl<'a> InGroup<'a> {
    fn new(holdings: &'a Holdings, by_several: &'a Bits, alone: &'a mut [Alone]) -> Self {
        let by_group = Bits::new(holdings.chunks.len());
        Self { holdings, by_several, alone, by_group, owner: 0, wanted: Vec::new() }
    }

    fn look_up(&mut self) -> Result<(), RepoError> {
        let Self { holdings, by_several, alone, by_group, wanted, .. } = self;
        holdings.chunks.find_all(wanted, |wanted, position, copies| {
            if let Some(chunk) = copies.first()
                && by_group.set(position)
                && !by_several.get(position)
            {
                let (blob, alone) = (holdings.blob_of(chunk), &mut alone[wanted.blob as usize]);
                alone.plain += u64::from(chunk.bytes);
                alone.stored += f64::from(blob.stored) * f64::from(chunk.bytes) / f64::from(blob.raw_bytes.max(1));
            }
            Ok(())
        })
    }
}

impl Visit for InGroup<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        self.wanted.push(row_of(entry, self.owner));
        if self.wanted.len() >= LOOKED_UP_TOGETHER { Ok(self.look_up()?) } else { Ok(()) }
    }
}
