//! Passwords and key files.

use std::io::Write;
use std::process::{Command, Stdio};

use super::harness::{Done, Home, PASSWORD, skipped};

fn slots(home: &Home) -> Vec<serde_json::Value> {
    home.run(&["key", "list", "--json"]).json()
}

#[test]
fn a_password_is_changed_and_the_old_one_opens_nothing() {
    let home = Home::with_password();
    let id = home.snapshot("x", b"some bytes");
    let new = home.file("new", "another one\n");
    home.run(&["key", "passwd", "--new-password-file", &new]).ok();
    home.run(&["snapshots"]).fails(12, &["key slot", "VAULT_PASSWORD"]);
    let listed = home.run_with("VAULT_PASSWORD", "another one", &["snapshots"]);
    assert!(listed.ok().contains(&id[..12]), "the new password opens it");
    let slots = home.run_with("VAULT_PASSWORD", "another one", &["key", "list", "--json"]);
    assert_eq!(slots.json().len(), 1, "the old slot is gone");
}

#[test]
fn a_key_file_opens_the_repository_too() {
    let home = Home::with_password();
    let id = home.snapshot("x", b"some bytes");
    let open = home.file("open key", [7; 32]);
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("it is ours");
    home.run(&["key", "add", "--new-key-file", &open]).fails(2, &["others may read it", "chmod 600"]);
    let short = home.key_file("short");
    std::fs::write(&short, "too short").expect("it is ours");
    home.run(&["key", "add", "--new-key-file", &short]).fails(2, &["32 bytes", "/dev/urandom"]);
    let key = home.key_file("key");
    let added = home.run(&["key", "add", "--new-key-file", &key, "--label", "offline"]);
    let slot = added.ok().trim_end().to_owned();
    assert!(home.run(&["--key-file", &key, "snapshots"]).ok().contains(&id[..12]));
    let listed = home.run(&["--key-file", &key, "key", "list", "--json"]).json();
    let used: Vec<_> = listed.iter().filter(|one| one["used"] == true).collect();
    assert_eq!(used.len(), 1, "{listed:?}");
    assert_eq!(
        (&used[0]["id"], &used[0]["kind"], &used[0]["label"]),
        (&slot.into(), &"key-file".into(), &"offline".into())
    );
}

#[test]
fn the_last_slot_and_the_slot_in_use_stay() {
    let home = Home::with_password();
    let first = slots(&home)[0]["id"].as_str().expect("a text").to_owned();
    home.run(&["key", "remove", &first]).fails(2, &["last key slot", "vault key add"]);
    let second = home.run_with("VAULT_NEW_PASSWORD", "second", &["key", "add"]).ok().trim_end().to_owned();
    home.run(&["key", "remove", &first]).fails(2, &["slot that you use", "vault key passwd"]);
    home.run(&["key", "remove", "zz"]).fails(2, &["no key slot", "vault key list"]);
    home.run(&["key", "remove", &second[..8]]).ok();
    assert_eq!(slots(&home).len(), 1);
    home.run_with("VAULT_PASSWORD", "second", &["snapshots"]).fails(12, &[]);
}

#[test]
fn without_a_terminal_a_missing_password_is_named() {
    let home = Home::new();
    let names = ["VAULT_PASSWORD", "VAULT_PASSWORD_FILE", "VAULT_PASSWORD_COMMAND", "--password-file", "--key-file"];
    Done::of(home.vault(&["init"]).env_remove("VAULT_PASSWORD")).fails(2, &names);
    assert!(!home.path("repo/config").exists(), "nothing was made");
    home.run(&["init"]).ok();
    home.run(&["key", "add"]).fails(2, &["VAULT_NEW_PASSWORD", "--new-password-file"]);
}

#[test]
fn every_way_to_give_the_password_works() {
    let home = Home::with_password();
    home.snapshot("x", b"some bytes");
    let file = home.file("password", PASSWORD);
    let ways = [
        ("VAULT_PASSWORD_FILE", file.clone()),
        ("VAULT_PASSWORD_COMMAND", format!("cat {file}")),
        ("VAULT_CONFIG", home.file("vault.toml", format!("password-file = {file:?}"))),
    ];
    for (name, value) in ways {
        let done = Done::of(home.vault(&["snapshots"]).env_remove("VAULT_PASSWORD").env(name, value));
        assert_eq!(done.code, 0, "{name}: {}", done.err);
    }
    home.run_with("VAULT_PASSWORD", "wrong", &["snapshots", "--password-file", &file]).ok();
    let mut failing = home.vault(&["snapshots"]);
    failing.env_remove("VAULT_PASSWORD").env("VAULT_PASSWORD_COMMAND", "exit 3");
    Done::of(&mut failing).fails(2, &["password command failed"]);
}

/// Runs a command line on a terminal of its own, on which `typed` is typed.
fn on_a_terminal(test: &str, home: &Home, line: &str, typed: &str) -> Option<Done> {
    if Command::new("script").arg("--version").output().is_err() {
        skipped(&format!("keys::{test}"), "there is no `script`, which makes terminals");
        return None;
    }
    let vault = home.vault(&[]);
    let mut command = Command::new("script");
    command.args(["-qec", line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().envs(vault.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("VAULT", vault.get_program()).env_remove("VAULT_PASSWORD");
    let mut child = command.spawn().expect("it was just asked for its version");
    let mut keyboard = child.stdin.take().expect("it was asked for");
    keyboard.write_all(typed.as_bytes()).expect("a few bytes fit");
    let output = child.wait_with_output().expect("it is our child");
    drop(keyboard);
    let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
    Some(Done { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) })
}

#[test]
fn a_new_password_is_asked_for_twice() {
    let test = "a_new_password_is_asked_for_twice";
    let home = Home::new();
    let Some(done) = on_a_terminal(test, &home, "$VAULT init", "sesame\nsesamo\n") else { return };
    assert_eq!(done.code, 2, "{}", done.out);
    assert!(done.out.contains("not the same"), "{}", done.out);
    let done = on_a_terminal(test, &home, "$VAULT init", "\n\n").expect("there was one");
    assert_eq!((done.code, done.out.contains("empty password")), (2, true), "{}", done.out);
    assert!(!home.path("repo/config").exists(), "nothing was made");
    on_a_terminal(test, &home, "$VAULT init", "sesame\nsesame\n").expect("there was one").ok();
    home.run_with("VAULT_PASSWORD", "sesame", &["snapshots"]).ok();
    // The pipe is the data's: the terminal is asked.
    let line = "echo some bytes | $VAULT snapshot stdin --name x -q";
    on_a_terminal(test, &home, line, "sesame\n").expect("there was one").ok();
    assert_eq!(home.run_with("VAULT_PASSWORD", "sesame", &["restore", "latest", "--stdout"]).ok(), "some bytes\n");
}
