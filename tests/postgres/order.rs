//! In which order a table's rows are read, over snapshots of a table that changes: through a repository, as every snapshot
//! looks for its parent there.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};
use vault::backend::Memory;
use vault::ops::restore::SnapshotItems;
use vault::pipeline::snapshot::WriteOptions;
use vault::progress::Progress;
use vault::repo::{Places, Repository};
use vault::seal::slot::Secret;
use vault::source::ItemSource;
use vault::source::postgres::{SnapshotOptions, snapshot};

use crate::every_kind::snapshot_options;
use crate::server::Server;

/// A database with one table `t (id, ...)`, as many pages as rows, and a repository for its snapshots.
struct World {
    server: Server,
    database: String,
    repo: Arc<Repository>,
    _folder: tempfile::TempDir,
}

/// Pages up to which the server may sort.
const PAGES_MAX: u32 = 8_192;

impl World {
    fn new(test: &str) -> Option<Self> {
        let mut server = Server::get(test)?;
        let database = server.database();
        let folder = tempfile::tempdir().unwrap();
        let places = Places { cache: folder.path().join("cache"), state: folder.path().join("state") };
        let secret = Secret::KeyFile([7; 32].into());
        let repo = Repository::init(Arc::new(Memory::default()), &secret, "test", Timestamp::now(), &places).unwrap();
        // A row of 450 bytes fills the tenth of a page that may be filled.
        let table = "CREATE TABLE t (id integer NOT NULL, other integer NOT NULL, filler text, CONSTRAINT t_pkey PRIMARY KEY (id)) \
                     WITH (fillfactor = 10, autovacuum_enabled = off)";
        server.run(&database, table);
        Some(Self { server, database, repo: Arc::new(repo), _folder: folder })
    }

    /// Loads the table anew, each row up to `scatter` of the table's length behind its place by `id`, and returns what the
    /// server says about its order.
    fn load(&self, rows: u32, scatter: f64) -> f64 {
        self.server.run(
            &self.database,
            &format!(
                "TRUNCATE t; INSERT INTO t SELECT i, i % 7, repeat(md5(i::text), 14) FROM generate_series(1, {rows}) i \
                 ORDER BY i + {scatter}::float8 * {rows} * (abs(hashint4(i)) % 1000) / 1000.0"
            ),
        );
        self.analyze()
    }

    fn analyze(&self) -> f64 {
        self.server.run(&self.database, "ANALYZE t");
        let correlation = "SELECT correlation FROM pg_stats WHERE tablename = 't' AND attname = 'id'";
        self.server.value(&self.database, correlation).parse().unwrap()
    }

    /// The columns by which the next snapshot orders the rows; none if it reads them as they lie.
    fn snapshot(&self) -> Vec<String> {
        let options = vault::ops::snapshot::SnapshotOptions {
            source: "postgres".to_owned(),
            name: self.database.clone(),
            host: "here".to_owned(),
            tags: Vec::new(),
            options: Map::new(),
            write: WriteOptions { sealers: 1, level: 1, delta: true },
            time: Timestamp::now(),
        };
        let source = SnapshotOptions {
            sorted_bytes_max: u64::from(PAGES_MAX) * 8_192,
            ..snapshot_options(&self.server.settings, &self.database)
        };
        let progress = Progress::default();
        let taken = vault::ops::snapshot::snapshot(&self.repo, options, &progress, |sink, parent| {
            snapshot(&source, parent, sink, &progress)
        });
        let items = SnapshotItems::new(self.repo.clone(), taken.unwrap().snapshot.manifest, 1, progress);
        let (mut order, mut ids) = (Vec::new(), Vec::new());
        items
            .each_item(&mut |item| {
                if item.path.ends_with("/table/public/t") {
                    let names = item.meta.get("order_by").and_then(Value::as_array).into_iter().flatten();
                    order = names.map(|name| name.as_str().unwrap().to_owned()).collect();
                    items.read_item(&item, &mut ids)?;
                }
                Ok(())
            })
            .unwrap();
        let ids = String::from_utf8(ids).unwrap();
        let ids: Vec<u32> = ids.lines().map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect();
        assert!(order.is_empty() || ids.is_sorted(), "what the item says is how its rows stand");
        order
    }
}

