//! Canaries: strings that occur nowhere else, given to vault as secrets and as data, and looked for in all that it leaves.

use super::harness::{Done, Home, files_below};

const OLD: &str = "canary-old-password-7d1c";
const NEW: &str = "canary-new-password-93fe";
const KEY: &str = "63616e6172792d6b65792d66696c652d63616e6172792d6b65792d66696c6521";
const DATA: &str = "canary-plaintext-of-a-row-0b52";

#[test]
fn no_secret_is_printed_stored_or_passed_on() {
    let home = Home::new();
    let mut said = String::new();
    let mut run = |password: &str, args: &[&str]| -> Done {
        let done = Done::of(
            home.vault(args).env("VAULT_PASSWORD", password).env("VAULT_NEW_PASSWORD", NEW).env("VAULT_LOG", "trace"),
        );
        said += &done.out;
        said += &done.err;
        done
    };
    run(OLD, &["init"]).ok();
    // The producer tells what it can see: its environment, and the command line of its parent.
    let script = format!("echo {DATA}; env; tr '\\0' ' ' </proc/$PPID/cmdline; grep core /proc/$PPID/limits");
    run(OLD, &["snapshot", "stdin", "--name", "x", "--", "sh", "-c", &script]).ok();
    let seen = run(OLD, &["restore", "latest", "--stdout"]).ok().to_owned();
    assert!(seen.contains("VAULT_REPO=") && seen.contains("snapshot stdin"), "the producer could look: {seen}");
    let core = seen.rsplit_once("Max core file size").and_then(|(_, rest)| rest.split_whitespace().next());
    assert_eq!(core, Some("0"), "no core file holds the keys: {seen}");
    let key = home.key_file("key");
    std::fs::write(&key, KEY).expect("it is ours");
    run(OLD, &["key", "add", "--new-key-file", &key]).ok();
    run(OLD, &["key", "passwd"]).ok();
    run(OLD, &["check"]).fails(12, &[]);
    run(NEW, &["-vvv", "check", "--json"]).ok();
    run("", &["--key-file", &key, "show", "latest", "-v"]).ok();
    run(NEW, &["doctor"]).ok();

    assert!(!seen.contains("VAULT_PASSWORD"), "no child gets the password: {seen}");
    let mut places = vec![("what it printed".to_owned(), said.replace(&seen, "").replace(&script, "").into_bytes())];
    for folder in ["repo", ".cache", ".local"] {
        for file in files_below(&home.path(folder)) {
            places.push((file.display().to_string(), std::fs::read(&file).expect("it is ours")));
        }
    }
    assert!(places.len() > 6, "the files of repository, cache and state were found");
    let key_bytes = data_encoding::HEXLOWER.decode(KEY.as_bytes()).expect("it is hex");
    let secrets = [OLD.as_bytes(), NEW.as_bytes(), KEY.as_bytes(), &key_bytes, DATA.as_bytes()];
    for (place, bytes) in &places {
        for secret in secrets {
            let text = String::from_utf8_lossy(secret);
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "{text:?} stands in {place}");
        }
    }
    assert!(!seen.contains(OLD) && !seen.contains(NEW), "the producer saw no password");
}
