//! The items of a snapshot, as targets pull them.

use std::io;
use std::sync::Arc;

use crate::format::manifest::{Item, Manifest};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::Progress;
use crate::repo::Repository;
use crate::source::ItemSource;

/// The items of one snapshot.
pub struct SnapshotItems {
    reader: Reader,
    manifest: Manifest,
}

impl SnapshotItems {
    /// `openers` is the number of threads that decrypt and inflate for each item that is being read.
    pub fn new(repo: Arc<Repository>, manifest: Manifest, openers: usize, progress: Progress) -> Self {
        Self { reader: Reader::new(repo, openers, progress), manifest }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads, decrypts and checks every item and writes nothing. Returns items and bytes.
    pub fn validate(&self) -> Result<(u64, u64), PipelineError> {
        let (mut items, mut bytes) = (0, 0);
        self.reader.each_item(&self.manifest, &mut |item| {
            self.reader.read_item(&item, &mut |_| Ok(()))?;
            items += 1;
            bytes += item.bytes;
            Ok(())
        })?;
        Ok((items, bytes))
    }
}

impl ItemSource for SnapshotItems {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        Ok(self.reader.each_item(&self.manifest, &mut |item| each(item).map_err(PipelineError::Target))?)
    }

    fn read_item(&self, item: &Item, out: &mut dyn io::Write) -> io::Result<()> {
        Ok(self.reader.read_item(item, &mut |piece| out.write_all(piece).map_err(PipelineError::Target))?)
    }
}
