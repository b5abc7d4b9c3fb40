//! Disks that are full: of the repository, of the cache, of the target. Each on a tmpfs of a few megabytes, mounted where
//! only the test's own processes see it.

use std::process::Command;

use super::harness::{Done, Home, skipped};

/// Runs a shell script with `small` mounted as a file system of `size`; `None`, and the test named as skipped, where mounts
/// are not allowed. The script finds the program as `$VAULT`.
fn on_small_disk(home: &Home, test: &str, small: &str, size: &str, script: &str) -> Option<Done> {
    std::fs::create_dir_all(home.path(small)).expect("the home can be written");
    let mount = format!("mount -t tmpfs -o size={size},mode=0777 tmpfs '{}'", home.path(small).display());
    let namespace = [&["unshare", "-m"][..], &["unshare", "-rm"]];
    let allowed = |namespace: &&&[&str]| {
        let tried = Command::new(namespace[0]).args(&namespace[1..]).args(["sh", "-c", &mount]).output();
        tried.is_ok_and(|done| done.status.success())
    };
    let Some(namespace) = namespace.iter().find(allowed) else {
        skipped(&format!("full::{test}"), "this user may not mount a tmpfs in a namespace of its own");
        return None;
    };
    let vault = home.vault(&[]);
    let mut command = Command::new(namespace[0]);
    command.args(&namespace[1..]).args(["sh", "-c", &format!("{mount} || exit 99\n{script}")]);
    command.env_clear().envs(vault.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("VAULT", vault.get_program());
    Some(Done::of(&mut command))
}

#[test]
fn a_full_repository_commits_nothing_and_gives_back_what_it_has() {
    let mut home = Home::new();
    home.use_key_file();
    let script = "\
        $VAULT init -q && first=$(echo some bytes | $VAULT snapshot stdin --name small -q) || exit 98
        head -c 20000000 /dev/urandom | $VAULT snapshot stdin --name large -q; echo code $?
        $VAULT snapshots --json | grep -c large
        $VAULT restore $first --stdout -q; echo code $?";
    let test = "a_full_repository_commits_nothing_and_gives_back_what_it_has";
    let Some(done) = on_small_disk(&home, test, "repo", "4m", script) else { return };
    assert_eq!(done.ok(), "code 15\n0\nsome bytes\ncode 0\n", "{}", done.err);
    assert!(done.err.contains("no space left in"), "{}", done.err);
}

#[test]
fn a_full_cache_costs_nothing_but_a_warning() {
    let home = Home::with_repository();
    home.snapshot("x", b"some bytes");
    let script = "\
        head -c 1000000 /dev/zero > $HOME/.cache/filler
        id=$(head -c 30000000 /dev/urandom | tee $HOME/data | $VAULT snapshot stdin --name y -q); echo code $?
        $VAULT restore $id --stdout -q | cmp - $HOME/data && echo same";
    let test = "a_full_cache_costs_nothing_but_a_warning";
    let Some(done) = on_small_disk(&home, test, ".cache", "1m", script) else { return };
    assert_eq!(done.ok(), "code 0\nsame\n", "{}", done.err);
}

#[test]
fn a_full_target_is_an_error_of_the_restore() {
    let home = Home::with_repository();
    let script = "\
        head -c 5000000 /dev/urandom | $VAULT snapshot stdin --name x -q >$HOME/id || exit 98
        $VAULT restore latest --stdout -q >$HOME/target/file; echo code $?";
    let test = "a_full_target_is_an_error_of_the_restore";
    let Some(done) = on_small_disk(&home, test, "target", "2m", script) else { return };
    assert_eq!(done.ok(), "code 15\n", "{}", done.err);
    assert!(done.err.contains("No space left"), "{}", done.err);
}

#[test]
fn a_file_size_limit_is_an_error_and_not_a_death() {
    let home = Home::with_repository();
    let mut limited = Command::new("sh");
    let vault = home.vault(&["snapshot", "stdin", "--name", "x", "-q", "--", "head", "-c", "40000000", "/dev/urandom"]);
    limited.args(["-c", "ulimit -f 8192; exec \"$@\"", "sh"]).arg(vault.get_program()).args(vault.get_args());
    limited.env_clear().envs(vault.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Done::of(&mut limited).fails(15, &["space"]);
}
