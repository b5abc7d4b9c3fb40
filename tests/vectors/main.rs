//! The vectors of format-spec/vectors/: bytes, and the outcome that every reader must come to.
//!
//! The outcomes are written down in `cases.rs` and `repository.rs` from the pages of format-spec/; the bytes are made by
//! `build.rs`, which shares nothing with the library. Three things are compared: the files with what is made here, the
//! library with the files (`run.rs`), and, in `tests/reader.rs`, the Python reader with the files.
//!
//! `VAULT_WRITE_VECTORS=1 cargo test --test vectors` writes the files anew after a change here, and the inputs that the fuzz
//! targets start from.

mod build;
mod bytes;
mod cases;
mod repository;
mod run;
mod seeds;

use std::path::PathBuf;

use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("format-spec/vectors")
}

fn groups() -> Vec<bytes::Group> {
    let mut groups = cases::all();
    groups.push(repository::group());
    groups
}

#[test]
fn the_files_are_what_is_made_here() {
    let write = std::env::var_os("VAULT_WRITE_VECTORS").is_some();
    let mut expected = std::collections::BTreeSet::new();
    for group in groups() {
        let path = folder().join(format!("{}.json", group.object));
        let text = format!("{}\n", serde_json::to_string_pretty(&group.json()).expect("only string keys"));
        if write {
            std::fs::write(&path, &text).expect("the folder of the vectors can be written");
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == text, "{} is not what this test makes: VAULT_WRITE_VECTORS=1 writes it anew", path.display());
        expected.insert(path);
    }
    for found in std::fs::read_dir(folder()).expect("the vectors are there") {
        let path = found.expect("the folder can be listed").path();
        let ours = path.extension().is_none_or(|extension| extension != "json") || expected.contains(&path);
        assert!(ours, "{} is made by nothing", path.display());
    }
}

#[test]
fn the_seeds_of_the_fuzz_targets_are_there() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, bytes) in seeds::seeds(&groups()) {
        let path = folder.join(&name);
        if std::env::var_os("VAULT_WRITE_VECTORS").is_some() {
            std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("the tree can be written");
            std::fs::write(&path, &bytes).expect("the tree can be written");
        }
        assert!(path.is_file(), "seed {name} is missing: VAULT_WRITE_VECTORS=1 writes it");
    }
}

#[test]
fn the_library_comes_to_every_outcome() {
    let (mut cases, mut wrong) = (0, Vec::new());
    for group in groups() {
        let path = folder().join(format!("{}.json", group.object));
        let file: Value = serde_json::from_slice(&std::fs::read(&path).expect("the vectors are there")).expect("JSON");
        for case in file["cases"].as_array().expect("a list of cases") {
            cases += 1;
            let mut given = file["given"].as_object().expect("an object").clone();
            given.extend(case["given"].as_object().expect("an object").clone());
            let object = file["object"].as_str().expect("text");
            let (outcome, facts) = match run::run(object, &given) {
                Ok(facts) => ("ok".to_owned(), facts),
                Err(failure) => (failure.class.to_owned(), Value::String(failure.message)),
            };
            let same = outcome == case["expect"] && (outcome != "ok" || facts == case["facts"]);
            if !same {
                wrong.push(format!("{object}, {}: {} expected, {outcome}: {facts}", case["name"], case["expect"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases >= 120, "only {cases} cases");
    println!("{cases} cases");
}

#[test]
fn no_two_cases_of_a_kind_have_one_name_or_one_input() {
    for group in groups() {
        let mut names = std::collections::BTreeSet::new();
        let mut inputs = std::collections::BTreeSet::new();
        for case in &group.cases {
            assert!(names.insert(case.name), "{}: two cases are called {:?}", group.object, case.name);
            let input = Value::from(case.given.clone()).to_string();
            assert!(inputs.insert(input), "{}, {:?}: another case has this input", group.object, case.name);
        }
    }
}
