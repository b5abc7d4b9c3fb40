//! What a snapshot leaves out and a restore chooses, and what it does with a target that is in the way.

use std::io::Write;
use std::process::Stdio;

use vault::progress::Progress;
use vault::source::postgres::{
    ErrorKind, ExportOptions, RestoreOptions, SnapshotOptions, export_dir, export_sql, restore,
};

use crate::every_kind::{assert_same, dump, make, restore_options, said, snapshot_options, take};
use crate::items::Kept;
use crate::server::Server;

const SHOP: &str = "
    CREATE TYPE state AS ENUM ('new', 'done');
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ begin return new; end $$;
    CREATE TABLE customers (id serial PRIMARY KEY, name text);
    CREATE TABLE orders (id serial PRIMARY KEY, customer integer REFERENCES customers, state state DEFAULT 'new', at timestamptz);
    CREATE INDEX orders_at ON orders (at);
    CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
    CREATE TABLE logs (line text) PARTITION BY LIST (line);
    CREATE TABLE logs_a PARTITION OF logs FOR VALUES IN ('a');
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM orders;
    INSERT INTO customers (name) SELECT 'c' || i FROM generate_series(1, 50) i;
    INSERT INTO orders (customer, state, at) SELECT i % 50 + 1, 'done', '2024-01-01'::timestamptz + i * interval '1 hour' FROM generate_series(1, 5000) i;
    INSERT INTO logs VALUES ('a'), ('a');
    REFRESH MATERIALIZED VIEW counted;";

fn shop(server: &mut Server) -> (String, Kept) {
    let database = server.database();
    server.run(&database, SHOP);
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap_or_else(|e| panic!("{}", said(&e)));
    (database, kept)
}

fn run(options: &RestoreOptions, kept: &Kept) -> Result<Vec<String>, String> {
    match restore(options, kept, &Progress::default()) {
        Ok(report) => Ok(report.warnings),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::RestoreTarget, "{}", said(&e));
            Err(said(&e))
        }
    }
}

#[test]
fn rows_of_hashed_enums_find_their_new_partition() {
    let Some(mut server) = Server::get("rows_of_hashed_enums_find_their_new_partition") else { return };
    let database = server.database();
    server.run(
        &database,
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h');
         CREATE TABLE by_mood (m mood, n integer) PARTITION BY HASH (m);
         CREATE TABLE by_mood_0 PARTITION OF by_mood FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE by_mood_1 PARTITION OF by_mood FOR VALUES WITH (MODULUS 3, REMAINDER 1);
         CREATE TABLE by_mood_2 PARTITION OF by_mood FOR VALUES WITH (MODULUS 3, REMAINDER 2);
         INSERT INTO by_mood SELECT (enum_range(NULL::mood))[i % 8 + 1], i FROM generate_series(1, 800) i;",
    );
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let rows = "SELECT md5(string_agg(m || ':' || n, ',' ORDER BY n)) FROM by_mood";
    // Oids go on from database to database, so some of these hash otherwise.
    for _ in 0..3 {
        let into = server.database_name();
        run(&restore_options(&server.settings, &into), &kept).unwrap();
        assert_eq!(server.value(&database, rows), server.value(&into, rows));
        // Something between, so that oids differ by more than before.
        server.run(&into, "CREATE TYPE other AS ENUM ('x', 'y')");
    }
}

