//! Users of a bucket who may not do everything: a host that only backs up, and one that cannot even look.

use std::io::Write;
use std::process::{Command, Stdio};

use super::harness::{Home, skipped};
use super::s3;

/// The variables that make us a user who may do `objects` with what is in the bucket, and `bucket` with the bucket.
fn session(bucket: &str, objects: &[&str], buckets: &[&str]) -> [(&'static str, String); 3] {
    let statement = |actions: &[&str], resource: String| {
        let actions: Vec<_> = actions.iter().map(|action| format!("s3:{action}")).collect();
        serde_json::json!({ "Effect": "Allow", "Action": actions, "Resource": [format!("arn:aws:s3:::{resource}")] })
    };
    let mut statements = vec![statement(objects, format!("{bucket}/*"))];
    if !buckets.is_empty() {
        statements.push(statement(buckets, bucket.to_owned()));
    }
    let policy = serde_json::json!({ "Version": "2012-10-17", "Statement": statements });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/minio_session.py");
    let found = |name: &str| std::env::var(format!("VAULT_TEST_S3_{name}")).expect("set beside VAULT_TEST_S3_ENDPOINT");
    let mut python = Command::new("python3");
    python.args([script, &found("ENDPOINT"), &found("ACCESS_KEY"), &found("SECRET_KEY")]);
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("there is a python3");
    write!(child.stdin.take().expect("it was asked for"), "{policy}").expect("it reads the policy");
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "MinIO gives a session");
    let text = String::from_utf8(output.stdout).expect("keys are plain");
    let mut lines = text.lines().map(str::to_owned);
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
        .map(|name| (name, lines.next().expect("three lines")))
}

/// A home with a repository in a bucket, made by the owner, and then used by somebody with fewer rights.
fn home(test: &str, objects: &[&str], buckets: &[&str]) -> Option<(Home, String)> {
    let Some((mut home, bucket)) = s3::home(test) else {
        skipped(&format!("rights::{test}"), "it needs a MinIO");
        return None;
    };
    home.run(&["init"]).ok();
    let id = home.snapshot("x", b"some bytes");
    for (name, value) in session(&bucket, objects, buckets) {
        home.set(name, &value);
    }
    Some((home, id))
}

#[test]
fn a_host_that_may_not_delete_backs_up_and_restores() {
    let test = "a_host_that_may_not_delete_backs_up_and_restores";
    let Some((home, first)) = home(test, &["GetObject", "PutObject"], &["ListBucket"]) else { return };
    let second = home.snapshot("x", b"some bytes more");
    assert_eq!(home.run(&["restore", &first, "--stdout"]).ok(), "some bytes");
    assert_eq!(home.run(&["restore", &second, "--stdout"]).ok(), "some bytes more");
    home.run(&["check", "--read-data"]).ok();
    home.run(&["forget", &first]).fails(14, &["denies delete", "s3:DeleteObject", &first]);
    home.run(&["prune", "--keep-last", "1", "--grace", "0s"]).fails(14, &["denies delete", "s3:DeleteObject"]);
    assert_eq!(home.run(&["snapshots", "--json"]).json().len(), 2, "both are there");
    assert_eq!(home.run(&["restore", &first, "--stdout"]).ok(), "some bytes");
    let doctor = home.run(&["doctor"]);
    assert!(doctor.ok().contains("may not"), "{}", doctor.out);
}

#[test]
fn a_host_that_may_not_list_is_told_so() {
    let Some((home, id)) =
        home("a_host_that_may_not_list_is_told_so", &["GetObject", "PutObject", "DeleteObject"], &[])
    else {
        return;
    };
    // An answer that is missing is not an answer that there is nothing.
    for args in [&["snapshots"][..], &["restore", &id, "--stdout"], &["prune", "--keep-last", "1"], &["check"]] {
        home.run(args).fails(14, &["denies list", "s3:ListBucket"]);
    }
    let data = home.file("input", "more bytes");
    home.run(&["snapshot", "stdin", "--name", "x", "--", "cat", &data]).fails(14, &["denies list", "s3:ListBucket"]);
}

#[test]
fn a_host_that_may_only_read_restores_and_says_why_it_cannot_back_up() {
    let test = "a_host_that_may_only_read_restores_and_says_why_it_cannot_back_up";
    let Some((home, id)) = home(test, &["GetObject"], &["ListBucket"]) else { return };
    assert_eq!(home.run(&["restore", &id, "--stdout"]).ok(), "some bytes");
    home.run(&["check", "--read-data"]).ok();
    home.run(&["snapshot", "stdin", "--name", "x", "--", "echo", "more"]).fails(14, &["denies put", "s3:PutObject"]);
}
