//! Looks whether every backup can come back. Findings are its result, not its failure; it fails only if it cannot look.
//!
//! Without `read_data`: every object but the packs is read, opened and compared with its name; every pack is there with
//! its size; every list that a manifest leads to resolves to chunks that the index knows; sums agree; no manifest has
//! vanished. With it: every byte of every pack is hashed, every blob opened, every chunk named again. Everything is read
//! from the store, nothing is taken from the local index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use crate::backend::BackendError;
use crate::format::config::Config;
use crate::format::manifest::{ChunkEntry, Item, Manifest};
use crate::format::pack::{BlobKind, Directory, decode_directory, directory_range};
use crate::format::records::{Lease, Mark, Removal};
use crate::format::slot::Slot;
use crate::id::ObjectId;
use crate::ops::holdings::{Holdings, is_damage, prefix_of};
use crate::ops::walk::{Sums, Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::index::BlobRow;
use crate::repo::{RepoError, Repository, object_name, pack_name};
use crate::seal::blob::Opener;
use crate::seal::boxed::open_object;
use crate::seal::keys::Kind;

/// Item paths that a finding lists at most; it counts all.
const ITEMS_LISTED_MAX: usize = 100;
/// Results of packs are remembered this many at a time.
const VERIFIED_BATCH: usize = 64;
/// How often the looking starts again because prune replaced what was being looked at.
const TRIES: usize = 3;

/// What to look at.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    pub read_data: ReadData,
    /// Stops taking up packs after this long. Those verified longest ago come first.
    pub max_duration: Option<Duration>,
    /// Threads that read and open packs. Each holds one pack.
    pub threads: usize,
    pub now: Timestamp,
}

/// Which packs to read whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReadData {
    None,
    All,
    /// A share of all bytes, 0 to 1: those verified longest ago.
    Share(f64),
    /// As many bytes: those verified longest ago.
    Bytes(u64),
    /// The `part`-th (from 1) of `of` parts of about the same size. All parts together are all packs.
    Part {
        part: u32,
        of: u32,
    },
}

/// What was looked at and found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    pub status: Status,
    pub findings: Vec<Finding>,
    pub backups: usize,
    pub items: u64,
    pub index_objects: usize,
    pub chunks: usize,
    /// Packs that the index lists, and their bytes.
    pub packs: usize,
    pub packs_bytes: u64,
    /// Packs that were read whole, and their bytes.
    pub packs_read: usize,
    pub packs_read_bytes: u64,
    /// Plaintext bytes that were hashed again.
    pub bytes_verified: u64,
    pub garbage: Garbage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Clean,
    Damaged,
}

/// What the next prune removes. No damage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// Packs that no index object lists: of backups that were killed, or that run now.
    pub packs_unlisted: usize,
    pub packs_unlisted_bytes: u64,
    /// Packs and bytes that no backup reaches.
    pub packs_dead: usize,
    pub dead_bytes: u64,
    pub index_objects: usize,
    pub marks: usize,
    pub leases: usize,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// Name of the object in the store.
    pub object: String,
    pub detail: String,
    /// Backups that do not come back whole because of it.
    pub backups: Vec<ObjectId>,
    /// Items of them that it hits, the first hundred; all of each backup if there are none.
    pub items: Vec<String>,
    pub items_hit: u64,
}

/// What is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    Config,
    Key,
    /// An index object: `vault repair index` makes it anew from the packs.
    Index,
    Manifest,
    /// A mark, a lease or a removal record.
    Record,
    /// A manifest that is gone without a removal record.
    LostBackup,
    MissingPack,
    PackSize,
    Pack,
    MissingChunks,
    /// A chunk list or the lines of items.
    List,
    Sums,
}

/// Looks at the repository.
pub fn check(
    repo: &Arc<Repository>,
    options: &CheckOptions,
    progress: &Progress,
) -> Result<CheckReport, PipelineError> {
    for _ in 1..TRIES {
        let before = names(repo)?;
        let report = look(repo, options, progress)?;
        // What prune replaced meanwhile was not damage.
        if report.status == Status::Clean || names(repo)? == before {
            return Ok(report);
        }
    }
    look(repo, options, progress)
}

