//! A database with every kind of object comes back as it was: `pg_dump` of both is the same text.

use std::fmt::Write as _;

use vault::progress::Progress;
use vault::source::postgres::{
    PostgresError, RestoreOptions, RestoreReport, Settings, SnapshotOptions, ToolSearch, restore, snapshot,
};

use crate::items::Kept;
use crate::server::Server;

pub fn snapshot_options(connection: &Settings, database: &str) -> SnapshotOptions {
    let tools = ToolSearch::new(std::env::var("PATH").ok().as_deref());
    SnapshotOptions { jobs: 2, ..SnapshotOptions::of_database(connection, database, tools) }
}

pub fn restore_options(connection: &Settings, into: &str) -> RestoreOptions {
    RestoreOptions { verify: true, jobs: 2, ..RestoreOptions::of_database(connection, "0123abcd", into) }
}

/// Loads every_kind.sql; returns the database's name.
pub fn make(server: &mut Server) -> String {
    let database = server.database();
    let roles: Vec<String> = (0..3).map(|_| server.role("")).collect();
    let mut variables = Vec::new();
    for (name, value) in [("dbname", &database), ("role_a", &roles[0]), ("role_b", &roles[1]), ("role_c", &roles[2])] {
        variables.push(format!("{name}={value}"));
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/every_kind.sql");
    let mut arguments = vec!["-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", file];
    for variable in &variables {
        arguments.extend(["-v", variable]);
    }
    server.output("psql", &database, &arguments);
    database
}

/// What pg_dump says of a database: schema, rows and settings, with the database's own name taken out.
///
/// The rows of a table that is restored in another order than they lay in, or through another partition, are sorted.
pub fn dump(server: &Server, database: &str) -> String {
    let text = server.output("pg_dump", database, &["--create"]);
    let text = String::from_utf8(text).expect("the database is UTF-8").replace(database, "THIS_DATABASE");
    let mut out = String::with_capacity(text.len());
    let mut rows: Option<Vec<&str>> = None;
    for line in text.split('\n') {
        match &mut rows {
            Some(lines) if line == "\\." => {
                lines.sort_unstable();
                for row in rows.take().unwrap() {
                    let _ = writeln!(out, "{row}");
                }
                let _ = writeln!(out, "{line}");
            }
            Some(lines) => lines.push(line),
            None => {
                if line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ") {
                    continue;
                }
                let _ = writeln!(out, "{line}");
                if line.starts_with("COPY ") && line.ends_with(" FROM stdin;") {
                    rows = Some(Vec::new());
                }
            }
        }
    }
    out
}

/// A snapshot into memory.
pub fn take(options: &SnapshotOptions) -> Result<Kept, PostgresError> {
    let kept = Kept::default();
    snapshot(options, None, &kept, &Progress::default())?;
    Ok(kept)
}

/// The whole of an error.
pub fn said(error: &PostgresError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}

/// Compares two long texts and shows where they part.
pub fn assert_same(one: &str, other: &str, why: &str) {
    if one != other {
        let at = one.lines().zip(other.lines()).position(|(a, b)| a != b).unwrap_or(0);
        let shown = |text: &str| {
            let lines: Vec<String> =
                text.lines().skip(at.saturating_sub(8)).take(20).map(|l| l.chars().take(200).collect()).collect();
            lines.join("\n")
        };
        panic!("{why}: they part at line {at}\n---- one\n{}\n---- other\n{}", shown(one), shown(other));
    }
}

fn round_trip(server: &Server, database: &str, into: &str) -> (Kept, RestoreReport) {
    let kept = Kept::default();
    let facts = snapshot(&snapshot_options(&server.settings, database), None, &kept, &Progress::default())
        .unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_eq!(facts.warnings, Vec::<String>::new());
    assert_eq!(facts.consistency["kind"], "exact");
    kept.check_orders();
    let report = restore(&restore_options(&server.settings, into), &kept, &Progress::default())
        .unwrap_or_else(|e| panic!("{}", said(&e)));
    (kept, report)
}

#[test]
fn every_kind_of_object_comes_back() {
    let Some(mut server) = Server::get("every_kind_of_object_comes_back") else { return };
    let database = make(&mut server);
    let into = server.database_name();
    let (kept, report) = round_trip(&server, &database, &into);
    assert_eq!(report.warnings, Vec::<String>::new());
    assert_same(
        &dump(&server, &database),
        &dump(&server, &into),
        "pg_dump of the original and of the restored database",
    );

    // What pg_dump does not show.
    let unverified: Vec<&str> =
        report.databases[0].tables.iter().filter(|table| !table.verified).map(|table| table.name.as_str()).collect();
    assert_eq!(
        unverified,
        ["by_mood_0", "by_mood_1", "by_mood_2"],
        "all but those loaded through their parent are read again"
    );
    let marks = "SELECT count(*) FROM pg_namespace WHERE nspname = 'vault_restore'";
    assert_eq!(server.value(&into, marks), "0", "the mark is gone");
    assert_eq!(server.value(&into, "SELECT count(*) FROM no_columns"), "5");
    assert_eq!(server.value(&into, "SELECT count(*) FROM all_dropped"), "2");
    let without_statistics = "SELECT string_agg(relname, ',') FROM pg_class c \
        WHERE relkind IN ('r', 'p', 'm') AND relnamespace = 'public'::regnamespace AND reltuples > 0 \
        AND EXISTS (SELECT FROM pg_attribute a WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) \
        AND NOT EXISTS (SELECT FROM pg_statistic WHERE starelid = c.oid)";
    assert_eq!(server.value(&into, without_statistics), "", "every table with rows is analyzed");
    let of_several_columns = "SELECT count(*) > 0 FROM pg_statistic_ext_data";
    assert_eq!(server.value(&into, of_several_columns), "t", "after the statistics of several columns were made");
    let rows = kept.item(&format!("{database}/table/public/no_columns")).unwrap().rows;
    assert_eq!(rows, Some(5));
    let same = "SELECT md5(string_agg(md5(lo_get(oid)), ',' ORDER BY oid)) FROM pg_largeobject_metadata";
    assert_eq!(server.value(&database, same), server.value(&into, same), "large objects have the same content");

    // A snapshot of the restored database is the same again, but for what bears the database's name.
    let again = Kept::default();
    snapshot(&snapshot_options(&server.settings, &into), None, &again, &Progress::default()).unwrap();
    let contents = |kept: &Kept, name: &str| -> Vec<(String, String, Option<u64>)> {
        kept.contents()
            .into_iter()
            .map(|(path, hash, rows)| (path.replacen(name, "", 1), hash, rows))
            .filter(|(path, ..)| {
                !path.ends_with("/database") && !path.starts_with("/table/public/by_mood") && path != "globals"
            })
            .collect()
    };
    assert_eq!(contents(&kept, &database), contents(&again, &into), "the same data is the same bytes");
}
