//! What a progress bar is told, through a repository in memory.

use std::io;
use std::sync::Arc;

use serde_json::Map;
use vault::backend::memory::Memory;
use vault::ops::restore::SnapshotItems;
use vault::pipeline::snapshot::WriteOptions;
use vault::progress::Progress;
use vault::repo::{Places, Repository};
use vault::seal::slot::Secret;
use vault::source::postgres::{restore, snapshot};
use vault::source::{Item, ItemSource};

use crate::every_kind::{restore_options, said, snapshot_options};
use crate::server::Server;

/// Looks at the progress each time a table has been read to its end.
struct Looking<'a> {
    items: &'a SnapshotItems,
    progress: &'a Progress,
}

impl ItemSource for Looking<'_> {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        self.items.each_item(each)
    }

    fn read_item(&self, item: &Item, out: &mut dyn io::Write) -> io::Result<()> {
        self.items.read_item(item, out)?;
        if item.kind == "table-data" {
            let view = self.progress.view();
            assert!(view.bytes >= item.bytes && view.bytes <= view.bytes_total, "after {}: {view:?}", item.path);
        }
        Ok(())
    }
}

#[test]
fn every_byte_is_counted_once() {
    let Some(mut server) = Server::get("every_byte_is_counted_once") else { return };
    let database = server.database();
    server.run(
        &database,
        "CREATE TABLE big AS SELECT i, md5(i::text) AS t FROM generate_series(1, 50000) i;
         CREATE TABLE small AS SELECT 1 AS a; SELECT lo_from_bytea(0, 'large')",
    );
    let folder = tempfile::tempdir().unwrap();
    let places = Places { cache: folder.path().join("cache"), state: folder.path().join("state") };
    let secret = Secret::KeyFile([7; 32].into());
    let now = jiff::Timestamp::now();
    let repo = Arc::new(Repository::init(Arc::new(Memory::default()), &secret, "test", now, &places).unwrap());
    let options = vault::ops::snapshot::SnapshotOptions {
        source: "postgres".to_owned(),
        name: database.clone(),
        host: "here".to_owned(),
        tags: Vec::new(),
        options: Map::new(),
        write: WriteOptions { sealers: 2, level: 3, delta: true },
        time: now,
    };
    let progress = Progress::default();
    let source = snapshot_options(&server.settings, &database);
    let done = vault::ops::snapshot::snapshot(&repo, options, &progress, |sink, parent| {
        snapshot(&source, parent, sink, &progress)
    })
    .unwrap()
    .snapshot;
    assert_eq!(progress.view().bytes, done.manifest.bytes, "those of the snapshot");

    let progress = Progress::default();
    let items = SnapshotItems::new(repo, done.manifest.clone(), 2, progress.clone());
    let looking = Looking { items: &items, progress: &progress };
    let into = server.database_name();
    restore(&restore_options(&server.settings, &into), &looking, &progress).unwrap_or_else(|e| panic!("{}", said(&e)));
}
