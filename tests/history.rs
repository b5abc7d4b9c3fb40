//! Made-up histories: snapshots, forgets and prunes of several hosts on one store, some of which die at a call of the store
//! or have another operation run to its end between two of their calls. Whatever happened, every backup that was
//! acknowledged and not dropped comes back byte for byte, and the check is clean.
//!
//! A failure names its seed: `VAULT_HISTORY_SEED=N cargo test --test history` runs that one again, and
//! `VAULT_HISTORY_SEED=N-M` those from N up to M.

mod lab;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use lab::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use vault::backend::{Backend, BackendError, Memory, ObjectInfo, Properties, PutReceipt};
use vault::id::ObjectId;
use vault::ops::check::{ReadData, Status, check};
use vault::ops::forget::{ForgetOptions, forget};
use vault::ops::prune::{PruneError, PruneOptions, prune};
use vault::progress::Progress;
use vault::repo::{RepoError, Repository};

/// Histories that are run, by the seeds from 0 up.
const SEEDS: u64 = 64;
const KB: usize = 1 << 10;
const SOURCES: [&str; 3] = ["one", "two", "three"];

/// What the next backup of a source holds.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    /// Some bytes are other ones: chunks that resemble older chunks.
    Edit(u16),
    /// Some bytes come between.
    Insert(u16),
    Fresh(u16),
    /// What another source holds.
    CopyOf(usize),
    /// An item less, or an item more.
    Items,
    /// What it held before: chunks that may be marked by now, or gone.
    Back(usize),
}

#[derive(Debug, Clone)]
enum Action {
    Snapshot { source: usize, change: Change },
    Forget { nth: usize },
    Prune { last: u32, grace: bool, repack: bool, max_unused: Option<f64> },
    Check,
    Restore { nth: usize },
}

/// What happens to an action at its n-th call of the store.
#[derive(Debug, Clone)]
enum Fate {
    Plain,
    /// The process dies: nothing gets through any more. With `after`, the store has done the n-th call.
    Dies {
        at: i64,
        after: bool,
    },
    /// Another host does something from beginning to end.
    Beside {
        at: i64,
        action: Action,
        dies: Option<(i64, bool)>,
    },
}

#[derive(Debug, Clone)]
struct Step {
    action: Action,
    fate: Fate,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => Just(Change::Nothing),
        4 => any::<u16>().prop_map(Change::Edit),
        2 => any::<u16>().prop_map(Change::Insert),
        2 => any::<u16>().prop_map(Change::Fresh),
        1 => (0..SOURCES.len()).prop_map(Change::CopyOf),
        1 => Just(Change::Items),
        4 => (1..4usize).prop_map(Change::Back),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..SOURCES.len(), change()).prop_map(|(source, change)| Action::Snapshot { source, change }),
        2 => (0..8usize).prop_map(|nth| Action::Forget { nth }),
        5 => (1..4u32, prop::bool::weighted(0.4), prop::bool::weighted(0.8), prop_oneof![Just(None), Just(Some(0.5))])
            .prop_map(|(last, grace, repack, max_unused)| Action::Prune { last, grace, repack, max_unused }),
        1 => Just(Action::Check),
        2 => (0..8usize).prop_map(|nth| Action::Restore { nth }),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    let at = || 0..45i64;
    prop_oneof![
        4 => Just(Fate::Plain),
        3 => (at(), any::<bool>()).prop_map(|(at, after)| Fate::Dies { at, after }),
        4 => (at(), action(), prop::option::weighted(0.3, (at(), any::<bool>())))
            .prop_map(|(at, action, dies)| Fate::Beside { at, action, dies }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((action(), fate()).prop_map(|(action, fate)| Step { action, fate }), 4..14)
}

/// What comes between two calls of the store.
enum Event {
    Die { after: bool },
    Run(Box<dyn FnOnce() + Send>),
}

/// A store to which something happens at the n-th call.
struct Eventful {
    inner: Memory,
    left: AtomicI64,
    event: Mutex<Option<Event>>,
    dead: AtomicBool,
    leases: Mutex<Vec<String>>,
}

impl Eventful {
    fn new(inner: &Memory, at: i64, event: Option<Event>) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            left: at.into(),
            event: Mutex::new(event),
            dead: false.into(),
            leases: Mutex::default(),
        })
    }

    fn call<T>(&self, name: &str, call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
        let interrupted = || Err(BackendError::Interrupted { name: name.to_owned(), action: "call" });
        if self.dead.load(SeqCst) {
            return interrupted();
        }
        let event = if self.left.fetch_sub(1, SeqCst) == 0 { self.event.lock().unwrap().take() } else { None };
        match event {
            Some(Event::Run(run)) => run(),
            Some(Event::Die { after }) => {
                self.dead.store(true, SeqCst);
                if after {
                    call()?;
                }
                return interrupted();
            }
            None => {}
        }
        call()
    }
}

