//! Asks a store whether it keeps the contract, with objects of its own: what `vault init` and `vault doctor` show.

use std::thread;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::location::Location;
use super::{Backend, BackendError, Local};

/// What was found, in the order in which it was asked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProbeReport {
    pub location: String,
    pub findings: Vec<Finding>,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What the store should do, as a few words.
    pub name: &'static str,
    pub verdict: Verdict,
    /// What it did, and what follows.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Works, with something to know.
    Warn,
    /// A repository there is not safe.
    Fail,
}

impl ProbeReport {
    /// The worst verdict.
    pub fn verdict(&self) -> Verdict {
        self.findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Fail)
    }

    fn add(&mut self, name: &'static str, verdict: Verdict, detail: impl Into<String>) {
        self.findings.push(Finding { name, verdict, detail: detail.into() });
    }
}

/// Objects of probes lie here; nothing else does.
pub const PROBE_PREFIX: &str = "probe/";

/// What a probe that was killed left is removed by a later one, this much later.
const LEFTOVER_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Differences of the clocks below this are not worth a word; a prune is refused above 5 minutes.
const CLOCK_DIFFERENCE_MAX: SignedDuration = SignedDuration::from_secs(60);

const PUTS_AT_ONCE: usize = 8;

/// Opens the store at `location` and probes it, with what only its kind can be asked: whether S3 refuses wrong checksums.
pub fn probe_location(location: &Location) -> Result<ProbeReport, BackendError> {
    match location {
        Location::Folder(path) => Ok(probe(&Local::open(path)?)),
        #[cfg(feature = "s3")]
        Location::S3 { .. } => {
            let store = location.open_s3()?;
            let mut report = probe(&store);
            report.findings.push(wrong_checksum(&store));
            Ok(report)
        }
        #[cfg(not(feature = "s3"))]
        Location::S3 { .. } => super::location::open(&location.to_string()).map(|store| probe(&store)),
    }
}

/// Probes a store. Writes below [`PROBE_PREFIX`] only and removes what it wrote, if it may; what fails is a finding.
pub fn probe(store: &dyn Backend) -> ProbeReport {
    let mut report = ProbeReport { location: store.properties().location, findings: Vec::new() };
    let Some(folder) = own_folder(&mut report) else { return report };
    let (first, raced) = (format!("{folder}first"), format!("{folder}raced"));
    let bytes = Bytes::from_static(b"0123456789 vault probe");

    let asked = Timestamp::now();
    let store_time = match store.put(&first, bytes.clone()) {
        Ok(receipt) => receipt.store_time,
        Err(error) => {
            report.add("takes objects", Verdict::Fail, error.to_string());
            return report;
        }
    };
    let answered = Timestamp::now();
    report.add("takes objects", Verdict::Ok, "stored one");

    reads_back(store, &first, &bytes, &mut report);
    creates_once(store, &first, &bytes, &mut report);
    creates_once_at_once(store, &raced, &mut report);
    lists(store, &folder, &[&first, &raced], &mut report);
    clocks_agree(store_time, asked, answered, &mut report);
    deletes(store, &folder, &[&first, &raced], &mut report);
    sweep(store, store_time);
    report
}

/// A random folder below [`PROBE_PREFIX`], so that probes of several hosts do not meet.
fn own_folder(report: &mut ProbeReport) -> Option<String> {
    let mut random = [0; 8];
    match getrandom::fill(&mut random) {
        Ok(()) => Some(format!("{PROBE_PREFIX}{}/", data_encoding::HEXLOWER.encode(&random))),
        Err(error) => {
            report.add("takes objects", Verdict::Fail, format!("no random name: {error}"));
            None
        }
    }
}

