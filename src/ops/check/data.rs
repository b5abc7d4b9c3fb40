//! Reads packs whole: hashes every byte, opens every blob, names every chunk again.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::structure::PackState;
use super::{CheckOptions, ReadData};
use crate::format::pack::{Directory, decode_directory, directory_range};
use crate::id::ObjectId;
use crate::ops::holdings::{Holdings, is_damage};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::index::BlobRow;
use crate::repo::{RepoError, Repository, pack_name};
use crate::seal::blob::Opener;
use crate::seal::boxed::open_object;
use crate::seal::keys::Kind;

/// Results of packs are remembered this many at a time.
const VERIFIED_BATCH: usize = 64;

/// The packs to read, in the order in which to read them.
pub(super) fn choose(
    repo: &Repository,
    options: &CheckOptions,
    holdings: &Holdings,
    packs: &[PackState],
) -> Vec<usize> {
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
pub(super) struct DataRead {
    pub(super) packs: usize,
    pub(super) bytes: u64,
    pub(super) plaintext: u64,
    pub(super) bad: Vec<BadPack>,
}

pub(super) struct BadPack {
    pub(super) pack: usize,
    pub(super) detail: String,
    /// Numbers of the blobs that cannot be opened.
    pub(super) blobs: Vec<u32>,
}

pub(super) fn read_packs(
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
    let bases = Reader::new(repo.clone(), 1, Progress::default());
    let work = || {
        let mut reader = PackReader { repo, holdings, bases: &bases, opener: Opener::default(), plaintext: Vec::new() };
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
    /// For blobs that rest on others. All threads share it, and the blobs that it keeps.
    bases: &'a Reader,
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
            let opened = self.bases.open(&mut self.opener, row, sealed).map_err(|error| error.to_string())?;
            self.bases.give_back(opened);
            Ok(())
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