#[test]
fn a_target_in_the_way_is_not_touched() {
    let Some(mut server) = Server::get("a_target_in_the_way_is_not_touched") else { return };
    let (database, kept) = shop(&mut server);
    let same = RestoreOptions { into: None, ..restore_options(&server.settings, "") };
    let error = run(&same, &kept).unwrap_err();
    assert!(error.contains("not empty") && error.contains("--into") && error.contains("--clean"), "{error}");
    assert_eq!(server.value(&database, "SELECT count(*) FROM orders"), "5000");

    // An empty one is fine.
    let empty = server.database();
    server.run("postgres", &format!("COMMENT ON DATABASE {empty} IS 'before'"));
    run(&restore_options(&server.settings, &empty), &kept).unwrap();
    let comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()";
    assert_eq!(server.value(&empty, comment), "before", "the mark has made room for the comment of before");
    server.run("postgres", &format!("COMMENT ON DATABASE {empty} IS NULL"));
    assert_same(&dump(&server, &database), &dump(&server, &empty), "dump");

    server.run(&empty, "DELETE FROM orders");
    let clean = RestoreOptions { clean: true, ..restore_options(&server.settings, &empty) };
    run(&clean, &kept).unwrap();
    assert_eq!(server.value(&empty, "SELECT count(*) FROM orders"), "5000");

    let error = restore(
        &RestoreOptions { clean: true, ..restore_options(&server.settings, "postgres") },
        &kept,
        &Progress::default(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    let held = server.client(&empty);
    let error = run(&clean, &kept).unwrap_err();
    assert!(error.contains("connected"), "{error}");
    drop(held);
}

#[test]
fn single_tables_come_back_with_what_they_need() {
    let Some(mut server) = Server::get("single_tables_come_back_with_what_they_need") else { return };
    let (database, kept) = shop(&mut server);
    let settings = server.settings.clone();
    let include = |names: &[&str], into: &str| RestoreOptions {
        include: names.iter().map(|&name| name.to_owned()).collect(),
        ..restore_options(&settings, into)
    };
    // Into a database of its own.
    let alone = server.database_name();
    let warnings = run(&include(&["public.orders"], &alone), &kept).unwrap();
    assert!(warnings.iter().any(|text| text.contains("orders_customer_fkey")), "{warnings:?}");
    assert_eq!(server.value(&alone, "SELECT count(*) FROM orders"), "5000");
    assert_eq!(server.value(&alone, "SELECT nextval('orders_id_seq')"), "5001");
    assert_eq!(
        server.value(
            &alone,
            "SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes WHERE tablename = 'orders'"
        ),
        "orders_at,orders_pkey"
    );
    assert_eq!(server.value(&alone, "SELECT count(*) FROM pg_trigger WHERE tgname = 'touched'"), "1");
    assert_eq!(server.value(&alone, "SELECT to_regclass('customers') IS NULL"), "t");

    // Back into the database that lost it, beside what is in use.
    let before = dump(&server, &database);
    server.run(&database, "DROP TABLE orders CASCADE");
    let mut back = include(&["orders"], "");
    back.into = None;
    let warnings = run(&back, &kept).unwrap();
    assert_eq!(warnings, Vec::<String>::new(), "its foreign key finds the other table");
    server.run(&database, "CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM orders");
    assert_same(&before, &dump(&server, &database), "dump before the loss and after");
    let error = run(&back, &kept).unwrap_err();
    assert!(error.contains("public.orders exists already") && error.contains("nothing is changed"), "{error}");
    assert_same(&before, &dump(&server, &database), "dump after a restore that is refused");

    // A partitioned table brings its partitions; a pattern that names nothing is an error.
    let parts = server.database_name();
    run(&include(&["logs"], &parts), &kept).unwrap();
    assert_eq!(server.value(&parts, "SELECT count(*) FROM logs"), "2");
    let error = restore(&include(&["public.order"], &parts), &kept, &Progress::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("public.order"), "{error}");
}

#[test]
fn schema_and_data_come_apart_and_together() {
    let Some(mut server) = Server::get("schema_and_data_come_apart_and_together") else { return };
    let (database, kept) = shop(&mut server);
    let into = server.database_name();
    run(&RestoreOptions { schema_only: true, ..restore_options(&server.settings, &into) }, &kept).unwrap();
    assert_eq!(server.value(&into, "SELECT count(*) FROM orders"), "0");
    run(&RestoreOptions { data_only: true, ..restore_options(&server.settings, &into) }, &kept).unwrap();
    server.run(&into, "REFRESH MATERIALIZED VIEW counted");
    assert_same(&dump(&server, &database), &dump(&server, &into), "dump of the original and of schema and data");
    let error =
        run(&RestoreOptions { data_only: true, ..restore_options(&server.settings, &into) }, &kept).unwrap_err();
    assert!(error.contains("has rows already"), "{error}");
    assert_eq!(
        server.value(&into, "SELECT count(*) FROM pg_namespace WHERE nspname = 'vault_restore'"),
        "1",
        "it is marked"
    );
}

#[test]
fn a_snapshot_leaves_out_what_it_is_told_to() {
    let Some(mut server) = Server::get("a_snapshot_leaves_out_what_it_is_told_to") else { return };
    let (database, whole) = shop(&mut server);
    let options = snapshot_options(&server.settings, &database);
    let without = take(&SnapshotOptions {
        exclude_table_data: vec!["public.ord*".into(), "logs".into(), "counted".into()],
        ..options.clone()
    })
    .unwrap();
    let tables = |kept: &Kept| kept.paths().into_iter().filter(|path| path.contains("/table/")).collect::<Vec<_>>();
    assert_eq!(tables(&without), [format!("{database}/table/public/customers")]);
    assert!(!without.text(&format!("{database}/post-data")).contains("REFRESH"));
    assert!(whole.text(&format!("{database}/post-data")).contains("REFRESH"));
    let schema = take(&SnapshotOptions { schema_only: true, ..options }).unwrap();
    assert_eq!(
        schema.paths(),
        [
            "globals".to_owned(),
            format!("{database}/database"),
            format!("{database}/pre-data"),
            format!("{database}/post-data")
        ]
    );
    let item = whole.item(&format!("{database}/table/public/orders")).unwrap();
    assert_eq!(item.meta["order_by"], serde_json::json!(["id"]));
    assert_eq!(item.rows, Some(5000));
}

#[test]
fn all_databases_are_one_snapshot() {
    let Some(mut server) = Server::get("all_databases_are_one_snapshot") else { return };
    let (one, two) = (server.database(), server.database());
    server.run(&one, "CREATE TABLE t AS SELECT 1 AS a");
    server.run(&two, "CREATE TABLE t AS SELECT 2 AS a");
    let options =
        SnapshotOptions { databases: Some(vec![two.clone(), one.clone()]), ..snapshot_options(&server.settings, &one) };
    let kept = Kept::default();
    let facts = vault::source::postgres::snapshot(&options, None, &kept, &Progress::default()).unwrap();
    kept.check_orders();
    assert_eq!(facts.consistency["kind"], "exact-per-database");
    assert!(facts.consistency["databases"][&one]["lsn"].is_string(), "{:?}", facts.consistency);
    let error = export_sql(&kept, None, &ExportOptions::default(), &mut Vec::new(), &Progress::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(&one), "{error}");
    let into = server.database_name();
    run(&RestoreOptions { databases: Some(vec![two]), ..restore_options(&server.settings, &into) }, &kept).unwrap();
    assert_eq!(server.value(&into, "SELECT a FROM t"), "2");
}

#[test]
fn psql_alone_brings_an_export_back() {
    let Some(mut server) = Server::get("psql_alone_brings_an_export_back") else { return };
    let database = make(&mut server);
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let mut sql = Vec::new();
    export_sql(&kept, Some(&database), &ExportOptions::default(), &mut sql, &Progress::default()).unwrap();
    let into = server.database();
    let mut child = server
        .tool("psql", &into)
        .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(&sql));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    writing.join().unwrap().unwrap();
    // The database's own settings are not in that stream.
    let from_schema = |text: String| text[text.find("Type: SCHEMA").expect("there are schemas")..].to_owned();
    let without_database = |text: String| {
        let acl = text.find("-- Name: DATABASE THIS_DATABASE; Type: ACL");
        acl.map_or(text.clone(), |at| {
            let end = text[at..].find("\n--\n-- Name").expect("it is not the last entry") + at;
            format!("{}{}", &text[..at - 3], &text[end + 1..])
        })
    };
    let (original, loaded) = (dump(&server, &database), dump(&server, &into));
    assert_same(&without_database(from_schema(original)), &without_database(from_schema(loaded)), "dump after psql");

    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let files = export_dir(&kept, None, &ExportOptions::default(), &target, &Progress::default()).unwrap();
    let names: Vec<String> = files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["globals.sql".to_owned(), "databases.sql".into(), format!("{database}.sql")]);
    let text = std::fs::read_to_string(&files[1]).unwrap();
    assert!(text.contains(&format!("CREATE DATABASE {database}")) && text.contains("SET work_mem"), "{text}");
    let error = export_dir(&kept, None, &ExportOptions::default(), &target, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
}

#[test]
fn nothing_belongs_to_others_without_owners() {
    let Some(mut server) = Server::get("nothing_belongs_to_others_without_owners") else { return };
    let database = server.database();
    let (owner, other) = (server.role(""), server.role("LOGIN CREATEDB"));
    server.run(&database, &format!("CREATE TABLE t (a integer PRIMARY KEY); ALTER TABLE t OWNER TO {owner}; GRANT SELECT ON t TO {owner}; INSERT INTO t VALUES (1)"));
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let into = server.database_name();
    let options = restore_options(&server.login(&other), &into);
    let error = run(&options, &kept).unwrap_err();
    assert!(error.contains("--no-owner"), "{error}");
    let options = RestoreOptions { no_owner: true, ..options };
    run(&options, &kept).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(server.value(&into, "SELECT relowner::regrole FROM pg_class WHERE relname = 't'"), other);
}

#[test]
fn a_latin_database_keeps_its_bytes() {
    let Some(mut server) = Server::get("a_latin_database_keeps_its_bytes") else { return };
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = server.database_name();
        server.run(
            "postgres",
            &format!("CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"),
        );
        server.run(&database, "CREATE TABLE t (a integer PRIMARY KEY, b text); SET client_encoding = 'SQL_ASCII'; INSERT INTO t VALUES (1, E'caf\\351'), (2, 'x')");
        let kept = take(&snapshot_options(&server.settings, &database)).unwrap_or_else(|e| panic!("{}", said(&e)));
        let into = server.database_name();
        run(&restore_options(&server.settings, &into), &kept).unwrap_or_else(|e| panic!("{encoding}: {e}"));
        let bytes = "SELECT string_agg(encode(convert_to(b, 'SQL_ASCII'), 'hex'), ',' ORDER BY a) FROM t";
        assert_eq!(server.value(&database, bytes), "636166e9,78", "{encoding}");
        assert_eq!(server.value(&into, bytes), "636166e9,78", "{encoding}");
    }
}