impl Backend for Eventful {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        if name.starts_with("leases/") {
            self.leases.lock().unwrap().push(name.to_owned());
        }
        self.call(name, || self.inner.put(name, bytes))
    }
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.call(name, || self.inner.get(name, range))
    }
    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.call(prefix, || self.inner.list(prefix, each))
    }
    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.call(name, || self.inner.delete(name))
    }
    fn properties(&self) -> Properties {
        self.inner.properties()
    }
}

/// A backup that can be seen, or could.
#[derive(Clone)]
struct Known {
    id: ObjectId,
    source: usize,
    time: Timestamp,
    items: Arc<Items>,
    /// Somebody has asked for it to go.
    may_go: bool,
}

#[derive(Default)]
struct Model {
    known: Vec<Known>,
    /// What was tried, by the time that its manifest bears.
    tried: BTreeMap<Timestamp, (usize, Arc<Items>)>,
    now: [Items; SOURCES.len()],
}

struct World {
    lab: Lab,
    began: Timestamp,
    model: Mutex<Model>,
}

impl World {
    fn new() -> Arc<Self> {
        let mut model = Model::default();
        for (source, now) in model.now.iter_mut().enumerate() {
            *now = items(&[("a", noise(source as u64, 200 * KB)), ("b", noise(50 + source as u64, 90 * KB))]);
        }
        Arc::new(Self { lab: Lab::new(), began: Timestamp::now(), model: Mutex::new(model) })
    }

    /// The next data of a source, and a time of its own.
    fn next(&self, source: usize, change: &Change) -> (Arc<Items>, Timestamp) {
        let mut model = self.model.lock().unwrap();
        let seed = |n: u16| 1000 + u64::from(n);
        match *change {
            Change::Nothing => {}
            Change::Edit(n) => {
                let bytes = model.now[source].get_mut("a").expect("every source has it");
                let at = usize::from(n) * 7 % (bytes.len() - 64);
                bytes[at..at + 64].copy_from_slice(&noise(seed(n), 64));
            }
            Change::Insert(n) => {
                let bytes = model.now[source].get_mut("a").expect("every source has it");
                let at = usize::from(n) * 5 % bytes.len();
                bytes.splice(at..at, noise(seed(n), 300));
            }
            Change::Fresh(n) => {
                model.now[source].insert("a".to_owned(), noise(seed(n), 150 * KB));
            }
            Change::CopyOf(other) => model.now[source] = model.now[other].clone(),
            Change::Items => {
                if model.now[source].remove("b").is_none() {
                    model.now[source].insert("b".to_owned(), noise(50 + source as u64, 90 * KB));
                }
            }
            Change::Back(steps) => {
                let before = model.tried.values().rev().filter(|(other, _)| *other == source).nth(steps);
                if let Some((_, items)) = before.cloned() {
                    model.now[source] = (*items).clone();
                }
            }
        }
        let items = Arc::new(model.now[source].clone());
        let time = self.began - SignedDuration::from_hours(1) + SignedDuration::from_secs(model.tried.len() as i64);
        model.tried.insert(time, (source, items.clone()));
        (items, time)
    }

    /// The nth of the backups that nobody has asked to go.
    fn nth(&self, nth: usize) -> Option<Known> {
        let model = self.model.lock().unwrap();
        let staying: Vec<_> = model.known.iter().filter(|known| !known.may_go).collect();
        (!staying.is_empty()).then(|| staying[nth % staying.len()].clone())
    }

    fn learn(&self, id: ObjectId, time: Timestamp) {
        let mut model = self.model.lock().unwrap();
        if model.known.iter().all(|known| known.id != id) {
            let (source, items) = model.tried.get(&time).expect("every backup was tried").clone();
            model.known.push(Known { id, source, time, items, may_go: false });
        }
    }

