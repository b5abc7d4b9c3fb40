//! What bad input gets: a clear error, the right exit code, and nothing lost.

use super::harness::{Home, files_below};

#[test]
fn no_repository_is_code_10_and_says_how_to_make_one() {
    let home = Home::new();
    for args in
        [&["snapshots"][..], &["show", "latest"], &["check"], &["key", "list"], &["restore", "latest", "--stdout"]]
    {
        home.run(args).fails(10, &["no repository", "vault init"]);
    }
    assert!(!home.path("repo").exists(), "looking does not make one");
}

#[test]
fn a_wrong_password_is_code_12() {
    let home = Home::with_password();
    home.run_with("VAULT_PASSWORD", "wrong", &["snapshots"])
        .fails(12, &["the one key slot does not open", "VAULT_PASSWORD"]);
}

#[test]
fn a_repository_is_not_made_over_another() {
    let home = Home::with_repository();
    let id = home.snapshot("x", b"some bytes");
    home.run(&["init"]).fails(1, &["already holds a repository"]);
    assert!(home.run(&["snapshots"]).ok().contains(&id[..12]));
}

#[test]
fn an_id_that_names_none_or_several_is_code_2() {
    let home = Home::with_repository();
    home.run(&["show", "latest"]).fails(2, &["latest", "vault snapshots"]);
    let ids: Vec<_> = (0..17).map(|n| home.snapshot("x", format!("number {n}").as_bytes())).collect();
    home.run(&["show", "0123456789abcdef"]).fails(2, &["0123456789abcdef", "vault snapshots"]);
    home.run(&["show", "../../etc"]).fails(2, &["vault snapshots"]);
    // Seventeen ids have at most sixteen first digits.
    let twice = (0..16)
        .map(|digit| format!("{digit:x}"))
        .find(|digit| ids.iter().filter(|id| id.starts_with(digit)).count() > 1);
    let twice = twice.expect("two of seventeen ids begin alike");
    let candidates: Vec<_> = ids.iter().filter(|id| id.starts_with(&twice)).map(|id| &id[..16]).collect();
    home.run(&["show", &twice]).fails(2, &[candidates[0], candidates[1], "more digits"]);
    home.run(&["show", &ids[3][..20]]).ok();
}

#[test]
fn a_producer_that_dies_or_prints_nothing_leaves_no_snapshot() {
    let home = Home::with_repository();
    let stdin = ["snapshot", "stdin", "--name", "x", "--"];
    let with = |command: &[&str]| home.run(&[&stdin[..], command].concat());
    with(&["sh", "-c", "echo some bytes; echo 'no such table' >&2; exit 3"])
        .fails(5, &["exit code 3", "no such table"]);
    with(&["sh", "-c", "echo some bytes; kill -9 $$"]).fails(5, &["signal 9"]);
    with(&["no-such-program"]).fails(5, &["no-such-program"]);
    with(&["true"]).fails(3, &["no bytes"]);
    home.run(&["snapshot", "stdin", "--name", "x"]).fails(3, &["no bytes"]);
    assert_eq!(home.run(&["snapshots", "--json"]).ok(), "", "nothing was committed");
    with(&["sh", "-c", "echo some bytes"]).ok();
}

#[test]
fn options_that_do_not_fit_are_code_2() {
    let home = Home::with_repository();
    for args in [
        &["snapshot", "stdin"][..],
        &["snapshot", "stdin", "--name", "", "--", "echo"],
        &["snapshot", "stdin", "--name", "x", "--compression", "99"],
        &["restore"],
        &["no-such-command"],
        &["snapshots", "--quiet", "--verbose"],
    ] {
        home.run(args).fails(2, &[]);
    }
}

#[test]
fn errors_are_objects_with_json() {
    let done = Home::new().run(&["--json", "snapshots"]);
    let error: serde_json::Value = serde_json::from_str(&done.err).expect("one object on stderr");
    assert_eq!(error["exit"], 10);
    assert!(error["error"].as_str().is_some_and(|text| text.contains("no repository")));
    assert_eq!((done.code, done.out.as_str()), (10, ""));
}

