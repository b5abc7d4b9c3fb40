//! This program in front of a repository that a later one has made or changed: it says which one is needed.

use vault::format::config::{Feature, Features};
use vault::repo::{Places, Repository};
use vault::seal::slot::Secret;
use zeroize::Zeroizing;

use super::harness::Home;

/// A repository with a snapshot, to which a later release has then added features.
fn with_features(features: Features) -> (Home, String) {
    let home = Home::with_repository();
    let id = home.snapshot("x", b"some bytes");
    let key: [u8; 32] = std::fs::read(home.path("key")).expect("it was made").try_into().expect("a key has 32 bytes");
    let backend = vault::backend::location::open(home.path("repo").to_str().expect("plain")).expect("it was made");
    let places = Places { cache: home.path("elsewhere"), state: home.path("elsewhere") };
    let repo = Repository::open(backend, &Secret::KeyFile(Zeroizing::new(key)), &places).expect("the key opens it");
    let mut config = repo.config.clone();
    config.features = features;
    replace_config(&home, &config.encode(|text| repo.keys.config_mac(text)));
    (home, id)
}

fn replace_config(home: &Home, bytes: &[u8]) {
    let config = home.path("repo/config");
    std::fs::remove_file(&config).expect("it is ours");
    std::fs::write(&config, bytes).expect("it is ours");
}

/// Two features that came one after the other.
fn unknown() -> Vec<Feature> {
    let feature = |name: &str, since: &str| Feature { name: name.to_owned(), since: since.to_owned() };
    vec![feature("sharded-index", "0.9.2"), feature("erasure-codes", "0.10.0")]
}

const NAMES: [&str; 3] = ["sharded-index", "erasure-codes", "vault 0.10.0 or newer"];

const LOOKING: [&[&str]; 6] =
    [&["snapshots"], &["show", "latest"], &["stats"], &["check", "--read-data"], &["key", "list"], &["doctor"]];
const ADDING: [&[&str]; 2] = [&["snapshot", "stdin", "--name", "y", "-q", "--", "echo", "more"], &["repair", "index"]];
const REMOVING: [&[&str]; 2] = [&["prune", "--keep-last", "1", "--grace", "0s"], &["forget", "latest"]];

#[test]
fn a_repository_of_another_version_names_the_version_it_needs() {
    let home = Home::with_repository();
    let text = std::fs::read_to_string(home.path("repo/config")).expect("it was made");
    let newer = text.replace(r#""vault":1"#, r#""vault":2"#).replace(r#""needs":"0.1.0""#, r#""needs":"3.4.0""#);
    assert_ne!(text, newer);
    replace_config(&home, newer.as_bytes());
    for args in LOOKING.iter().filter(|args| **args != ["doctor"]).chain(&ADDING).chain(&REMOVING) {
        home.run(args).fails(1, &["version 2", "vault 3.4.0 or newer"]);
    }
    let doctor = home.run(&["doctor"]);
    assert_eq!((doctor.code, doctor.out.contains("vault 3.4.0 or newer")), (1, true), "{}", doctor.out);
    home.run(&["init"]).fails(1, &["already holds a repository"]);
}

#[test]
fn an_unknown_feature_of_reading_stops_everything() {
    let (home, id) = with_features(Features { read: unknown(), ..Features::default() });
    for args in LOOKING.iter().filter(|args| **args != ["doctor"]).chain(&ADDING).chain(&REMOVING) {
        home.run(args).fails(1, &NAMES);
    }
    home.run(&["restore", &id, "--stdout"]).fails(1, &NAMES);
}

#[test]
fn an_unknown_feature_of_writing_stops_what_adds() {
    let (home, id) = with_features(Features { write: unknown(), ..Features::default() });
    assert_eq!(home.run(&["restore", &id, "--stdout"]).ok(), "some bytes");
    for args in LOOKING {
        home.run(args).ok();
    }
    home.run(ADDING[0]).fails(3, &NAMES);
    home.run(ADDING[1]).fails(1, &NAMES);
}

#[test]
fn an_unknown_feature_of_deleting_stops_what_removes() {
    let (home, id) = with_features(Features { delete: unknown(), ..Features::default() });
    for args in LOOKING.iter().chain(&ADDING) {
        home.run(args).ok();
    }
    for args in REMOVING {
        home.run(args).fails(1, &NAMES);
    }
    assert_eq!(home.run(&["restore", &id, "--stdout"]).ok(), "some bytes");
    assert_eq!(home.run(&["snapshots", "--json"]).json().len(), 2, "nothing was removed");
}