    /// What `--keep-last` lets go.
    fn let_go(&self, last: u32) {
        let mut model = self.model.lock().unwrap();
        for source in 0..SOURCES.len() {
            let mut of_source: Vec<_> = model.known.iter_mut().filter(|known| known.source == source).collect();
            of_source.sort_by_key(|known| std::cmp::Reverse(known.time));
            of_source.into_iter().skip(last as usize).for_each(|known| known.may_go = true);
        }
    }

    fn prune_options(&self, action: &Action) -> Option<PruneOptions> {
        let Action::Prune { last, grace, repack, max_unused } = *action else { return None };
        let mut options = prune_options(keep_last(last));
        if grace {
            options.grace = SignedDuration::from_hours(23);
        }
        (options.repack, options.max_unused) = (repack, max_unused);
        Some(options)
    }

    /// Does something on a host. Errors say what went wrong; what must not happen panics.
    fn act(&self, repo: &Arc<Repository>, action: &Action, dead: &AtomicBool) -> Result<(), String> {
        let said = |error: &dyn std::error::Error| Err(format!("{action:?}: {error} ({error:?})"));
        match action {
            Action::Snapshot { source, change } => {
                let (items, time) = self.next(*source, change);
                match try_backup(repo, SOURCES[*source], &items, time) {
                    Ok(made) => self.learn(made.id, time),
                    Err(error) => return said(&error),
                }
            }
            Action::Forget { nth } => {
                let Some(victim) = self.nth(*nth) else { return Ok(()) };
                let mut model = self.model.lock().unwrap();
                model.known.iter_mut().filter(|known| known.id == victim.id).for_each(|known| known.may_go = true);
                drop(model);
                let options = ForgetOptions {
                    words: vec![victim.id.hex()],
                    host: "h".to_owned(),
                    now: Timestamp::now(),
                    dry_run: false,
                };
                match forget(repo, &options) {
                    Ok(_) => assert!(
                        !self.lab.names("snapshots/").contains(&format!("snapshots/{}", victim.id)),
                        "{} was dropped and is still there",
                        victim.id
                    ),
                    // Prune was quicker.
                    Err(vault::ops::forget::ForgetError::Find(_)) => {}
                    Err(error) => return said(&error),
                }
            }
            Action::Prune { last, .. } => {
                let options = self.prune_options(action).expect("it is a prune");
                let pruned = prune(repo, &options, &Progress::default());
                self.let_go(*last);
                match pruned {
                    Ok(report) => assert!(report.damaged.is_empty(), "{:?}", report.damaged),
                    Err(PruneError::Busy { .. }) => {}
                    Err(error) => return said(&error),
                }
            }
            Action::Check => match check(repo, &check_options(ReadData::All), &Progress::default()) {
                Ok(report) => {
                    let clean = report.status == Status::Clean || dead.load(SeqCst);
                    assert!(clean, "{action:?} finds {:#?}", report.findings);
                }
                Err(error) => return said(&error),
            },
            Action::Restore { nth } => {
                let Some(wanted) = self.nth(*nth) else { return Ok(()) };
                match restore(repo, &wanted.id) {
                    Ok(items) => assert!(items == *wanted.items, "{} comes back wrong", wanted.id),
                    Err(error) => {
                        let model = self.model.lock().unwrap();
                        let dropped = model.known.iter().any(|known| known.id == wanted.id && known.may_go);
                        if !dropped {
                            return said(&error);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Does something on a host from beginning to end, or to its death.
    fn perform(&self, host: &str, action: &Action, store: &Arc<Eventful>) {
        let done = self.open(host, store.clone()).map_err(|error| error.to_string()).and_then(|repo| {
            let done = self.act(&repo, action, &store.dead);
            drop(repo);
            done
        });
        if !store.dead.load(SeqCst) {
            done.unwrap_or_else(|error| panic!("on host {host}: {error}"));
            return;
        }
        // Its leases are those of a process that is gone.
        let repo = self.open(host, Arc::new(self.lab.store.clone())).expect("the store itself is well");
        for name in store.leases.lock().unwrap().drain(..) {
            if self.lab.store.delete(&name).unwrap() {
                let prune = matches!(action, Action::Prune { .. });
                put_lease(&repo, |lease| (lease.boot_id, lease.prune) = ("another boot".to_owned(), prune));
            }
        }
    }

    fn open(&self, host: &str, store: Arc<dyn Backend>) -> Result<Arc<Repository>, RepoError> {
        let repo = Repository::open(store, &secret(), &self.lab.places(host))?;
        repo.load_index(&Progress::default())?;
        Ok(Arc::new(repo))
    }

    /// Everything that can be seen is whole, and nothing is gone that was to stay.
    fn verify(&self, after: &str) {
        let repo = self.lab.open("reader");
        let visible = repo.snapshots().unwrap_or_else(|error| panic!("{after}: {error}"));
        for snapshot in &visible {
            // Also what a snapshot committed that died before it could say so.
            self.learn(snapshot.id, snapshot.manifest.time);
        }
        let mut model = self.model.lock().unwrap();
        for known in &model.known {
            if !visible.iter().any(|snapshot| snapshot.id == known.id) {
                assert!(known.may_go, "{after}: backup {} of {} is gone", known.id, SOURCES[known.source]);
                continue;
            }
            match restore(&repo, &known.id) {
                Ok(items) => assert!(items == *known.items, "{after}: backup {} comes back wrong", known.id),
                Err(error) => panic!("{after}: backup {} does not come back: {error}", known.id),
            }
        }
        model.known.retain(|known| visible.iter().any(|snapshot| snapshot.id == known.id));
        // What was asked to go and stayed may go another time only if it is asked again.
        model.known.iter_mut().for_each(|known| known.may_go = false);
        drop(model);
        let report = check_all(&repo);
        assert_eq!(report.status, Status::Clean, "{after}: {:#?}", report.findings);
    }
}

fn run(steps: &[Step]) {
    let world = World::new();
    for (number, step) in steps.iter().enumerate() {
        let (host, other) = if number % 3 == 2 { ("b", "a") } else { ("a", "b") };
        let store = match &step.fate {
            Fate::Plain => Eventful::new(&world.lab.store, 0, None),
            Fate::Dies { at, after } => Eventful::new(&world.lab.store, *at, Some(Event::Die { after: *after })),
            Fate::Beside { at, action, dies } => {
                let (beside, action, dies) = (world.clone(), action.clone(), *dies);
                let run = move || {
                    let (at, event) = dies.map_or((0, None), |(at, after)| (at, Some(Event::Die { after })));
                    let store = Eventful::new(&beside.lab.store, at, event);
                    beside.perform(other, &action, &store);
                };
                Eventful::new(&world.lab.store, *at, Some(Event::Run(Box::new(run))))
            }
        };
        world.perform(host, &step.action, &store);
        // An action that made fewer calls has it follow.
        let left = store.event.lock().unwrap().take();
        if let Some(Event::Run(run)) = left {
            run();
        }
        drop(store);
        world.verify(&format!("after step {number}, {step:?}"));
    }
    // Hours later every lease has run out, and nothing that is left over stays.
    let later = SignedDuration::from_hours(4);
    world.lab.store.set_clock_ahead(later);
    let mut options = prune_options(keep_last(1000));
    options.now = Timestamp::now() + later;
    prune(&world.lab.open("a"), &options, &Progress::default()).expect("the last prune");
    world.verify("after the last prune");
    assert_no_garbage(&world.lab);
}

/// Runs the history of a seed; the error is the shortest history found that fails.
fn run_seed(seed: u64) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&history(), |steps| {
        run(&steps);
        Ok(())
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, steps) => format!("{reason}\n{steps:#?}"),
        TestError::Abort(reason) => reason.to_string(),
    })
}

#[test]
fn whatever_happened_every_backup_that_was_not_dropped_comes_back() {
    let number = |text: &str| text.parse::<u64>().expect("VAULT_HISTORY_SEED is a number, or two with - between");
    let seeds = std::env::var("VAULT_HISTORY_SEED").map_or(0..SEEDS, |text| {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        number(first)..number(last) + 1
    });
    for seed in seeds {
        if let Err(failure) = run_seed(seed) {
            panic!("VAULT_HISTORY_SEED={seed} does it again: {failure}");
        }
    }
}
