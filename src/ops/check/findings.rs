//! What was found wrong, gathered, and which backups and items it hits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::structure::{PackState, damage_only};
use super::{Finding, FindingKind};
use crate::format::manifest::{ChunkEntry, Item, Manifest};
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::ops::holdings::rows::Row;
use crate::ops::holdings::{Holdings, prefix_of};
use crate::ops::walk::{Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::repo::RepoError;

/// Item paths that a finding lists at most; it counts all.
const ITEMS_LISTED_MAX: usize = 100;

/// Findings being gathered, and what is lost by them.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) all: Vec<Finding>,
    pub(super) backups: Vec<BTreeSet<ObjectId>>,
    pub(super) items: Vec<BTreeSet<String>>,
    pub(super) whole: Vec<bool>,
    /// Findings by the blobs that they make useless.
    pub(super) lost_blobs: HashMap<u32, Vec<usize>>,
    pub(super) missing: Option<usize>,
    pub(super) missing_chunks: HashSet<u64>,
    pub(super) lists: BTreeMap<(String, String), usize>,
}

impl Findings {
    pub(super) fn add(&mut self, kind: FindingKind, object: impl Into<String>, detail: impl Into<String>) -> usize {
        let (object, detail) = (object.into(), detail.into());
        self.all.push(Finding { kind, object, detail, backups: vec![], items: vec![], items_hit: 0 });
        self.backups.push(BTreeSet::new());
        self.items.push(BTreeSet::new());
        self.whole.push(false);
        self.all.len() - 1
    }

    /// One finding for all that cannot be read for the same reason.
    pub(super) fn add_list(&mut self, error: &PipelineError) -> usize {
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

    pub(super) fn hit(&mut self, finding: usize, backup: &ObjectId, item: Option<&str>) {
        self.backups[finding].insert(*backup);
        match item {
            Some(path) => {
                self.items[finding].insert(path.to_owned());
            }
            None => self.whole[finding] = true,
        }
    }

    pub(super) fn lost_packs(&mut self, holdings: &Holdings, packs: &[PackState]) {
        for (number, state) in packs.iter().enumerate() {
            if let PackState::Lost(finding) = state {
                for blob in holdings.packs[number].blobs.clone() {
                    self.lost_blobs.entry(blob).or_default().push(*finding);
                }
            }
        }
    }

    pub(super) fn finish(self) -> Vec<Finding> {
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

/// Names the backups and items that findings hit. Walks everything again, and only if something is lost.
pub(super) fn attribute(
    reader: &Reader,
    manifests: &[(ObjectId, Manifest)],
    holdings: &Holdings,
    findings: &mut Findings,
) -> Result<(), PipelineError> {
    // A chunk is lost if none of its copies is good.
    let mut lost: HashMap<u64, Vec<usize>> = HashMap::new();
    if !findings.lost_blobs.is_empty() {
        let is_bad = |copy: &Row| findings.lost_blobs.contains_key(&copy.blob);
        holdings.chunks.each_run(|_, copies| {
            if copies.iter().all(is_bad) {
                let by = copies.iter().flat_map(|copy| &findings.lost_blobs[&copy.blob]);
                lost.insert(copies[0].prefix, by.copied().collect());
            }
            Ok::<_, RepoError>(())
        })?;
        // What rests on a lost chunk is lost as well.
        loop {
            let mut more: HashMap<u32, Vec<usize>> = HashMap::new();
            for base in holdings.bases_of(|blob| !findings.lost_blobs.contains_key(&blob)) {
                let base = base?;
                if let Some(by) = lost.get(&base.prefix) {
                    more.insert(base.blob, by.clone());
                }
            }
            if more.is_empty() {
                break;
            }
            let blobs: HashSet<u32> = more.keys().copied().collect();
            findings.lost_blobs.extend(more);
            holdings.chunks.each_run(|_, copies| {
                let by = copies.iter().find(|copy| blobs.contains(&copy.blob)).map(|copy| copy.blob);
                if let Some(by) = by.filter(|_| copies.iter().all(|copy| findings.lost_blobs.contains_key(&copy.blob)))
                {
                    lost.insert(copies[0].prefix, findings.lost_blobs[&by].clone());
                }
                Ok::<_, RepoError>(())
            })?;
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
