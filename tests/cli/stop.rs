//! Ctrl-C, and what a service manager sends: the program ends within two seconds, nothing half-done counts, and what was
//! stored is used by the next run.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::harness::{Done, Home, files_below};

/// How long the program may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// How long anything else may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run that is stopped half way.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("the program can be started"))
    }

    /// Waits until `reached`; fails if the program ends before, or takes too long.
    #[track_caller]
    fn until(&mut self, what: &str, mut reached: impl FnMut() -> bool) {
        let started = Instant::now();
        while !reached() {
            let ended = self.0.try_wait().expect("it is our child");
            assert!(ended.is_none(), "it ended before {what}: {ended:?}");
            assert!(started.elapsed() < PATIENCE, "it took too long until {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal and waits for the end.
    #[track_caller]
    fn stop(self, signal: Signal) -> Done {
        let began = Instant::now();
        kill_process(pid(self.0.id()), signal).expect("it is our child");
        let output = self.0.wait_with_output().expect("it is our child");
        let took = began.elapsed();
        assert!(took < STOP_WITHIN, "it took {took:?} to stop");
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        Done { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed()).expect("a process has a number")
}

/// Whether all processes are gone whose ids stand in `lines`. One that nobody has waited for yet is.
fn gone(lines: &str) -> bool {
    lines.lines().all(|line| match std::fs::read_to_string(format!("/proc/{line}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    })
}

/// Bytes that do not compress, the same each time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise
}

fn packs(home: &Home) -> usize {
    let folder = home.path("repo/packs");
    if folder.exists() { files_below(&folder).iter().filter(|file| whole(file)).count() } else { 0 }
}

/// Whether a file carries the name of a pack: one that is being written does not.
fn whole(file: &Path) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.len() == 64)
}

/// A producer that prints a file and then, slowly, more of it without end; its process ids stand in `home`.
fn producer(home: &Home, data: &str) -> Vec<String> {
    let pids = home.path("pids");
    let script = format!("echo $$ >'{0}'; cat '{data}'; sleep 1000 & echo $! >>'{0}'; wait", pids.display());
    ["sh", "-c", &script].map(str::to_owned).to_vec()
}

fn stopped_snapshot(signal: Signal, code: i32) {
    let home = Home::with_repository();
    let data = home.file("data", noise(40 << 20));
    let stdin = ["snapshot", "stdin", "--name", "x", "--"];
    let producer = producer(&home, &data);
    let mut command = home.vault(&stdin);
    command.args(&producer);
    let mut running = Running::start(command);
    running.until("two packs were stored", || packs(&home) >= 2);
    let done = running.stop(signal);
    done.fails(code, &["stopped"]);
    assert_eq!(done.out, "", "no backup ID");

    assert_eq!(home.run(&["snapshots", "--json"]).ok(), "", "nothing was committed");
    let pids = std::fs::read_to_string(home.path("pids")).expect("the producer has begun");
    let began = Instant::now();
    while !gone(&pids) {
        assert!(began.elapsed() < STOP_WITHIN, "the producer is still there: {pids}");
        std::thread::sleep(Duration::from_millis(10));
    }

    let again = home.run(&["--json", "snapshot", "stdin", "--name", "x", "--", "cat", &data]).json();
    let field = |name: &str| again[0][name].as_u64().expect("a number");
    assert_eq!(field("bytes"), 40 << 20);
    assert!(field("bytes_stored") < 24 << 20, "two packs of 16 MiB are there already: {again:?}");
    home.run(&["check", "--read-data"]).ok();
    home.run(&["prune", "--keep-last", "1", "--grace", "0s"]).ok();
    let left: u64 = files_below(&home.path("repo/packs")).iter().map(|f| f.metadata().map_or(0, |m| m.len())).sum();
    assert!(left < 42 << 20, "what nobody needs of the run that was stopped is gone: {left}");
}

#[test]
fn ctrl_c_during_a_snapshot_commits_nothing_and_wastes_nothing() {
    stopped_snapshot(Signal::INT, 130);
}

#[test]
fn a_service_manager_stops_a_snapshot_as_ctrl_c_does() {
    stopped_snapshot(Signal::TERM, 143);
}

#[test]
fn ctrl_c_while_the_producer_is_silent_stops_as_well() {
    let home = Home::with_repository();
    let mut command = home.vault(&["snapshot", "stdin", "--name", "x", "--"]);
    command.args(producer(&home, "/dev/null"));
    let mut running = Running::start(command);
    let pids = || std::fs::read_to_string(home.path("pids")).unwrap_or_default();
    running.until("the producer fell silent", || pids().lines().count() == 2);
    running.stop(Signal::INT).fails(130, &["stopped"]);
    assert!(gone(&pids()), "the producer is still there: {}", pids());
    assert_eq!(home.run(&["snapshots", "--json"]).ok(), "", "nothing was committed");
}

/// A repository whose next reads take some seconds, and the id of what it holds.
fn slow_home() -> (Home, String, Vec<u8>) {
    let home = Home::with_repository();
    // Three packs: of a limited store, the first reads go at full speed.
    let bytes = noise(40 << 20);
    let id = home.snapshot("x", &bytes);
    (home, id, bytes)
}

const SLOW: [&str; 2] = ["--limit-download", "1MB"];

#[test]
fn ctrl_c_during_a_restore_leaves_nothing_that_looks_whole() {
    let (home, id, bytes) = slow_home();
    let target = home.path("target");
    let restore = ["restore", &id, "--target", target.to_str().expect("plain")];
    let mut running = Running::start(home.vault(&[&SLOW[..], &restore].concat()));
    running.until("the restore has begun", || target.exists() && !files_below(&target).is_empty());
    let done = running.stop(Signal::INT);
    done.fails(130, &["stopped"]);
    assert!(!target.join("x").exists(), "a part of the file does not have its name");
    home.run(&[&restore[..], &["--resume"]].concat()).ok();
    assert!(std::fs::read(target.join("x")).is_ok_and(|back| back == bytes), "the next run brings all of it back");
    assert_eq!(files_below(&target).len(), 1, "and leaves nothing else");
}

#[test]
fn ctrl_c_during_a_restore_to_a_pipe_is_seen_by_who_reads() {
    let (home, id, _) = slow_home();
    let mut running = Running::start(home.vault(&[&SLOW[..], &["restore", &id, "--stdout"]].concat()));
    let started = Instant::now();
    running.until("a moment has passed", || started.elapsed() > Duration::from_millis(1500));
    let killed = Instant::now();
    kill_process(pid(running.0.id()), Signal::INT).expect("it is our child");
    // Nobody has read the pipe: it is full, and the program waits in a write.
    let status = running.0.wait().expect("it is our child");
    assert!(killed.elapsed() < STOP_WITHIN, "it took {:?} to stop", killed.elapsed());
    assert_eq!(status.code(), Some(130));
}

#[test]
fn ctrl_c_during_a_check_ends_it_without_a_verdict() {
    let (home, _, _) = slow_home();
    let mut running = Running::start(home.vault(&[&SLOW[..], &["check", "--read-data"]].concat()));
    let started = Instant::now();
    running.until("a moment has passed", || started.elapsed() > Duration::from_millis(1500));
    let done = running.stop(Signal::INT);
    done.fails(130, &["stopped"]);
    assert_eq!(done.out, "", "no finding");
    home.run(&["check", "--read-data"]).ok();
}
