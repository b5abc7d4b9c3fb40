//! A store in memory, for tests: keeps the whole contract except that it dies with the process.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{Backend, BackendError, ObjectInfo, Properties, PutReceipt, check_name, check_prefix, check_put, slice};

/// Objects in memory. Clones share them, as two hosts share a bucket.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    clock_ahead: SignedDuration,
}

impl Memory {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a store of its own that holds what this one holds now: what a crash at this moment leaves.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    /// Puts `bytes` under `name` whatever was there: damage, or an older version brought back.
    pub fn overwrite(&self, name: &str, bytes: impl Into<Bytes>) {
        let mut state = self.state();
        let now = state.now();
        state.objects.insert(name.to_owned(), (bytes.into(), now));
    }

    /// The names of all objects, sorted.
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// The sum of all objects in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.state().objects.values().map(|(bytes, _)| bytes.len() as u64).sum()
    }

    /// Sets how far this store's clock runs ahead of the host's.
    pub fn set_clock_ahead(&self, ahead: SignedDuration) {
        self.state().clock_ahead = ahead;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn now(&self) -> Timestamp {
        Timestamp::now().saturating_add(self.clock_ahead).expect("a duration without calendar units always adds")
    }
}

const LOCATION: &str = "memory";

impl Backend for Memory {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        check_put(name, LOCATION, &bytes)?;
        let mut state = self.state();
        if state.objects.contains_key(name) {
            return Err(BackendError::AlreadyExists { name: name.to_owned(), location: LOCATION.to_owned() });
        }
        let store_time = state.now();
        state.objects.insert(name.to_owned(), (bytes, store_time));
        Ok(PutReceipt { store_time })
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        check_name(name)?;
        let bytes = match self.state().objects.get(name) {
            Some((bytes, _)) => bytes.clone(),
            None => {
                return Err(BackendError::NotFound { name: name.to_owned(), location: LOCATION.to_owned() });
            }
        };
        slice(name, LOCATION, &bytes, range)
    }

    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        check_prefix(prefix)?;
        // Collected first: `each` may call this store.
        let found: Vec<ObjectInfo> = self
            .state()
            .objects
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, (bytes, modified))| ObjectInfo {
                name: name.clone(),
                bytes: bytes.len() as u64,
                modified: *modified,
            })
            .collect();
        found.into_iter().try_for_each(each)
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        check_name(name)?;
        Ok(self.state().objects.remove(name).is_some())
    }

    fn properties(&self) -> Properties {
        Properties { location: LOCATION.to_owned(), kind: "memory", parallel_requests: 4 }
    }
}
