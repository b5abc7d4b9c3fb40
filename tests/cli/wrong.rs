//! What bad input gets: a clear error, the right exit code, and nothing lost.

use super::harness::Home;

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
    home.run_with("VAULT_PASSWORD", "wrong", &["snapshots"]).fails(12, &["1 key slot", "VAULT_PASSWORD"]);
}

#[test]
fn a_repository_is_not_made_over_another() {
    let home = Home::with_repository();
    let id = home.snapshot("x", b"some bytes");
    home.run(&["init"]).fails(1, &["already holds a repository"]);
    assert!(home.run(&["snapshots"]).ok().contains(&id[..12]));
}

#[test]
fn a_repository_of_another_version_names_the_version_it_needs() {
    let home = Home::with_repository();
    let config = home.path("repo/config");
    let text = std::fs::read_to_string(&config).expect("it was made");
    let newer = text.replace(r#""vault":1"#, r#""vault":2"#).replace(r#""needs":"0.1.0""#, r#""needs":"3.4.0""#);
    assert_ne!(text, newer);
    let mode = std::fs::metadata(&config).expect("it was made").permissions();
    std::fs::remove_file(&config).expect("it is ours");
    std::fs::write(&config, newer).expect("it is ours");
    std::fs::set_permissions(&config, mode).expect("it is ours");
    home.run(&["snapshots"]).fails(1, &["version 2", "3.4.0"]);
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