#[test]
fn tables_and_indexes_come_back_into_their_tablespaces() {
    let Some(mut server) = Server::get("tables_and_indexes_come_back_into_their_tablespaces") else { return };
    let database = server.database();
    let (fast, slow) = (server.tablespace(), server.tablespace());
    server.run(
        &database,
        &format!(
            "CREATE TABLE a (i integer PRIMARY KEY, t text) TABLESPACE {fast};
             CREATE TABLE b (i integer PRIMARY KEY USING INDEX TABLESPACE {slow}); CREATE TABLE c (i integer);
             CREATE INDEX a_t ON a (t) TABLESPACE {slow}; CREATE INDEX b_i ON b (i); CREATE INDEX c_i ON c (i) TABLESPACE {fast};
             INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i"
        ),
    );
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    for jobs in [1, 2] {
        let into = server.database_name();
        run(&RestoreOptions { jobs, ..restore_options(&server.settings, &into) }, &kept).unwrap();
        assert_same(&dump(&server, &database), &dump(&server, &into), "dump with tablespaces");
    }
    // Without the tablespace everything lies in the default one, and that is said.
    server.run(&database, "DROP TABLE a, b, c");
    for into in server.databases.clone() {
        server.run("postgres", &format!("DROP DATABASE IF EXISTS {into}"));
    }
    server.run("postgres", &format!("DROP TABLESPACE {fast}"));
    let text = kept.text("globals");
    assert!(text.contains(&format!("CREATE TABLESPACE {fast}")), "{text}");
    kept.change("globals", |bytes| *bytes = b"SELECT 1;\n".to_vec());
    let into = server.database_name();
    let warnings = run(&restore_options(&server.settings, &into), &kept).unwrap();
    let about = |warnings: &[String]| warnings.iter().filter(|text| text.contains(&fast)).count();
    assert_eq!(about(&warnings), 1, "one warning, for a table and an index: {warnings:?}");
    assert_eq!(server.value(&into, "SELECT count(*) FROM a"), "100");
    // The same for single tables, which come in one transaction.
    server.run(&into, "DROP TABLE a, c; CREATE TABLE other AS SELECT 1 AS a");
    let chosen = RestoreOptions { include: vec!["a".into(), "c".into()], ..restore_options(&server.settings, &into) };
    let warnings = run(&chosen, &kept).unwrap();
    assert_eq!(about(&warnings), 1, "{warnings:?}");
    let indexes = "SELECT string_agg(indexname, ',' ORDER BY indexname) FROM pg_indexes WHERE tablename IN ('a', 'c')";
    assert_eq!(server.value(&into, indexes), "a_pkey,a_t,c_i");
    assert_eq!(server.value(&into, "SELECT count(*) FROM a"), "100");
    let of_slow = format!("SELECT count(*) FROM pg_tables WHERE tablespace = '{slow}'");
    assert_eq!(server.value(&into, &of_slow), "0", "no table takes the tablespace of an index before it");
    server.run("postgres", &format!("DROP DATABASE {into}"));
}
