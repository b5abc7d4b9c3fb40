//! Reads a pack whole.

use bytes::Bytes;

use super::read_packs::ReadPacks;
use crate::format::pack::Directory;
use crate::id::ObjectId;
use crate::ops::holdings::chains::Chains;
use crate::ops::holdings::{Holdings, is_damage};
use crate::pipeline::PipelineError;
use crate::repo::index::BlobRow;
use crate::repo::{RepoError, Repository};
use crate::seal::blob::Opener;

/// What is wrong with a pack.
pub(super) struct BadPack {
    pub(super) pack: usize,
    pub(super) detail: String,
    /// Numbers of the blobs that cannot be opened.
    pub(super) blobs: Vec<u32>,
}

/// What is known of a pack that is being read.
pub(super) struct PackRead {
    pub(super) number: usize,
    pub(super) plaintext_bytes: u64,
    /// What is wrong with it as a whole, and with its blobs beyond that.
    wrong: Vec<String>,
    pub(super) bad: Vec<(u32, String)>,
    /// Blobs of chains and of the last packs, not yet opened.
    pub(super) later: Vec<(u32, BlobRow)>,
}

impl PackRead {
    pub(super) fn finish(mut self, blobs: usize) -> Option<BadPack> {
        self.bad.sort_unstable();
        if let Some((_, detail)) = self.bad.first().filter(|(_, detail)| !detail.is_empty()) {
            self.wrong.push(detail.clone());
            if self.bad.len() > 1 {
                self.wrong.push(format!("{} of {blobs} blobs cannot be opened", self.bad.len()));
            }
        }
        let blobs = self.bad.into_iter().map(|(blob, _)| blob).collect();
        (!self.wrong.is_empty()).then(|| BadPack { pack: self.number, detail: self.wrong.join("; "), blobs })
    }
}

/// Reads packs whole. One a thread.
pub(super) struct PackReader<'a> {
    repo: &'a Repository,
    holdings: &'a Holdings,
    chains: &'a Chains,
    local: Option<&'a ReadPacks>,
    pub(super) opener: Opener,
    plaintext: Vec<u8>,
}

impl<'a> PackReader<'a> {
    pub(super) fn new(
        repo: &'a Repository,
        holdings: &'a Holdings,
        chains: &'a Chains,
        local: Option<&'a ReadPacks>,
    ) -> Self {
        Self { repo, holdings, chains, local, opener: Opener::default(), plaintext: Vec::new() }
    }

    /// Hashes every byte and opens every blob that stands alone and that no other rests on, or none if it `is_last`. `bytes` is
    /// the pack, or why it cannot be had.
    pub(super) fn read(
        &mut self,
        number: usize,
        bytes: Result<Bytes, RepoError>,
        is_last: bool,
    ) -> Result<PackRead, PipelineError> {
        let pack = &self.holdings.packs[number];
        let (wrong, bad, later) = (Vec::new(), Vec::new(), Vec::new());
        let mut read = PackRead { number, plaintext_bytes: 0, wrong, bad, later };
        let bytes = match bytes {
            Err(error) if is_damage(&error) => {
                read.wrong.push(error.to_string());
                read.bad = pack.blobs.clone().map(|blob| (blob, String::new())).collect();
                return Ok(read);
            }
            other => other?,
        };
        let is_whole = ObjectId::of(&bytes) == pack.id;
        if !is_whole {
            read.wrong.push("its bytes do not hash to its name".to_owned());
        } else if let Some(local) = self.local {
            local.packs.put(&pack.id, &bytes);
        }
        let directory = match pack.open_directory(&self.repo.keys, &bytes) {
            Ok(directory) => directory,
            Err(detail) => {
                read.wrong.push(detail);
                self.listed_directory(&pack.id)?
            }
        };
        for (blob, entry) in pack.blobs.clone().zip(directory) {
            let sealed = bytes.get(entry.offset as usize..entry.offset as usize + entry.stored as usize);
            let row = pack.row(entry);
            // Of a damaged pack what stands alone is opened as it came, to say what is wrong with it.
            let may_wait = is_whole && sealed.is_some();
            if !row.contents.bases.is_empty() || (may_wait && (is_last || self.chains.is_rested_on(blob))) {
                read.later.push((blob, row));
                continue;
            }
            match sealed.ok_or_else(|| "it is cut off".to_owned()).and_then(|sealed| self.open(&row, sealed)) {
                Ok(()) => read.plaintext_bytes += row.contents.raw_bytes() as u64,
                Err(detail) => read.bad.push((blob, format!("blob at {}: {detail}", row.offset))),
            }
        }
        Ok(read)
    }

    fn open(&mut self, row: &BlobRow, sealed: &[u8]) -> Result<(), String> {
        let keys = &self.repo.keys;
        let opened = self.opener.open(keys, &row.contents, sealed, &[], &mut self.plaintext);
        opened.map_err(|error| error.to_string())
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
