//! Brings the local index up to date with the index objects in the store.
//!
//! A few threads get, open and decode them while one puts their rows into the tables: with 20 million chunks both have
//! much to do.

use std::collections::{HashMap, HashSet};

use super::tables::{ObjectRows, TableError};
use super::{Kept, cache_error};
use crate::backend::BackendError;
use crate::format::index::Index;
use crate::id::ObjectId;
use crate::limits::{INDEX_LOAD_THREADS, INDEX_LOAD_THREADS_FAR};
use crate::progress::Progress;
use crate::repo::together::in_order;
use crate::repo::{RepoError, Repository, object_name};
use crate::seal::keys::Kind;

impl Repository {
    /// Makes the local index anew from the index objects, once in the life of this value: for when it does not know what
    /// it should. Returns whether it did.
    pub fn reload_index(&self) -> Result<bool, RepoError> {
        {
            let _claim = self.index.claim()?;
            let mut inner = self.index.lock();
            if inner.made_anew {
                return Ok(false);
            }
            inner.made_anew = true;
            inner.kept = Kept::default();
            tracing::warn!("the local index {} is short of entries: making it anew", self.index.path.display());
            if let Err(error) = inner.tables.empty() {
                drop(inner);
                self.index.reset(&error)?;
            }
        }
        self.load_index(&Progress::default())?;
        Ok(true)
    }

    /// Brings the local index up to date with the index objects in the store.
    ///
    /// Returns those that cannot be read and that no other has taken the place of: what they alone list is not found.
    pub fn load_index(&self, progress: &Progress) -> Result<Vec<(ObjectId, RepoError)>, RepoError> {
        let _claim = self.index.claim()?;
        match self.try_load_index(progress) {
            Err(LoadError::Local(error)) => {
                self.index.reset(&error)?;
                self.try_load_index(progress).map_err(|error| match error {
                    LoadError::Local(error) => cache_error(&self.index.path, &error),
                    LoadError::Repo(error) => error,
                })
            }
            Err(LoadError::Repo(error)) => Err(error),
            Ok(unreadable) => Ok(unreadable),
        }
    }

    fn try_load_index(&self, progress: &Progress) -> Result<Vec<(ObjectId, RepoError)>, LoadError> {
        let listed: HashSet<ObjectId> = self.list(Kind::Index)?.into_iter().map(|(id, _)| id).collect();
        let known = self.index.lock().tables.objects()?;
        let (mut supersedes, mut gone) = (HashMap::new(), Vec::new());
        for (id, (number, ids)) in &known {
            if listed.contains(id) {
                supersedes.insert(*id, ids.clone());
            } else {
                gone.push(*number);
            }
        }
        {
            let mut inner = self.index.lock();
            inner.tables.drop_objects(&gone)?;
            // What other processes have removed since the last load goes with it.
            inner.kept = Kept::default();
        }
        let missing: Vec<_> = listed.into_iter().filter(|id| !known.contains_key(id)).collect();
        let mut unreadable = self.add_missing(&missing, progress, &mut supersedes)?;
        let superseded: HashSet<_> = supersedes.values().flatten().collect();
        // A damaged one that was replaced (`vault repair index`) is nobody's loss.
        unreadable.retain(|(id, _)| !superseded.contains(id));
        if superseded.iter().any(|id| supersedes.contains_key(id)) {
            let mut inner = self.index.lock();
            let known = inner.tables.objects()?;
            let replaced = known.iter().filter(|(id, _)| superseded.contains(id)).map(|(_, (number, _))| *number);
            inner.tables.drop_objects(&replaced.collect::<Vec<_>>())?;
            inner.kept = Kept::default();
        }
        self.index.sort_if_due()?;
        Ok(unreadable)
    }

    /// Adds what index objects say and notes what they take the place of. Returns those that are damaged.
    fn add_missing(
        &self,
        missing: &[ObjectId],
        progress: &Progress,
        supersedes: &mut HashMap<ObjectId, Vec<ObjectId>>,
    ) -> Result<Vec<(ObjectId, RepoError)>, LoadError> {
        progress.add_items_total(missing.len() as u64);
        let mut unreadable = Vec::new();
        let load = |id: &ObjectId| self.load_index_object(id).map(|index| ObjectRows::new(*id, &index, &self.keys));
        in_order(self.index_threads(), missing, load, |id, rows| {
            let rows = match rows {
                // Replaced since the listing: what replaced it is found by the next load.
                Err(RepoError::Backend(BackendError::NotFound { .. })) => return Ok(()),
                Err(
                    error @ (RepoError::Damaged { .. }
                    | RepoError::Format { .. }
                    | RepoError::Backend(BackendError::Damaged { .. })),
                ) => {
                    unreadable.push((*id, error));
                    return Ok(());
                }
                other => other?,
            };
            self.index.lock().tables.add(&rows)?;
            supersedes.insert(*id, rows.supersedes);
            progress.add_items(1);
            Ok::<_, LoadError>(())
        })?;
        Ok(unreadable)
    }

    /// Adds to the local index what an index object says that is known to be put or listed. Returns false if it is gone
    /// again.
    pub fn add_to_index(&self, id: &ObjectId, index: &Index) -> Result<bool, RepoError> {
        let _claim = self.index.claim()?;
        // Who put it may have been stopped for hours since, and prune has not waited.
        match self.backend.get(&object_name(Kind::Index, id), Some(0..1)) {
            Err(BackendError::NotFound { .. }) => return Ok(false),
            other => other?,
        };
        self.index.add_object(&ObjectRows::new(*id, index, &self.keys)).map(|()| true)
    }

    /// How many index objects are got and decoded at once.
    pub fn index_threads(&self) -> usize {
        if self.backend.properties().is_far() { INDEX_LOAD_THREADS_FAR } else { INDEX_LOAD_THREADS }
    }

    /// Loads one index object from the store.
    pub fn load_index_object(&self, id: &ObjectId) -> Result<Index, RepoError> {
        let raw = self.load(Kind::Index, id)?;
        Index::decode(&raw).map_err(|source| RepoError::Format { name: object_name(Kind::Index, id), source })
    }
}

enum LoadError {
    Local(TableError),
    Repo(RepoError),
}

impl From<TableError> for LoadError {
    fn from(error: TableError) -> Self {
        LoadError::Local(error)
    }
}

impl From<RepoError> for LoadError {
    fn from(error: RepoError) -> Self {
        LoadError::Repo(error)
    }
}
