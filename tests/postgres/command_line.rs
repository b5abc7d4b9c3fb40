//! The whole way as its users go it: the built program, a repository in a bucket or a folder, and back.
//!
//! The bucket is that of the MinIO in `VAULT_TEST_S3_*`, the reader that of format-spec in the Python of
//! `VAULT_TEST_PYTHON`; where one is missing its test is named as skipped.

use std::path::Path;
use std::process::Command;

use vault::source::postgres::{Password, Settings, SnapshotOptions};

use crate::every_kind::{assert_same, dump, make, snapshot_options, take};
use crate::harness::{Done, Home, files_below};
use crate::server::{Server, skipped};

/// Lets the programs of a home find the server.
pub fn show(home: &mut Home, settings: &Settings) {
    home.set("PGHOST", &settings.host.to_string());
    home.set("PGPORT", &settings.port.to_string());
    home.set("PGUSER", &settings.user);
    home.set("PGPASSWORD", settings.password.as_ref().map_or("", Password::reveal));
}

#[cfg(feature = "s3")]
#[test]
fn every_kind_of_object_goes_through_a_bucket_and_back() {
    const TEST: &str = "every_kind_of_object_goes_through_a_bucket_and_back";
    let Some(mut server) = Server::get(TEST) else { return };
    let found = |name: &str| std::env::var(format!("VAULT_TEST_S3_{name}")).ok();
    let Some(endpoint) = found("ENDPOINT") else { return skipped(TEST, "VAULT_TEST_S3_ENDPOINT is not set") };
    let database = make(&mut server);
    let mut home = Home::new();
    home.use_key_file();
    show(&mut home, &server.settings);
    let bucket = found("BUCKET").expect("set beside VAULT_TEST_S3_ENDPOINT");
    home.set("VAULT_REPO", &format!("s3://{bucket}/postgres-{database}"));
    home.set("AWS_ENDPOINT_URL", &endpoint);
    home.set("AWS_ACCESS_KEY_ID", &found("ACCESS_KEY").expect("set beside VAULT_TEST_S3_ENDPOINT"));
    home.set("AWS_SECRET_ACCESS_KEY", &found("SECRET_KEY").expect("set beside VAULT_TEST_S3_ENDPOINT"));

    home.run(&["init"]).ok();
    let original = dump(&server, &database);
    let id = home.run(&["snapshot", "postgres", "--database", &database, "-q"]).ok().trim_end().to_owned();
    home.run(&["check", "--read-data"]).ok();
    // The local index is gone, and with it everything that is not in the bucket.
    std::fs::remove_dir_all(home.path(".cache")).expect("the index is kept there");
    let into = server.database_name();
    let report = home.run(&["restore", &id, "--into", &into, "--json"]).json();
    let tables = report[0]["databases"][0]["tables"].as_array().expect("a list");
    assert!(tables.len() > 30, "each table is reported: {report:?}");
    assert_same(&original, &dump(&server, &into), "pg_dump of the original and of what came back from the bucket");

    // The next day the same rows are stored already.
    let again = home.run(&["snapshot", "postgres", "--database", &database, "--json"]).json();
    let new = again[0]["bytes_new"].as_u64().expect("a number");
    assert!(new < 200_000, "no more than the roles, of which other tests make some: {again:?}");
}

#[test]
fn the_reader_restores_the_items_of_a_database() {
    const TEST: &str = "the_reader_restores_the_items_of_a_database";
    let Some(mut server) = Server::get(TEST) else { return };
    let Some(python) = std::env::var_os("VAULT_TEST_PYTHON") else {
        return skipped(TEST, "VAULT_TEST_PYTHON is not set");
    };
    let (database, plain) = (make(&mut server), server.database());
    server.run(
        &plain,
        "CREATE TABLE long (i integer PRIMARY KEY, t text);
         INSERT INTO long SELECT i, md5(i::text) FROM generate_series(1, 100000) i",
    );
    let mut home = Home::with_repository();
    show(&mut home, &server.settings);
    let both = ["--database", &database, "--database", &plain];
    let id = home.run(&[&["snapshot", "postgres", "-q"], &both[..]].concat()).ok().trim_end().to_owned();
    // Beside it, the same databases through no repository.
    let databases = Some(vec![database.clone(), plain.clone()]);
    let kept = take(&SnapshotOptions { databases, ..snapshot_options(&server.settings, &database) }).unwrap();

    let reader = |args: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("format-spec/reader.py");
        let mut command = Command::new(&python);
        command.arg(script).arg(home.path("repo")).args(args).arg("--key-file").arg(home.path("key"));
        Done::of(command.env_clear().env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUTF8", "1"))
    };
    let items = reader(&["items", &id]).json();
    let out = home.path("out");
    reader(&["restore-all", &id, "--out", out.to_str().expect("temporary names are plain")]).ok();
    assert_eq!(files_below(&out).len(), items.len(), "one file an item");
    let mut tables = 0;
    for item in &items {
        let path = item["path"].as_str().expect("text");
        let bytes = std::fs::read(out.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(item["bytes"], bytes.len(), "{path}");
        assert_eq!(item["hash"], blake3::hash(&bytes).to_hex().as_str(), "{path}");
        if item["kind"] == "table-data" {
            tables += 1;
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(item["rows"], lines, "{path}: COPY text has a line a row");
        }
        // Roles are those of the whole server, where other tests make some.
        if path != "globals" {
            let other = kept.item(path).unwrap_or_else(|| panic!("{path} is in no other snapshot"));
            assert_eq!((&item["hash"], &item["rows"]), (&other.hash.into(), &other.rows.into()), "{path}");
        }
    }
    assert_eq!(items.len(), kept.paths().len(), "no item is missing");
    assert!(tables > 30, "{tables} tables");
    let rows = items.iter().find(|item| item["path"] == format!("{plain}/table/public/long")).map(|i| &i["rows"]);
    assert_eq!(rows, Some(&100_000.into()));
    assert_eq!(reader(&["check"]).ok(), "clean\n");
}
