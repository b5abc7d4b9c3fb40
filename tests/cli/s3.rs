//! The same on a real bucket: MinIO, as `tests/run` starts it. What a store can do wrong: tests/s3.rs.

use super::harness::{Done, Home, skipped};

/// A home whose repository is a part of the bucket, and the bucket's name; `None`, and the test named as skipped, without
/// a MinIO.
pub fn home(test: &str) -> Option<(Home, String)> {
    let found = |name: &str| std::env::var(format!("VAULT_TEST_S3_{name}")).ok();
    let Some(endpoint) = found("ENDPOINT") else {
        skipped(&format!("s3::{test}"), "VAULT_TEST_S3_ENDPOINT is not set; tests/run sets it");
        return None;
    };
    let bucket = found("BUCKET").expect("set beside VAULT_TEST_S3_ENDPOINT");
    let mut home = Home::new();
    home.use_key_file();
    let nonce = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is past 1970").as_nanos();
    home.set("VAULT_REPO", &format!("s3://{bucket}/cli-{test}-{nonce}"));
    home.set("AWS_ENDPOINT_URL", &endpoint);
    home.set("AWS_ACCESS_KEY_ID", &found("ACCESS_KEY").expect("set beside VAULT_TEST_S3_ENDPOINT"));
    home.set("AWS_SECRET_ACCESS_KEY", &found("SECRET_KEY").expect("set beside VAULT_TEST_S3_ENDPOINT"));
    Some((home, bucket))
}

#[test]
fn a_snapshot_goes_through_a_bucket_and_back() {
    let Some((home, _)) = home("a_snapshot_goes_through_a_bucket_and_back") else { return };
    home.run(&["init"]).ok();
    let bytes: String = (0..200_000).map(|n| format!("row {n}\n")).collect();
    let id = home.snapshot("rows", bytes.as_bytes());
    assert_eq!(home.run(&["restore", &id, "--stdout"]).ok(), bytes);
    let doctor = home.run(&["doctor", "--json"]).json();
    let failed: Vec<_> = doctor.iter().filter(|finding| finding["status"] == "failed").collect();
    assert!(failed.is_empty() && doctor.len() > 10, "{doctor:?}");
}

#[test]
fn what_is_wrong_with_a_bucket_is_said() {
    let Some((mut home, bucket)) = home("what_is_wrong_with_a_bucket_is_said") else { return };
    home.run(&["snapshots"]).fails(10, &["no repository", "vault init"]);
    home.run_with("AWS_SECRET_ACCESS_KEY", "not the one", &["init"]).fails(14, &["AWS_SECRET_ACCESS_KEY"]);
    home.run_with("AWS_ACCESS_KEY_ID", "nobody", &["snapshots"]).fails(14, &["AWS_ACCESS_KEY_ID"]);
    home.run_with("AWS_ENDPOINT_URL", "http://127.0.0.1:1", &["snapshots"]).fails(14, &["127.0.0.1:1", "refused"]);
    for command in ["init", "snapshots"] {
        let missing = ["--repo", "s3://no-such-bucket-here/x", command];
        home.run(&missing).fails(10, &["no-such-bucket-here", "does not exist"]);
    }
    home.run(&["init"]).ok();
    home.run(&["init"]).fails(1, &["already holds a repository"]);
    home.set("VAULT_REPO", &format!("s3://key:canary-in-a-url@{bucket}/x"));
    let refused: Done = home.run(&["snapshots"]);
    refused.fails(2, &["AWS_SECRET_ACCESS_KEY"]);
    assert!(!refused.err.contains("canary"), "the secret is not repeated: {}", refused.err);
}
