//! Looks whether every backup can come back. Findings are its result, not its failure; it fails only if it cannot look.
//!
//! Without `read_data`: every object but the packs is read, opened and compared with its name; every pack is there with
//! its size; every list that a manifest leads to resolves to chunks that the index knows; sums agree; no manifest has
//! vanished. With it: every byte of every pack is hashed, every blob opened, every chunk named again. Everything is read
//! from the store, nothing is taken from the local index.
//!
//! `structure`: what objects, lists and sums say. `data`: every byte. `findings`: what is wrong, and whom it hits.

mod choose;
mod data;
mod findings;
mod pack_reader;
mod read_packs;
mod structure;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::id::ObjectId;
use crate::ops::holdings::Holdings;
use crate::ops::holdings::bits::Bits;
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::Progress;
use crate::repo::together::both;
use crate::repo::{RepoError, Repository, object_name, pack_name};
use crate::seal::keys::Kind;

use choose::choose;
use data::{DataRead, read_packs};
use findings::{Findings, attribute};
use structure::{Records, config_and_keys, dead, detail_of, follow, index, manifests, packs, records};

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
    let (manifests, objects) = both(|| repo.list(Kind::Manifest), || repo.list(Kind::Index));
    Ok(manifests?.into_iter().chain(objects?).map(|(id, _)| id).collect())
}

fn look(repo: &Arc<Repository>, options: &CheckOptions, progress: &Progress) -> Result<CheckReport, PipelineError> {
    progress.phase("reading manifests and index");
    let mut findings = Findings::default();
    let (wrong, manifests) = both(|| config_and_keys(repo), || manifests(repo));
    for (kind, object, detail) in wrong? {
        findings.add(kind, object, detail);
    }
    let (manifests, damaged) = manifests?;
    for (id, error) in damaged {
        let finding = findings.add(FindingKind::Manifest, object_name(Kind::Manifest, &id), detail_of(&error));
        findings.hit(finding, &id, None);
    }
    let (read, holdings) = both(|| Records::load(repo), || Holdings::load(repo));
    let mut garbage = records(repo, read?, &manifests, &mut findings)?;
    let holdings = holdings?;
    garbage.index_objects = holdings.superseded.len();
    index(&holdings, &mut findings);
    // What can be read of the index is enough to go on with.
    let (loaded, listed) = both(|| repo.load_index(&Progress::default()), || repo.list(Kind::Directory));
    loaded?;
    let packs = packs(listed?, &holdings, &mut findings, &mut garbage);

    progress.phase("following the backups");
    progress.add_items_total(manifests.len() as u64);
    let reader = Reader::new(repo.clone(), 1, progress.clone());
    let mut reached = Bits::new(holdings.chunks.len());
    let items = follow(&reader, &manifests, &holdings, &mut reached, &mut findings, progress)?;
    dead(&holdings, reached, &packs, &mut garbage)?;

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
        chunks: holdings.chunks.len(),
        packs: holdings.packs.len(),
        packs_bytes: holdings.packs.iter().map(|pack| u64::from(pack.bytes)).sum(),
        packs_read: read.packs,
        packs_read_bytes: read.bytes,
        bytes_verified: read.plaintext,
        garbage,
    })
}
