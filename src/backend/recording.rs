//! A decorator that remembers every call, so that tests count instead of timing.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;

use super::{Backend, BackendError, ObjectInfo, Properties, PutReceipt};

/// One of the calls that reach a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    Put,
    Get,
    List,
    Delete,
}

/// One call, in the order in which calls began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub kind: CallKind,
    /// The object's name; of a list, its prefix.
    pub name: String,
    /// The range of a get.
    pub range: Option<Range<u64>>,
    /// Bytes sent or received; of a list, the number of objects.
    pub amount: u64,
    pub state: CallState,
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    UnderWay,
    Done,
    Failed,
}

/// Passes every call on and remembers it.
pub struct Recording<B> {
    inner: B,
    calls: Mutex<Vec<Call>>,
}

impl<B: Backend> Recording<B> {
    /// Records what goes to `inner` from now on.
    pub fn new(inner: B) -> Self {
        Self { inner, calls: Mutex::default() }
    }

    /// The store underneath; what goes there directly is not recorded.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// All calls so far, in the order in which they began.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }

    /// Returns all calls so far and forgets them.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.lock())
    }

    /// How many calls of `kind` have begun on names that begin with `prefix`.
    pub fn count(&self, kind: CallKind, prefix: &str) -> usize {
        self.lock().iter().filter(|call| call.kind == kind && call.name.starts_with(prefix)).count()
    }

    /// The bytes of all finished calls of `kind` on names that begin with `prefix`.
    pub fn bytes(&self, kind: CallKind, prefix: &str) -> u64 {
        self.lock()
            .iter()
            .filter(|call| call.kind == kind && call.name.starts_with(prefix) && call.state == CallState::Done)
            .map(|call| call.amount)
            .sum()
    }

    fn record<T>(
        &self,
        kind: CallKind,
        name: &str,
        range: Option<Range<u64>>,
        call: impl FnOnce() -> Result<T, BackendError>,
        amount_of: impl FnOnce(&T) -> u64,
    ) -> Result<T, BackendError> {
        // `take` may empty the list meanwhile, so the outcome is written to the call that still is this one.
        let begun = Call { kind, name: name.to_owned(), range, amount: 0, state: CallState::UnderWay };
        self.lock().push(begun.clone());
        let outcome = call();
        if let Some(call) = self.lock().iter_mut().find(|call| **call == begun) {
            match &outcome {
                Ok(answer) => (call.amount, call.state) = (amount_of(answer), CallState::Done),
                Err(_) => call.state = CallState::Failed,
            }
        }
        outcome
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().expect("no code panics while it holds this lock")
    }
}

impl<B: Backend> Backend for Recording<B> {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        let len = bytes.len() as u64;
        self.record(CallKind::Put, name, None, || self.inner.put(name, bytes), |_| len)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let recorded = range.clone();
        self.record(CallKind::Get, name, recorded, || self.inner.get(name, range), |bytes| bytes.len() as u64)
    }

    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let mut objects = 0;
        let call = || {
            self.inner.list(prefix, &mut |object| {
                objects += 1;
                each(object)
            })?;
            Ok(objects)
        };
        self.record(CallKind::List, prefix, None, call, |objects| *objects).map(|_| ())
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.record(CallKind::Delete, name, None, || self.inner.delete(name), |_| 0)
    }

    fn properties(&self) -> Properties {
        self.inner.properties()
    }
}