#[test]
fn a_table_near_the_limit_keeps_its_order() {
    let Some(world) = World::new("a_table_near_the_limit_keeps_its_order") else { return };
    let rows = 3 * PAGES_MAX;
    for (first, by) in [(0.70, &["id"][..]), (0.80, &[])] {
        let correlation = world.load(rows, first);
        assert_eq!(correlation >= 0.8, !by.is_empty(), "{correlation}");
        // Under a name of its own, so that the first snapshot has no parent.
        world.server.run(&world.database, "ALTER TABLE t RENAME TO u");
        world.snapshot();
        world.server.run(&world.database, "ALTER TABLE u RENAME TO t");
        assert_eq!(world.snapshot(), by);
        for scatter in [0.80, 0.70, 0.85, 0.65] {
            let drifted = world.load(rows, scatter);
            assert!((0.73..0.86).contains(&drifted), "{drifted} is near the limit");
            assert_eq!(world.snapshot(), by, "from {correlation} to {drifted}");
        }
    }
}

#[test]
fn a_table_far_from_the_limit_changes_its_order_once() {
    let Some(world) = World::new("a_table_far_from_the_limit_changes_its_order_once") else { return };
    let rows = 3 * PAGES_MAX;
    let far = |scatter: f64, range: std::ops::Range<f64>| {
        let correlation = world.load(rows, scatter);
        assert!(range.contains(&correlation), "{correlation}");
        correlation
    };
    far(0.3, 0.94..1.0);
    assert_eq!(world.snapshot(), ["id"]);
    for _ in 0..2 {
        far(100.0, -0.1..0.1);
        assert_eq!(world.snapshot(), [""; 0]);
    }
    // It stays what it has become, as a queue does that goes round in its heap.
    for (scatter, range) in [(0.70, 0.8..0.85), (0.0, 0.99..1.1), (100.0, -0.1..0.1)] {
        far(scatter, range);
        assert_eq!(world.snapshot(), [""; 0]);
    }
}

#[test]
fn a_table_with_another_key_is_looked_at_anew() {
    let Some(world) = World::new("a_table_with_another_key_is_looked_at_anew") else { return };
    world.load(3 * PAGES_MAX, 0.0);
    assert_eq!(world.snapshot(), ["id"]);
    // Both orders are far from each other, and whether it lies in the new one decides.
    world.server.run(&world.database, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (other, id)");
    assert_eq!(world.snapshot(), [""; 0]);
    world.server.run(&world.database, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, other)");
    assert_eq!(world.snapshot(), [""; 0], "and now it is a table that was read as it lies");
}

#[test]
fn a_server_that_may_not_write_so_much_does_not_sort() {
    let Some(world) = World::new("a_server_that_may_not_write_so_much_does_not_sort") else { return };
    // Small enough to be sorted, if it were not for the limit.
    world.load(PAGES_MAX, 100.0);
    let database = &world.database;
    world.server.run("postgres", &format!("ALTER DATABASE {database} SET temp_file_limit = '100MB'"));
    assert_eq!(world.snapshot(), [""; 0]);
    world.server.run("postgres", &format!("ALTER DATABASE {database} RESET temp_file_limit"));
}

#[test]
fn a_table_that_grows_and_shrinks_keeps_its_order() {
    let Some(world) = World::new("a_table_that_grows_and_shrinks_keeps_its_order") else { return };
    let loaded = |rows: u32| {
        world.load(rows, 100.0);
        world.snapshot()
    };
    for rows in [PAGES_MAX * 3 / 4, PAGES_MAX * 5 / 4, PAGES_MAX * 3 / 4, PAGES_MAX * 5 / 4] {
        assert_eq!(loaded(rows), ["id"], "{rows} pages");
    }
    for rows in [PAGES_MAX * 3, PAGES_MAX * 3 / 4, PAGES_MAX * 5 / 4, PAGES_MAX * 3 / 4] {
        assert_eq!(loaded(rows), [""; 0], "{rows} pages");
    }
    assert_eq!(loaded(PAGES_MAX / 4), ["id"], "it is hardly there any more");
}