fn reads_back(store: &dyn Backend, name: &str, bytes: &Bytes, report: &mut ProbeReport) {
    let (verdict, detail) = match store.get(name, None) {
        Ok(got) if got == *bytes => (Verdict::Ok, "the object came back as it was".to_owned()),
        Ok(got) => (Verdict::Fail, format!("{} bytes went there, {} other ones came back", bytes.len(), got.len())),
        Err(error) => (Verdict::Fail, error.to_string()),
    };
    report.add("gives them back", verdict, detail);

    let past_end = bytes.len() as u64 + 1;
    let (verdict, detail) = match (store.get(name, Some(3..7)), store.get(name, Some(3..past_end))) {
        (Ok(got), Err(BackendError::ShortRange { .. })) if got == bytes[3..7] => {
            (Verdict::Ok, "a range came back; one past the end was refused".to_owned())
        }
        (Ok(got), Err(BackendError::ShortRange { .. })) => {
            (Verdict::Fail, format!("asked for 4 bytes, other ones came back: {got:?}"))
        }
        (Ok(_), Ok(_)) => (Verdict::Fail, "a range past the end of an object is no error".to_owned()),
        (Err(error), _) | (_, Err(error)) => (Verdict::Fail, error.to_string()),
    };
    report.add("gives parts of them", verdict, detail);
}

const CREATE_ONCE: &str = "never replaces an object";
const REPLACED: &str = "a second put replaced the first: this store ignores conditional puts (If-None-Match), and hosts \
    that back up at the same time could overwrite each other; use a store that honours them";

fn creates_once(store: &dyn Backend, name: &str, bytes: &Bytes, report: &mut ProbeReport) {
    let second = store.put(name, Bytes::from_static(b"another object"));
    let there = store.get(name, None);
    let (verdict, detail) = match (second, there) {
        (Err(BackendError::AlreadyExists { .. }), Ok(there)) if there == *bytes => {
            (Verdict::Ok, "a second put of the name was refused".to_owned())
        }
        (Err(BackendError::AlreadyExists { .. }), Ok(_)) => {
            (Verdict::Fail, "a second put was refused, and yet changed the object".to_owned())
        }
        (Ok(_), _) => (Verdict::Fail, REPLACED.to_owned()),
        (Err(error), _) => (Verdict::Fail, error.to_string()),
    };
    report.add(CREATE_ONCE, verdict, detail);
}

fn creates_once_at_once(store: &dyn Backend, name: &str, report: &mut ProbeReport) {
    let bytes_of = |thread: usize| Bytes::from(vec![b'a' + thread as u8; 4096]);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..PUTS_AT_ONCE).map(|thread| scope.spawn(move || store.put(name, bytes_of(thread)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a put does not panic")).collect()
    });
    let winners: Vec<usize> = (0..PUTS_AT_ONCE).filter(|&thread| outcomes[thread].is_ok()).collect();
    let failed = outcomes.into_iter().find_map(|outcome| match outcome {
        Ok(_) | Err(BackendError::AlreadyExists { .. }) => None,
        Err(error) => Some(error),
    });
    let (verdict, detail) = match (&winners[..], failed, store.get(name, None)) {
        ([winner], None, Ok(there)) if there == bytes_of(*winner) => {
            (Verdict::Ok, format!("of {PUTS_AT_ONCE} puts of one name at once, one was taken"))
        }
        ([_], None, Ok(_)) => (Verdict::Fail, "the object is not that of the put that was taken".to_owned()),
        ([_, _, ..], _, _) => (Verdict::Fail, format!("{} of {PUTS_AT_ONCE} puts at once: {REPLACED}", winners.len())),
        (_, Some(error), _) | (_, _, Err(error)) => (Verdict::Fail, error.to_string()),
        ([], None, _) => (Verdict::Fail, "of several puts of one name at once, none was taken".to_owned()),
    };
    report.add("takes one of several puts at once", verdict, detail);
}

