//! A decorator that fails where a test says so: the n-th call of a kind, before or after the store has done it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::recording::CallKind;
use super::{Backend, BackendError, ObjectInfo, Properties, PutReceipt};

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Fails; the store is not touched.
    FailBefore(Failure),
    /// The store does it, then its answer is lost. Of a put, this is the lost acknowledgement.
    FailAfter(Failure),
    /// The process dies (SIGKILL) before the store is touched, or after it has done it.
    KillBefore,
    KillAfter,
    /// Waits, then goes on.
    Delay(Duration),
    /// A get returns no more than this many of its bytes, without an error.
    Truncate(usize),
    /// A get returns its bytes with this bit, counted from the first byte's lowest, turned over. Beyond the end: the last bit.
    Flip {
        bit: usize,
    },
    /// A list leaves out the objects whose name holds this text.
    Omit(String),
}

/// The error that a fault gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Unreachable,
    Denied,
    NoSpace,
    NotFound,
    AlreadyExists,
    Damaged,
    Interrupted,
}

/// Which calls a fault hits.
#[derive(Debug, Clone)]
pub struct Rule {
    kind: Option<CallKind>,
    prefix: String,
    pass: usize,
    hits: usize,
    fault: Fault,
}

impl Rule {
    /// Hits every call of `kind`, or of any kind.
    pub fn new(kind: impl Into<Option<CallKind>>, fault: Fault) -> Self {
        Self { kind: kind.into(), prefix: String::new(), pass: 0, hits: usize::MAX, fault }
    }

    /// Only calls on names that begin with `prefix`.
    pub fn under(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Only the `n`-th call that fits, counted from 1.
    pub fn at(self, n: usize) -> Self {
        self.from(n).times(1)
    }

    /// The `n`-th call that fits, counted from 1, and those after it.
    pub fn from(mut self, n: usize) -> Self {
        self.pass = n.checked_sub(1).expect("calls are counted from 1");
        self
    }

    /// At most this many calls.
    pub fn times(mut self, hits: usize) -> Self {
        self.hits = hits;
        self
    }
}

/// Passes calls on unless a rule hits them. Each call counts for every rule it fits; the first rule that hits decides.
pub struct Faults<B> {
    inner: B,
    rules: Mutex<Vec<Rule>>,
}

impl<B: Backend> Faults<B> {
    /// Without rules it changes nothing.
    pub fn new(inner: B, rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { inner, rules: Mutex::new(rules.into_iter().collect()) }
    }

    /// Adds a rule, which counts calls from now on.
    pub fn add(&self, rule: Rule) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The store underneath, which has no faults.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn fault(&self, kind: CallKind, name: &str) -> Option<Fault> {
        let mut decided = None;
        for rule in self.rules.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            if rule.kind.is_some_and(|wanted| wanted != kind) || !name.starts_with(&rule.prefix) {
                continue;
            }
            if rule.pass > 0 {
                rule.pass -= 1;
            } else if rule.hits > 0 && decided.is_none() {
                rule.hits = if rule.hits == usize::MAX { usize::MAX } else { rule.hits - 1 };
                decided = Some(rule.fault.clone());
            }
        }
        decided
    }

    /// Runs `call` under the fault that hits it; the ones that change an answer are left to the caller.
    fn run<T>(
        &self,
        fault: Option<&Fault>,
        name: &str,
        action: &'static str,
        call: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        match fault {
            Some(Fault::FailBefore(failure)) => return Err(self.error(*failure, name, action)),
            Some(Fault::KillBefore) => kill(),
            Some(Fault::Delay(time)) => std::thread::sleep(*time),
            _ => {}
        }
        let outcome = call();
        match fault {
            Some(Fault::FailAfter(failure)) => outcome.and_then(|_| Err(self.error(*failure, name, action))),
            Some(Fault::KillAfter) => kill(),
            _ => outcome,
        }
    }

    fn error(&self, failure: Failure, name: &str, action: &'static str) -> BackendError {
        let (name, location) = (name.to_owned(), self.inner.properties().location);
        let detail = "as the test wanted".to_owned();
        match failure {
            Failure::Unreachable => BackendError::Unreachable { location, detail },
            Failure::Denied => BackendError::Denied { name, location, action, detail },
            Failure::NoSpace => BackendError::NoSpace { name, location },
            Failure::NotFound => BackendError::NotFound { name, location },
            Failure::AlreadyExists => BackendError::AlreadyExists { name, location },
            Failure::Damaged => BackendError::Damaged { name, location, detail },
            Failure::Interrupted => BackendError::Interrupted { name, action },
        }
    }
}

impl<B: Backend> Backend for Faults<B> {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        let fault = self.fault(CallKind::Put, name);
        self.run(fault.as_ref(), name, "put", || self.inner.put(name, bytes))
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let fault = self.fault(CallKind::Get, name);
        let bytes = self.run(fault.as_ref(), name, "get", || self.inner.get(name, range))?;
        Ok(match fault {
            Some(Fault::Truncate(len)) => bytes.slice(..len.min(bytes.len())),
            Some(Fault::Flip { bit }) if !bytes.is_empty() => {
                let bit = bit.min(bytes.len() * 8 - 1);
                let mut bytes = bytes.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes.into()
            }
            _ => bytes,
        })
    }

    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let fault = self.fault(CallKind::List, prefix);
        self.run(fault.as_ref(), prefix, "list", || {
            self.inner.list(prefix, &mut |object| match &fault {
                Some(Fault::Omit(text)) if object.name.contains(text) => Ok(()),
                _ => each(object),
            })
        })
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        let fault = self.fault(CallKind::Delete, name);
        self.run(fault.as_ref(), name, "delete", || self.inner.delete(name))
    }

    fn properties(&self) -> Properties {
        self.inner.properties()
    }
}

/// Ends the process as a power cut would: nothing is dropped or flushed.
fn kill() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal has been sent; it may take effect an instant later.
    loop {
        std::thread::park();
    }
}