/// Names of the objects that prune replaces.
fn names(repo: &Repository) -> Result<BTreeSet<ObjectId>, RepoError> {
    let mut names = BTreeSet::new();
    for kind in [Kind::Manifest, Kind::Index] {
        names.extend(repo.list(kind)?.into_iter().map(|(id, _)| id));
    }
    Ok(names)
}

fn look(repo: &Arc<Repository>, options: &CheckOptions, progress: &Progress) -> Result<CheckReport, PipelineError> {
    progress.phase("reading manifests and index");
    let mut findings = Findings::default();
    config_and_keys(repo, &mut findings)?;
    let manifests = manifests(repo, &mut findings)?;
    let mut garbage = records(repo, &manifests, &mut findings)?;
    let mut holdings = Holdings::load(repo)?;
    garbage.index_objects = holdings.superseded.len();
    index(repo, &holdings, &mut findings)?;
    let packs = packs(repo, &holdings, &mut findings, &mut garbage)?;

    progress.phase("following the backups");
    progress.add_items_total(manifests.len() as u64);
    let reader = Reader::new(repo.clone(), 1, progress.clone());
    let items = follow(&reader, &manifests, &mut holdings, &mut findings, progress)?;
    dead(&holdings, &packs, &mut garbage);

    let mut read = DataRead::default();
    let chosen = choose(repo, options, &holdings, &packs);
    if !chosen.is_empty() {
        progress.phase("reading packs");
        let bytes = chosen.iter().map(|&number| u64::from(holdings.packs[number].bytes)).sum();
        progress.add_bytes_total(bytes);
        progress.add_items_total(chosen.len() as u64);
        read = read_packs(repo, options, &holdings, &chosen, progress)?;
        for bad in std::mem::take(&mut read.bad) {
            let finding = findings.add(FindingKind::Pack, pack_name(&holdings.packs[bad.pack].id), bad.detail);
            for blob in bad.blobs {
                findings.lost_blobs.entry(blob).or_default().push(finding);
            }
        }
    }
    findings.lost_packs(&holdings, &packs);
    attribute(&reader, &manifests, &holdings, &mut findings)?;

    let findings = findings.finish();
    let status = if findings.is_empty() { Status::Clean } else { Status::Damaged };
    Ok(CheckReport {
        status,
        findings,
        backups: manifests.len(),
        items,
        index_objects: holdings.objects.len(),
        chunks: holdings.chunks().len(),
        packs: holdings.packs.len(),
        packs_bytes: holdings.packs.iter().map(|pack| u64::from(pack.bytes)).sum(),
        packs_read: read.packs,
        packs_read_bytes: read.bytes,
        bytes_verified: read.plaintext,
        garbage,
    })
}

/// Findings being gathered, and what is lost by them.
#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    backups: Vec<BTreeSet<ObjectId>>,
    items: Vec<BTreeSet<String>>,
    whole: Vec<bool>,
    /// Findings by the blobs that they make useless.
    lost_blobs: HashMap<u32, Vec<usize>>,
    missing: Option<usize>,
    missing_chunks: HashSet<u64>,
    lists: BTreeMap<(String, String), usize>,
}

impl Findings {
    fn add(&mut self, kind: FindingKind, object: impl Into<String>, detail: impl Into<String>) -> usize {
        let (object, detail) = (object.into(), detail.into());
        self.all.push(Finding { kind, object, detail, backups: vec![], items: vec![], items_hit: 0 });
        self.backups.push(BTreeSet::new());
        self.items.push(BTreeSet::new());
        self.whole.push(false);
        self.all.len() - 1
    }

    /// One finding for all that cannot be read for the same reason.
    fn add_list(&mut self, error: &PipelineError) -> usize {
        let (object, detail) = match error {
            PipelineError::Repo(RepoError::Damaged { name, detail }) => (name.clone(), detail.clone()),
            PipelineError::Repo(RepoError::Format { name, source }) => (name.clone(), source.to_string()),
            other => ("a list".to_owned(), other.to_string()),
        };
        let key = (object.clone(), detail.clone());
        if let Some(&known) = self.lists.get(&key) {
            return known;
        }
        let number = self.add(FindingKind::List, object, detail);
        self.lists.insert(key, number);
        number
    }

