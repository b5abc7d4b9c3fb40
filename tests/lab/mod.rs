//! What the tests of the operations share: repositories in memory, backups of made-up bytes, and the oracle that every
//! test ends with.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::Map;
use vault::backend::{Backend, BackendError, Memory, ObjectInfo, Properties, PutReceipt};
use vault::format::config::Config;
use vault::format::records::{Lease, encode_record};
use vault::id::{HostId, ObjectId, RepoId};
use vault::ops::check::{CheckOptions, CheckReport, Garbage, ReadData, Status, check};
use vault::ops::prune::{PruneOptions, PruneReport, prune};
use vault::ops::retention::KeepRules;
use vault::ops::snapshot::{SnapshotError, SnapshotOptions, Taken, snapshot};
use vault::pipeline::PipelineError;
use vault::pipeline::read::Reader;
use vault::pipeline::snapshot::WriteOptions;
use vault::progress::Progress;
use vault::repo::snapshots::Snapshot;
use vault::repo::{Pace, Places, Repository};
use vault::seal::keys::Kind;
use vault::seal::slot::Secret;
use vault::source::{ItemFacts, ItemSink, SourceFacts};

pub type Items = BTreeMap<String, Vec<u8>>;

/// A store and the hosts that use it.
pub struct Lab {
    pub store: Memory,
    folder: tempfile::TempDir,
}

pub fn secret() -> Secret {
    Secret::KeyFile([7; 32].into())
}

impl Lab {
    /// A new repository in memory.
    pub fn new() -> Self {
        let lab = Self::with_store(Memory::new());
        Repository::init(Arc::new(lab.store.clone()), &secret(), "test", Timestamp::now(), &lab.places("init"))
            .unwrap();
        lab
    }

    /// The same with other settings.
    pub fn with_config(change: impl FnOnce(&mut Config)) -> Self {
        let lab = Self::with_store(Memory::new());
        let mut config = Config::new(RepoId([3; 16]), Timestamp::now());
        change(&mut config);
        let store = Arc::new(lab.store.clone());
        Repository::init_with(store, &secret(), "test", config, &lab.places("init")).unwrap();
        lab
    }

    /// The same hosts on another store.
    pub fn with_store(store: Memory) -> Self {
        // Local indexes may be lost with the power: in memory they cost no waiting for a disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { store, folder }
    }

    pub fn places(&self, host: &str) -> Places {
        let folder = self.folder.path().join(host);
        Places { cache: folder.join("cache"), state: folder.join("state") }
    }

    /// The repository as a host of this name sees it.
    pub fn open(&self, host: &str) -> Arc<Repository> {
        self.open_on(host, Arc::new(self.store.clone()))
    }

    /// The same with its index not loaded, for one that cannot be.
    pub fn open_cold(&self, host: &str) -> Arc<Repository> {
        Arc::new(Repository::open(Arc::new(self.store.clone()), &secret(), &self.places(host)).unwrap())
    }

    /// The same through a decorated store.
    pub fn open_on(&self, host: &str, store: Arc<dyn Backend>) -> Arc<Repository> {
        self.open_paced(host, store, Pace::default())
    }

    /// The same, for runs that would have to take hours.
    pub fn open_paced(&self, host: &str, store: Arc<dyn Backend>, pace: Pace) -> Arc<Repository> {
        let mut repo = Repository::open(store, &secret(), &self.places(host)).unwrap();
        repo.pace = pace;
        repo.load_index(&Progress::default()).unwrap();
        Arc::new(repo)
    }

    /// Names under a prefix.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.store.names().into_iter().filter(|name| name.starts_with(prefix)).collect()
    }

    /// What the death of all processes does to their leases, which this process cannot die to do.
    pub fn bury_processes(&self, repo: &Repository) {
        for name in self.names("leases/") {
            self.store.delete(&name).unwrap();
            put_lease(repo, |lease| lease.boot_id = "another boot".to_owned());
        }
    }
}

/// Puts a lease of this process, changed.
pub fn put_lease(repo: &Repository, change: impl FnOnce(&mut Lease)) -> ObjectId {
    let mut lease = Lease {
        time: Timestamp::now(),
        host: "h".to_owned(),
        host_id: repo.host_id,
        pid: std::process::id(),
        pid_start: 1,
        boot_id: "boot".to_owned(),
        nonce: format!("{:?}", std::time::Instant::now()),
        began: None,
        prune: false,
    };
    change(&mut lease);
    repo.save(Kind::Lease, &encode_record(&lease)).unwrap().id
}

/// A lease of a process on another host, which nobody here can know to be gone.
pub fn foreign(lease: &mut Lease) {
    lease.host_id = HostId([9; 16]);
    lease.host = "elsewhere".to_owned();
}

/// Bytes that do not compress and depend on the seed only.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Rows of a table of which one in ten changes a day, others each time; 80 bytes each, of which 48 say nothing about others.
pub fn changing_rows(count: usize, day: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..count {
        let changes = (0..day).filter(|day| (row * 7919 + day * 104_729) % 10 == 0).count();
        let noise = noise((row * 1000 + changes) as u64, 24);
        out.extend_from_slice(format!("{row}\t{changes}\tsome words that every row has\t").as_bytes());
        noise.iter().for_each(|byte| out.extend_from_slice(format!("{byte:02x}").as_bytes()));
        out.push(b'\n');
    }
    out
}

pub fn items(list: &[(&str, Vec<u8>)]) -> Items {
    list.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect()
}

/// Takes a backup of `items` as source `stdin`, of the given name, now.
pub fn backup(repo: &Arc<Repository>, name: &str, items: &Items) -> Snapshot {
    try_backup(repo, name, items, Timestamp::now()).unwrap()
}

