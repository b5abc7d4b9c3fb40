//! What changed between two backups: items by path, their rows and bytes, and how much of their content is new.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::iter::Peekable;
use std::sync::Arc;

use serde::Serialize;

use crate::format::manifest::{Item, Manifest};
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::limits::HELD_ROWS_IN_MEMORY;
use crate::ops::holdings::prefix_of;
use crate::ops::holdings::rows::{Room, Row, RowsIter, Sorter, Table};
use crate::ops::walk::Walker;
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::snapshots::Snapshot;
use crate::repo::{RepoError, Repository};

/// The differences, from the first backup to the second.
#[derive(Debug, Clone, Serialize)]
pub struct DiffReport {
    pub from: ObjectId,
    pub to: ObjectId,
    /// Items that differ, in the order of the second backup; removed ones last.
    pub items: Vec<ItemDiff>,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub unchanged: u64,
    /// Rows and bytes of the second backup less those of the first.
    pub rows_delta: i64,
    pub bytes_delta: i64,
    /// Bytes of chunks that only the second, or only the first backup's items of the same path hold.
    pub bytes_new: u64,
    pub bytes_gone: u64,
}

/// One item that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ItemDiff {
    pub path: String,
    pub kind: String,
    pub change: Change,
    pub bytes: u64,
    pub bytes_delta: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    pub rows_delta: i64,
    pub bytes_new: u64,
    pub bytes_gone: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    Added,
    Removed,
    Changed,
}

/// Compares two backups. Holds the items of the first in memory.
pub fn diff(
    repo: &Arc<Repository>,
    from: &Snapshot,
    to: &Snapshot,
    progress: &Progress,
) -> Result<DiffReport, PipelineError> {
    let reader = Reader::new(repo.clone(), 1, progress.clone());
    let mut old: HashMap<String, (u64, Item)> = HashMap::new();
    let mut order = 0;
    reader.each_item(&from.manifest, &mut |item| {
        order += 1;
        old.insert(item.path.clone(), (order, item));
        Ok(())
    })?;
    let mut report = DiffReport {
        from: from.id,
        to: to.id,
        items: Vec::new(),
        added: 0,
        removed: 0,
        changed: 0,
        unchanged: 0,
        rows_delta: delta(rows(&to.manifest), rows(&from.manifest)),
        bytes_delta: delta(to.manifest.bytes, from.manifest.bytes),
        bytes_new: 0,
        bytes_gone: 0,
    };
    reader.each_item(&to.manifest, &mut |item| {
        if progress.is_cancelled() {
            return Err(Cancelled.into());
        }
        match old.remove(&item.path) {
            Some((_, before)) if before.hash == item.hash && before.bytes == item.bytes => report.unchanged += 1,
            Some((_, before)) => {
                let (bytes_new, bytes_gone) = compare(&reader, &before, &item)?;
                report.changed += 1;
                report.add(Change::Changed, Some(&before), Some(&item), bytes_new, bytes_gone);
            }
            None => {
                report.added += 1;
                report.add(Change::Added, None, Some(&item), item.bytes, 0);
            }
        }
        Ok(())
    })?;
    let mut gone: Vec<(u64, Item)> = old.into_values().collect();
    gone.sort_by_key(|(order, _)| *order);
    for (_, item) in gone {
        report.removed += 1;
        report.add(Change::Removed, Some(&item), None, 0, item.bytes);
    }
    Ok(report)
}

fn rows(manifest: &Manifest) -> u64 {
    manifest.rows
}

fn delta(to: u64, from: u64) -> i64 {
    i64::try_from(i128::from(to) - i128::from(from)).unwrap_or(if to > from { i64::MAX } else { i64::MIN })
}

impl DiffReport {
    fn add(&mut self, change: Change, before: Option<&Item>, after: Option<&Item>, bytes_new: u64, bytes_gone: u64) {
        let Some(one) = after.or(before) else { return };
        let bytes = |item: Option<&Item>| item.map_or(0, |item| item.bytes);
        let rows = |item: Option<&Item>| item.and_then(|item| item.rows).unwrap_or(0);
        self.bytes_new += bytes_new;
        self.bytes_gone += bytes_gone;
        self.items.push(ItemDiff {
            path: one.path.clone(),
            kind: one.kind.clone(),
            change,
            bytes: bytes(after),
            bytes_delta: delta(bytes(after), bytes(before)),
            rows: after.and_then(|item| item.rows),
            rows_delta: delta(rows(after), rows(before)),
            bytes_new,
            bytes_gone,
        });
    }
}

/// Bytes of chunks that only `after`, and only `before` has. A chunk that comes several times counts each time.
fn compare(reader: &Reader, before: &Item, after: &Item) -> Result<(u64, u64), PipelineError> {
    let (old, new) = (chunks(reader, before)?, chunks(reader, after)?);
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let (mut in_old, mut in_new) = (next_chunk(&mut old)?, next_chunk(&mut new)?);
    let (mut bytes_new, mut bytes_gone) = (0, 0);
    loop {
        let order = match (in_old, in_new) {
            (Some((old, _)), Some((new, _))) => old.cmp(&new),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Ok((bytes_new, bytes_gone)),
        };
        if order.is_lt() {
            bytes_gone += in_old.map_or(0, |(_, bytes)| bytes);
        }
        if order.is_gt() {
            bytes_new += in_new.map_or(0, |(_, bytes)| bytes);
        }
        if order.is_le() {
            in_old = next_chunk(&mut old)?;
        }
        if order.is_ge() {
            in_new = next_chunk(&mut new)?;
        }
    }
}

/// The next prefix, and the bytes of all its rows.
fn next_chunk(rows: &mut Peekable<RowsIter<'_>>) -> Result<Option<(u64, u64)>, RepoError> {
    let Some(first) = rows.next().transpose()? else { return Ok(None) };
    let mut bytes = u64::from(first.bytes);
    while let Some(row) = rows.next_if(|row| row.as_ref().is_ok_and(|row| row.prefix == first.prefix)) {
        bytes += u64::from(row?.bytes);
    }
    Ok(Some((first.prefix, bytes)))
}

/// The chunks of an item, sorted by the first 8 bytes of each name.
fn chunks(reader: &Reader, item: &Item) -> Result<Table, PipelineError> {
    let mut chunks = Sorter::new(Room { folder: reader.repo().cache.clone(), rows_max: HELD_ROWS_IN_MEMORY });
    Walker::thorough(reader).walk_stream(&item.stream, BlobKind::Data, &mut |_, entry, is_content| {
        if is_content {
            chunks.push(Row { prefix: prefix_of(&entry.id), blob: 0, bytes: entry.bytes })?;
        }
        Ok(())
    })?;
    Ok(chunks.finish()?)
}