    fn hit(&mut self, finding: usize, backup: &ObjectId, item: Option<&str>) {
        self.backups[finding].insert(*backup);
        match item {
            Some(path) => {
                self.items[finding].insert(path.to_owned());
            }
            None => self.whole[finding] = true,
        }
    }

    fn lost_packs(&mut self, holdings: &Holdings, packs: &[PackState]) {
        for (number, state) in packs.iter().enumerate() {
            if let PackState::Lost(finding) = state {
                for blob in holdings.packs[number].blobs.clone() {
                    self.lost_blobs.entry(blob).or_default().push(*finding);
                }
            }
        }
    }

    fn finish(self) -> Vec<Finding> {
        let gathered = self.all.into_iter().zip(self.backups).zip(self.items).zip(self.whole);
        let mut all: Vec<Finding> = gathered
            .map(|(((mut finding, backups), items), whole)| {
                finding.backups.extend(backups);
                finding.items_hit = items.len() as u64;
                if !whole {
                    finding.items = items.into_iter().take(ITEMS_LISTED_MAX).collect();
                }
                finding
            })
            .collect();
        all.retain(|finding| finding.kind != FindingKind::List || !finding.backups.is_empty());
        all
    }
}

fn config_and_keys(repo: &Repository, findings: &mut Findings) -> Result<(), RepoError> {
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
fn manifests(repo: &Repository, findings: &mut Findings) -> Result<Vec<(ObjectId, Manifest)>, RepoError> {
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
fn records(
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

fn index(repo: &Repository, holdings: &Holdings, findings: &mut Findings) -> Result<(), RepoError> {
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
enum PackState {
    Whole,
    /// Missing or of another size, with the finding that says so.
    Lost(usize),
}

fn packs(
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

/// Follows every manifest. Returns the number of items.
fn follow(
    reader: &Reader,
    manifests: &[(ObjectId, Manifest)],
    holdings: &mut Holdings,
    findings: &mut Findings,
    progress: &Progress,
) -> Result<u64, PipelineError> {
    let mut walker = Walker::new(reader);
    let mut items = 0;
    for (id, manifest) in manifests {
        if progress.is_cancelled() {
            return Err(Cancelled.into());
        }
        let mut follow = Follow { holdings: &mut *holdings, findings: &mut *findings, backup: *id };
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
    Ok(items)
}

/// Marks what is reached, and notes what is reached and not there.
struct Follow<'a> {
    holdings: &'a mut Holdings,
    findings: &'a mut Findings,
    backup: ObjectId,
}

impl Visit for Follow<'_> {
    fn chunk(&mut self, kind: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        let prefix = prefix_of(&entry.id);
        let mut found = false;
        for position in self.holdings.find(prefix) {
            let chunk = self.holdings.chunks()[position];
            let blob = &self.holdings.blobs[chunk.blob as usize];
            if chunk.bytes == entry.bytes && blob.kind == kind {
                found = true;
                self.holdings.flags[position] = 1;
            }
        }
        if !found {
            if self.findings.missing.is_none() {
                let detail = "chunks that backups need are in no pack that the index lists; \
                              `vault repair index` looks for them in the packs";
                self.findings.missing = Some(self.findings.add(FindingKind::MissingChunks, "index/", detail));
            }
            self.findings.missing_chunks.insert(prefix);
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
fn damage_only(error: PipelineError) -> Result<PipelineError, PipelineError> {
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
fn dead(holdings: &Holdings, packs: &[PackState], garbage: &mut Garbage) {
    // Copies beside the first are dead too, but which one is, prune decides: here all of them live.
    let flags = with_bases(holdings);
    let mut reached = vec![0u64; holdings.blobs.len()];
    let mut raw = vec![0u64; holdings.blobs.len()];
    for (chunk, flag) in holdings.chunks().iter().zip(&flags) {
        raw[chunk.blob as usize] += u64::from(chunk.bytes);
        if *flag != 0 {
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
            let dead =
                |blob: usize| u64::from(holdings.blobs[blob].stored) * (raw[blob] - reached[blob]) / raw[blob].max(1);
            garbage.dead_bytes += blobs.map(dead).sum::<u64>();
        }
    }
}

/// The flags of what backups reach, and with it of what that rests on.
fn with_bases(holdings: &Holdings) -> Vec<u8> {
    let mut flags = holdings.flags.clone();
    loop {
        let mut in_use = vec![false; holdings.blobs.len()];
        for (chunk, flag) in holdings.chunks().iter().zip(&flags) {
            in_use[chunk.blob as usize] |= *flag != 0;
        }
        let mut more = false;
        for (_, prefix, bytes) in holdings.bases.iter().filter(|(blob, ..)| in_use[*blob as usize]) {
            for position in holdings.find(*prefix) {
                if holdings.chunks()[position].bytes == *bytes && flags[position] == 0 {
                    flags[position] = 1;
                    more = true;
                }
            }
        }
        if !more {
            return flags;
        }
    }
}

/// The packs to read, in the order in which to read them.
fn choose(repo: &Repository, options: &CheckOptions, holdings: &Holdings, packs: &[PackState]) -> Vec<usize> {
    let whole = (0..packs.len()).filter(|&number| packs[number] == PackState::Whole);
    let mut chosen: Vec<usize> = match options.read_data {
        ReadData::None => return Vec::new(),
        ReadData::Part { part, of } => {
            let of = u64::from(of.max(1));
            let part_of = |number: usize| {
                let id = holdings.packs[number].id;
                u64::from_be_bytes(*id.as_bytes().first_chunk().expect("an id has 32 bytes")) % of + 1
            };
            whole.filter(|&number| part_of(number) == u64::from(part)).collect()
        }
        _ => whole.collect(),
    };
    let oldest_first = |&number: &usize| {
        let id = &holdings.packs[number].id;
        (repo.index.verified(id), *id)
    };
    chosen.sort_by_cached_key(oldest_first);
    let bytes_of = |number: usize| u64::from(holdings.packs[number].bytes);
    let total: u64 = chosen.iter().map(|&number| bytes_of(number)).sum();
    let budget = match options.read_data {
        ReadData::Share(share) => (total as f64 * share.clamp(0.0, 1.0)).ceil() as u64,
        ReadData::Bytes(bytes) => bytes,
        _ => return chosen,
    };
    let mut taken = 0;
    chosen.retain(|&number| {
        let take = taken < budget;
        taken += bytes_of(number);
        take
    });
    chosen
}

/// What reading packs came to.
#[derive(Default)]
struct DataRead {
    packs: usize,
    bytes: u64,
    plaintext: u64,
    bad: Vec<BadPack>,
}

struct BadPack {
    pack: usize,
    detail: String,
    /// Numbers of the blobs that cannot be opened.
    blobs: Vec<u32>,
}

fn read_packs(
    repo: &Arc<Repository>,
    options: &CheckOptions,
    holdings: &Holdings,
    chosen: &[usize],
    progress: &Progress,
) -> Result<DataRead, PipelineError> {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let shared: Mutex<(DataRead, Vec<ObjectId>)> = Mutex::default();
    let failed: Mutex<Option<PipelineError>> = Mutex::default();
    let work = || {
        let mut reader = PackReader {
            repo,
            holdings,
            bases: Reader::new(repo.clone(), 1, Progress::default()),
            opener: Opener::default(),
            plaintext: Vec::new(),
        };
        loop {
            let out_of_time = options.max_duration.is_some_and(|most| started.elapsed() >= most);
            let stopped = failed.lock().expect("no code panics while it holds this lock").is_some();
            let Some(&number) = chosen.get(next.fetch_add(1, Relaxed)) else { break };
            if out_of_time || stopped || progress.is_cancelled() {
                break;
            }
            let pack = &holdings.packs[number];
            let result = reader.read(number);
            let mut shared = shared.lock().expect("no code panics while it holds this lock");
            match result {
                Ok((plaintext, bad)) => {
                    let (read, verified) = &mut *shared;
                    read.packs += 1;
                    read.bytes += u64::from(pack.bytes);
                    read.plaintext += plaintext;
                    match bad {
                        Some(bad) => read.bad.push(bad),
                        None => verified.push(pack.id),
                    }
                    if verified.len() >= VERIFIED_BATCH {
                        repo.index.set_verified(verified, options.now.as_second());
                        verified.clear();
                    }
                }
                Err(error) => {
                    failed.lock().expect("no code panics while it holds this lock").get_or_insert(error);
                }
            }
            progress.add_bytes(u64::from(pack.bytes));
            progress.add_items(1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, chosen.len()) {
            scope.spawn(work);
        }
    });
    let (mut read, verified) = shared.into_inner().expect("no code panics while it holds this lock");
    repo.index.set_verified(&verified, options.now.as_second());
    if let Some(error) = failed.into_inner().expect("no code panics while it holds this lock") {
        return Err(error);
    }
    if progress.is_cancelled() {
        return Err(Cancelled.into());
    }
    read.bad.sort_by_key(|bad| bad.pack);
    Ok(read)
}

/// Reads packs whole. One a thread.
struct PackReader<'a> {
    repo: &'a Arc<Repository>,
    holdings: &'a Holdings,
    /// For blobs that rest on others.
    bases: Reader,
    opener: Opener,
    plaintext: Vec<u8>,
}

impl PackReader<'_> {
    /// Returns the plaintext bytes that were hashed, and what is wrong.
    fn read(&mut self, number: usize) -> Result<(u64, Option<BadPack>), PipelineError> {
        let pack = &self.holdings.packs[number];
        let name = pack_name(&pack.id);
        let all_blobs = || pack.blobs.clone().collect();
        let bytes = match self.repo.backend.get(&name, None).map_err(RepoError::from) {
            Err(error) if is_damage(&error) => {
                return Ok((0, Some(BadPack { pack: number, detail: error.to_string(), blobs: all_blobs() })));
            }
            other => other?,
        };
        let mut wrong = Vec::new();
        if ObjectId::of(&bytes) != pack.id {
            wrong.push("its bytes do not hash to its name".to_owned());
        }
        let directory = match self.directory(&bytes, &pack.directory) {
            Ok(directory) => directory,
            Err(detail) => {
                wrong.push(detail);
                self.listed_directory(&pack.id)?
            }
        };
        let (mut blobs, mut plaintext_bytes) = (Vec::new(), 0);
        for (blob, entry) in pack.blobs.clone().zip(directory) {
            let sealed = bytes.get(entry.offset as usize..entry.offset as usize + entry.stored as usize);
            let row = BlobRow { pack: pack.id, offset: entry.offset, stored: entry.stored, contents: entry.contents };
            let raw_bytes = row.contents.raw_bytes() as u64;
            match sealed.ok_or_else(|| "it is cut off".to_owned()).and_then(|sealed| self.open(&row, sealed)) {
                Ok(()) => plaintext_bytes += raw_bytes,
                Err(detail) => {
                    if blobs.is_empty() {
                        wrong.push(format!("blob at {}: {detail}", row.offset));
                    }
                    blobs.push(blob);
                }
            }
        }
        if wrong.is_empty() {
            return Ok((plaintext_bytes, None));
        }
        if blobs.len() > 1 {
            wrong.push(format!("{} of {} blobs cannot be opened", blobs.len(), pack.blobs.len()));
        }
        Ok((plaintext_bytes, Some(BadPack { pack: number, detail: wrong.join("; "), blobs })))
    }

    fn open(&mut self, row: &BlobRow, sealed: &[u8]) -> Result<(), String> {
        if row.contents.bases.is_empty() {
            let opened = self.opener.open(&self.repo.keys, &row.contents, sealed, &[], &mut self.plaintext);
            opened.map_err(|error| error.to_string())
        } else {
            self.bases.open(&mut self.opener, row, sealed, 0).map(|_| ()).map_err(|error| error.to_string())
        }
    }

    /// The pack's own directory, if it says what the index says.
    fn directory(&self, bytes: &[u8], listed: &[u8; 32]) -> Result<Directory, String> {
        let range = directory_range(bytes.len() as u64, bytes).map_err(|error| error.to_string())?;
        let sealed = &bytes[range.start as usize..range.end as usize];
        let raw = open_object(&self.repo.keys, Kind::Directory, sealed).map_err(|error| error.to_string())?;
        if blake3::hash(&raw) != *listed {
            return Err("its directory and the index say different things".to_owned());
        }
        decode_directory(&raw).map_err(|error| error.to_string())
    }

    /// What the index says of a pack whose own directory is of no use.
    fn listed_directory(&self, pack: &ObjectId) -> Result<Directory, PipelineError> {
        for (id, object) in &self.holdings.objects {
            if object.packs.contains(pack) {
                let index = self.repo.load_index_object(id)?;
                if let Some(found) = index.packs.into_iter().find(|listed| listed.pack == *pack) {
                    return Ok(found.directory);
                }
            }
        }
        Ok(Directory::new())
    }
}

/// Names the backups and items that findings hit. Walks everything again, and only if something is lost.
fn attribute(
    reader: &Reader,
    manifests: &[(ObjectId, Manifest)],
    holdings: &Holdings,
    findings: &mut Findings,
) -> Result<(), PipelineError> {
    // A chunk is lost if none of its copies is good.
    let mut lost: HashMap<u64, Vec<usize>> = HashMap::new();
    if !findings.lost_blobs.is_empty() {
        for run in holdings.runs() {
            let is_bad = |position: usize| findings.lost_blobs.contains_key(&holdings.chunks()[position].blob);
            if run.clone().all(is_bad) {
                let by = run.clone().flat_map(|position| &findings.lost_blobs[&holdings.chunks()[position].blob]);
                lost.insert(holdings.chunks()[run.start].prefix(), by.copied().collect());
            }
        }
        // What rests on a lost chunk is lost as well.
        loop {
            let mut more = Vec::new();
            for (blob, base, _) in &holdings.bases {
                if let Some(by) = lost.get(base).filter(|_| !findings.lost_blobs.contains_key(blob)) {
                    more.push((*blob, by.clone()));
                }
            }
            if more.is_empty() {
                break;
            }
            let blobs: HashSet<u32> = more.iter().map(|(blob, _)| *blob).collect();
            for (blob, by) in more {
                findings.lost_blobs.insert(blob, by);
            }
            for chunk in holdings.chunks().iter().filter(|chunk| blobs.contains(&chunk.blob)) {
                let copies = holdings.find(chunk.prefix());
                if copies.clone().all(|at| findings.lost_blobs.contains_key(&holdings.chunks()[at].blob)) {
                    lost.insert(chunk.prefix(), findings.lost_blobs[&chunk.blob].clone());
                }
            }
        }
    }
    if let Some(missing) = findings.missing {
        for prefix in &findings.missing_chunks {
            lost.entry(*prefix).or_default().push(missing);
        }
    }
    // Lists that cannot be read are looked at again too: the first time what backups share was followed once.
    if lost.is_empty() && findings.lists.is_empty() {
        return Ok(());
    }
    let mut walker = Walker::thorough(reader);
    for (id, manifest) in manifests {
        let mut hits = Hits { lost: &lost, findings, backup: *id, now: BTreeSet::new() };
        let walked = walker.walk(0, manifest, &mut hits);
        hits.lines_done();
        if let Err(error) = walked {
            let finding = findings.add_list(&damage_only(error)?);
            findings.hit(finding, id, None);
        }
    }
    Ok(())
}

/// Notes which findings hit the item that is being walked.
struct Hits<'a> {
    lost: &'a HashMap<u64, Vec<usize>>,
    findings: &'a mut Findings,
    backup: ObjectId,
    now: BTreeSet<usize>,
}

impl Visit for Hits<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        if let Some(by) = self.lost.get(&prefix_of(&entry.id)) {
            self.now.extend(by);
        }
        Ok(())
    }

    /// What was met so far belongs to no item.
    fn lines_done(&mut self) {
        for finding in std::mem::take(&mut self.now) {
            self.findings.hit(finding, &self.backup, None);
        }
    }

    fn item(&mut self, item: &Item, walked: Result<(), PipelineError>) -> Result<(), PipelineError> {
        for finding in std::mem::take(&mut self.now) {
            self.findings.hit(finding, &self.backup, Some(&item.path));
        }
        if let Err(error) = walked {
            let finding = self.findings.add_list(&damage_only(error)?);
            self.findings.hit(finding, &self.backup, Some(&item.path));
        }
        Ok(())
    }
}