#[test]
fn prune_needs_a_keep_rule_that_keeps_something() {
    let home = Home::with_repository();
    home.snapshot("x", b"some bytes");
    home.run(&["prune"]).fails(2, &["keep rule", "--keep-days"]);
    for wrong in ["-1", "abc", "0", "1.5", ""] {
        home.run(&["prune", "--keep-days", wrong]).fails(2, &["--keep-days"]);
        home.run(&["prune", &format!("--keep-days={wrong}")]).fails(2, &["--keep-days"]);
    }
    for (option, wrong) in [("--grace", "-1h"), ("--grace", "soon"), ("--max-unused", "5"), ("--max-unused", "101%")] {
        home.run(&["prune", "--keep-last", "1", &format!("{option}={wrong}")]).fails(2, &[option, wrong]);
    }
    assert_eq!(home.run(&["snapshots", "--json"]).json().len(), 1, "nothing was dropped");
}

#[test]
fn an_option_that_would_do_nothing_is_refused() {
    let home = Home::with_repository();
    home.snapshot("x", b"some bytes");
    home.run(&["restore", "latest", "--stdout", "--clean"]).fails(2, &["--clean"]);
    let target = home.path("target");
    home.run(&["restore", "latest", "--target", target.to_str().expect("plain"), "--database", "shop"])
        .fails(2, &["--database", "stdin"]);
    home.run(&["check", "--read-data-subset", "7/5"]).fails(2, &["7/5"]);
}

#[test]
fn a_password_in_a_connection_string_is_refused_and_not_repeated() {
    let home = Home::with_repository();
    for dsn in ["postgres://me:canary-in-a-dsn@localhost/shop", "host=localhost password=canary-in-a-dsn"] {
        let done = home.run(&["snapshot", "postgres", "--from", dsn]);
        done.fails(2, &["PGPASSWORD", ".pgpass"]);
        assert!(!done.err.contains("canary"), "{}", done.err);
    }
    let nobody = ["postgres", "--from", "postgres://nobody@127.0.0.1:1/x"];
    home.run(&[&["snapshot"][..], &nobody].concat()).fails(3, &["127.0.0.1:1", "PGPORT"]);
    let doctor = home.run(&[&["doctor"][..], &nobody].concat());
    assert_eq!(
        (doctor.code, doctor.out.contains("127.0.0.1:1")),
        (1, true),
        "nothing was to be restored: {}",
        doctor.out
    );
}

#[test]
fn a_flipped_byte_is_found_named_and_kept_from_a_restore() {
    let home = Home::with_repository();
    let id = home.snapshot("x", &(0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    let pack =
        files_below(&home.path("repo/packs")).into_iter().max_by_key(|file| file.metadata().map_or(0, |m| m.len()));
    let pack = pack.expect("there is a pack");
    let mut bytes = std::fs::read(&pack).expect("it is ours");
    bytes[1000] ^= 1;
    std::fs::remove_file(&pack).expect("it is ours");
    std::fs::write(&pack, bytes).expect("it is ours");
    home.run(&["check", "-q"]).ok();
    let found = home.run(&["check", "--read-data", "--json"]);
    assert_eq!(found.code, 4, "{}", found.err);
    let lines: Vec<serde_json::Value> =
        found.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let name = pack.file_name().and_then(|name| name.to_str()).expect("hex");
    assert!(lines[0]["object"].as_str().is_some_and(|object| object.contains(name)), "{lines:?}");
    assert_eq!(lines[0]["backups"][0], id, "the backup it hits is named");
    assert_eq!(lines.last().expect("sums")["status"], "damaged");
    home.run(&["restore", &id, "--stdout"]).fails(4, &["vault check --read-data"]);
    home.run(&["restore", &id, "--validate-only"]).fails(4, &[]);
}