/// Takes a backup that says it was taken `hours` ago.
pub fn backup_ago(repo: &Arc<Repository>, name: &str, items: &Items, hours: i64) -> Snapshot {
    try_backup(repo, name, items, Timestamp::now() - SignedDuration::from_hours(hours)).unwrap()
}

pub fn try_backup(
    repo: &Arc<Repository>,
    name: &str,
    items: &Items,
    time: Timestamp,
) -> Result<Snapshot, SnapshotError<io::Error>> {
    try_backup_with(repo, name, time, |sink| push(sink, items))
}

/// Pushes items into a backup.
pub fn push(sink: &dyn ItemSink, items: &Items) -> io::Result<()> {
    for (order, (path, bytes)) in items.iter().enumerate() {
        let mut item = sink.begin(order as u64, path, "stream")?;
        item.write_all(bytes)?;
        item.finish(ItemFacts { rows: Some(1), ..ItemFacts::default() })?;
    }
    Ok(())
}

/// Takes a backup with a source of the test's own.
pub fn try_backup_with(
    repo: &Arc<Repository>,
    name: &str,
    time: Timestamp,
    take: impl FnOnce(&dyn ItemSink) -> io::Result<()>,
) -> Result<Snapshot, SnapshotError<io::Error>> {
    try_take(repo, name, time, take).map(|taken| taken.snapshot)
}

/// The same with what is known only while it runs.
pub fn try_take(
    repo: &Arc<Repository>,
    name: &str,
    time: Timestamp,
    take: impl FnOnce(&dyn ItemSink) -> io::Result<()>,
) -> Result<Taken, SnapshotError<io::Error>> {
    let options = SnapshotOptions {
        source: "stdin".to_owned(),
        name: name.to_owned(),
        host: "h".to_owned(),
        tags: vec![],
        options: Map::new(),
        write: WriteOptions { sealers: 1, level: 1, delta: true },
        time,
    };
    snapshot(repo, options, &Progress::default(), |sink, _| take(sink).map(|()| SourceFacts::default()))
}

/// Everything a backup holds.
pub fn restore(repo: &Arc<Repository>, id: &ObjectId) -> Result<Items, PipelineError> {
    let reader = Reader::new(repo.clone(), 1, Progress::default());
    let manifest = repo.snapshot(id)?.manifest;
    let mut out = Items::new();
    reader.each_item(&manifest, &mut |item| {
        let mut bytes = Vec::new();
        reader.read_item(&item, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        out.insert(item.path, bytes);
        Ok(())
    })?;
    Ok(out)
}

pub fn prune_options(keep: KeepRules) -> PruneOptions {
    PruneOptions {
        keep,
        grace: SignedDuration::ZERO,
        max_unused: None,
        repack: true,
        dry_run: false,
        host: "h".to_owned(),
        now: Timestamp::now(),
        sealers: 1,
        level: 1,
    }
}

pub fn keep_last(last: u32) -> KeepRules {
    KeepRules { last, ..KeepRules::default() }
}

/// `vault prune --keep-last N --grace 0s`.
pub fn prune_now(repo: &Arc<Repository>, last: u32) -> PruneReport {
    prune(repo, &prune_options(keep_last(last)), &Progress::default()).unwrap()
}

pub fn check_options(read_data: ReadData) -> CheckOptions {
    CheckOptions { read_data, max_duration: None, threads: 2, now: Timestamp::now() }
}

pub fn check_all(repo: &Arc<Repository>) -> CheckReport {
    check(repo, &check_options(ReadData::All), &Progress::default()).unwrap()
}

/// The oracle: everything checks, every backup is what it was, nothing else is visible.
pub fn assert_whole(lab: &Lab, expected: &[(ObjectId, &Items)]) {
    let repo = lab.open("a fresh host");
    let report = check_all(&repo);
    assert_eq!(report.status, Status::Clean, "{:#?}", report.findings);
    let ids: Vec<_> = repo.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids.len(), expected.len(), "backups that can be seen");
    for (id, items) in expected {
        assert!(restore(&repo, id).unwrap() == **items, "backup {id} is not what was backed up");
    }
}

/// Nothing is left that no backup needs.
pub fn assert_no_garbage(lab: &Lab) {
    let repo = lab.open("a fresh host");
    assert_eq!(check_all(&repo).garbage, Garbage::default());
    assert_eq!(lab.names("marks/"), Vec::<String>::new());
    assert_eq!(lab.names("leases/"), Vec::<String>::new());
}

type Hook = Box<dyn FnOnce() + Send>;

/// A store that runs something once, right before the first call of a kind on a prefix.
pub struct Hooked {
    inner: Memory,
    hooks: Mutex<Vec<(&'static str, &'static str, Hook)>>,
}

impl Hooked {
    pub fn new(inner: &Memory) -> Self {
        Self { inner: inner.clone(), hooks: Mutex::default() }
    }

    pub fn before(self, call: &'static str, prefix: &'static str, hook: impl FnOnce() + Send + 'static) -> Self {
        self.hooks.lock().unwrap().push((call, prefix, Box::new(hook)));
        self
    }

    fn run(&self, call: &str, name: &str) {
        let hook = {
            let mut hooks = self.hooks.lock().unwrap();
            let found = hooks.iter().position(|(kind, prefix, _)| *kind == call && name.starts_with(prefix));
            found.map(|at| hooks.remove(at).2)
        };
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl Backend for Hooked {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        self.run("put", name);
        self.inner.put(name, bytes)
    }
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.run("get", name);
        self.inner.get(name, range)
    }
    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.run("list", prefix);
        self.inner.list(prefix, each)
    }
    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.run("delete", name);
        self.inner.delete(name)
    }
    fn properties(&self) -> Properties {
        self.inner.properties()
    }
}