fn lists(store: &dyn Backend, folder: &str, expected: &[&str], report: &mut ProbeReport) {
    let (verdict, detail) = match names(store, folder) {
        Ok(names) if names == expected => (Verdict::Ok, "what was stored was listed at once".to_owned()),
        Ok(names) => (
            Verdict::Fail,
            format!("stored {} objects, {} were listed: a backup could be overlooked", expected.len(), names.len()),
        ),
        Err(error) => (Verdict::Fail, error.to_string()),
    };
    report.add("lists what it holds", verdict, detail);
}

fn clocks_agree(store_time: Timestamp, asked: Timestamp, answered: Timestamp, report: &mut ProbeReport) {
    // The store's clock has whole seconds.
    let early = asked.duration_since(store_time) - SignedDuration::from_secs(1);
    let late = store_time.duration_since(answered);
    let (difference, which) = if late > early { (late, "ahead of") } else { (early, "behind") };
    let seconds = difference.as_secs().max(0);
    if difference <= CLOCK_DIFFERENCE_MAX {
        report.add("has the same time", Verdict::Ok, "its clock and this host's agree");
    } else {
        report.add(
            "has the same time",
            Verdict::Warn,
            format!(
                "the store's clock is {seconds} s {which} this host's; prune refuses to work above 300 s: set the clock"
            ),
        );
    }
}

fn deletes(store: &dyn Backend, folder: &str, objects: &[&str], report: &mut ProbeReport) {
    const NAME: &str = "removes objects";
    for name in objects {
        match store.delete(name) {
            Ok(true) => {}
            Ok(false) => {
                return report.add(NAME, Verdict::Fail, format!("{name} was there, and delete says it was not"));
            }
            Err(error @ BackendError::Denied { .. }) => {
                let detail = format!(
                    "these credentials may not: good for a host that only backs up; prune needs others. Left: {}. {error}",
                    objects.join(", ")
                );
                return report.add(NAME, Verdict::Warn, detail);
            }
            Err(error) => return report.add(NAME, Verdict::Fail, error.to_string()),
        }
    }
    let gone = objects.iter().all(|name| matches!(store.get(name, None), Err(BackendError::NotFound { .. })));
    match names(store, folder) {
        Ok(names) if names.is_empty() && gone => report.add(NAME, Verdict::Ok, "what was removed is no longer listed"),
        Ok(_) => report.add(NAME, Verdict::Fail, "what was removed is still there"),
        Err(error) => report.add(NAME, Verdict::Fail, error.to_string()),
    }
}

/// Removes what earlier probes could not; that it cannot either does no harm.
fn sweep(store: &dyn Backend, now: Timestamp) {
    let mut old = Vec::new();
    let _ = store.list(PROBE_PREFIX, &mut |object| {
        if now.duration_since(object.modified) > LEFTOVER_AGE && old.len() < 1000 {
            old.push(object.name);
        }
        Ok(())
    });
    for name in old {
        if store.delete(&name).is_err() {
            return;
        }
    }
}

fn names(store: &dyn Backend, folder: &str) -> Result<Vec<String>, BackendError> {
    let mut names = Vec::new();
    store.list(folder, &mut |object| {
        names.push(object.name);
        Ok(())
    })?;
    names.sort();
    Ok(names)
}

#[cfg(feature = "s3")]
fn wrong_checksum(store: &super::S3) -> Finding {
    let mut random = [0; 8];
    let _ = getrandom::fill(&mut random); // the same name twice does no harm: the put is refused
    let (verdict, detail) =
        match store.refuses_wrong_checksum(&format!("{PROBE_PREFIX}{}", data_encoding::HEXLOWER.encode(&random))) {
            Ok(true) => (Verdict::Ok, "a put whose checksum was wrong was refused".to_owned()),
            Ok(false) => (
                Verdict::Warn,
                "a put whose checksum was wrong was taken: damage on the way to this store shows only in `vault check \
                 --read-data`"
                    .to_owned(),
            ),
            Err(error) => (Verdict::Warn, error.to_string()),
        };
    Finding { name: "compares checksums", verdict, detail }
}
