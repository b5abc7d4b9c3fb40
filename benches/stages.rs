//! What the stages of a snapshot cost as bare library calls on one thread, beside the snapshot itself.
//!
//!     cargo bench --bench stages -- DUMP [NEXT-DUMP]
//!
//! Each stage goes over all of the dump by itself, with what the stages before it made already in memory. Their sum, over
//! the cores there are, is what a snapshot could take if nothing were to be done but that: the ideal. Cutting as vault does it
//! stands beside the library's, and not in the sum. Then the program is
//! run on the same dump into a new repository in a folder: a first snapshot, the same again, and, if a second dump is given,
//! that with deltas and without. Everything is in the page cache; a key file opens the repository, as Argon2id takes its
//! time on purpose. Median of five runs. Prints Markdown.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::Instant;

use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use fastcdc::v2020::{Normalization, cut_gear, select_masks};
use vault::chunk::Chunker;
use vault::format::config::standard_chunker;
use vault::format::manifest::ChunkerParams;
use vault::limits::{BLOB_BYTES_MAX, PACK_BYTES_TARGET, STREAM_BUFFER_BYTES};
use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound};

const RUNS: usize = 5;
const LEVEL: i32 = 3;

fn main() {
    // `cargo bench` adds an option of its own.
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).filter(|arg| arg != "--bench").map(PathBuf::from).collect();
    let [dump, rest @ ..] = &paths[..] else {
        println!("stages: no dump given; cargo bench --bench stages -- DUMP [NEXT-DUMP]");
        return;
    };
    let bytes = fs::read(dump).unwrap_or_else(|error| panic!("{}: {error}", dump.display()));
    let cores = available_parallelism().map_or(1, usize::from);
    println!("{:.0} MB, {cores} cores, median of {RUNS} runs.\n", bytes.len() as f64 / 1e6);
    let stages = stages(&bytes);
    let sum =
        |names: &[&str]| stages.iter().filter(|(name, _)| names.contains(name)).map(|(_, took)| took).sum::<f64>();
    println!("| stage, one thread | seconds | MB/s |\n|---|---|---|");
    for (name, seconds) in &stages {
        println!("| {name} | {seconds:.2} | {:.0} |", bytes.len() as f64 / 1e6 / seconds);
    }
    let all: f64 = stages.iter().filter(|(name, _)| *name != OWN_CUT).map(|(_, seconds)| seconds).sum();
    let unchanged = sum(&[READ, HASH, CUT, NAMES]);
    println!("| sum | {all:.2} | |\n");
    drop(bytes);

    let next = rest.first();
    let folder = tempfile::Builder::new().prefix("vault-stages-").tempdir().expect("a temporary folder can be made");
    println!("| snapshot | seconds | ideal: sum over {cores} cores | ideal / real |\n|---|---|---|---|");
    let runs: Vec<Vec<f64>> = (0..RUNS).map(|_| snapshots(folder.path(), dump, next)).collect();
    let names = ["first", "the same again", "the next dump, --delta off", "the next dump, with deltas"];
    let ideals = [Some(all), Some(unchanged), None, None];
    for (at, (name, ideal)) in names.iter().zip(ideals).enumerate().take(runs[0].len()) {
        let real = median(runs.iter().map(|run| run[at]).collect());
        match ideal.map(|seconds| seconds / cores as f64) {
            Some(ideal) => println!("| {name} | {real:.2} | {ideal:.2} | {:.2} |", ideal / real),
            None => println!("| {name} | {real:.2} | | |"),
        }
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn timed(mut work: impl FnMut()) -> f64 {
    let once = |work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    };
    median((0..RUNS).map(|_| once(&mut work)).collect())
}

const READ: &str = "read: into a buffer of 1 MiB";
const HASH: &str = "hash: BLAKE3 over the stream";
const CUT: &str = "cut: FastCDC";
const OWN_CUT: &str = "cut: the same by vault, not in the sum";
const NAMES: &str = "name: keyed BLAKE3 over each chunk";

/// Seconds of each stage over all of `bytes`.
fn stages(bytes: &[u8]) -> Vec<(&'static str, f64)> {
    let mut took = Vec::new();
    let mut buffer = vec![0; STREAM_BUFFER_BYTES];
    let read = || {
        bytes.chunks(STREAM_BUFFER_BYTES).for_each(|piece| black_box(&mut buffer)[..piece.len()].copy_from_slice(piece))
    };
    took.push((READ, timed(read)));
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        bytes.chunks(STREAM_BUFFER_BYTES).for_each(|piece| {
            hasher.update(piece);
        });
        black_box(hasher.finalize());
    };
    took.push((HASH, timed(hash)));

    let mut gear = [0; 256 * 8];
    blake3::Hasher::new().finalize_xof().fill(&mut gear);
    let gear: Vec<u64> = gear.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let shifted: Vec<u64> = gear.iter().map(|word| word << 1).collect();
    let ChunkerParams { min, avg, max, .. } = standard_chunker();
    let [min, avg, max] = [min, avg, max].map(|size| size as usize);
    let (mask_s, mask_l) = select_masks(avg, Normalization::Level1);
    let mut lengths = Vec::new();
    let cut = || {
        lengths.clear();
        let mut rest = bytes;
        while !rest.is_empty() {
            let window = &rest[..rest.len().min(max)];
            let (_, length) =
                cut_gear(window, min, avg, max, mask_s, mask_l, mask_s << 1, mask_l << 1, &gear, &shifted);
            lengths.push(length);
            rest = &rest[length..];
        }
    };
    took.push((CUT, timed(cut)));
    let table = gear.first_chunk().expect("a word for each byte");
    let chunker = Chunker::new(standard_chunker(), table).expect("it is the standard");
    let own_cut = || {
        let mut rest = bytes;
        while let Some(length) = chunker.cut(rest, true) {
            rest = &rest[length..];
        }
    };
    took.push((OWN_CUT, timed(own_cut)));
    let names = || {
        let mut at = 0;
        for length in &lengths {
            black_box(blake3::keyed_hash(&[7; 32], &bytes[at..at + length]));
            at += length;
        }
    };
    took.push((NAMES, timed(names)));

    let mut packed: Vec<Vec<u8>> =
        bytes.chunks(BLOB_BYTES_MAX).map(|raw| Vec::with_capacity(compress_bound(raw.len()))).collect();
    let mut context = CCtx::create();
    let set = [
        CParameter::CompressionLevel(LEVEL),
        // As vault sets them.
        CParameter::HashLog(16),
        CParameter::ChainLog(14),
    ];
    for parameter in set {
        context.set_parameter(parameter).expect("zstd knows it");
    }
    let compress = || {
        for (raw, out) in bytes.chunks(BLOB_BYTES_MAX).zip(&mut packed) {
            out.clear();
            context.compress2(out, raw).expect("the buffer has room");
        }
    };
    took.push(("compress: zstd, blobs of 2.1 MiB", timed(compress)));
    let (cipher, nonce) = (XChaCha20Poly1305::new(&Key::from([9; 32])), XNonce::from([1; 24]));
    let mut sealed: Vec<Vec<u8>> = Vec::new();
    let seal =
        || sealed = packed.iter().map(|raw| cipher.encrypt(&nonce, &raw[..]).expect("it is short enough")).collect();
    took.push(("seal: XChaCha20-Poly1305", timed(seal)));
    let mut inflate = DCtx::create();
    let mut out = Vec::with_capacity(BLOB_BYTES_MAX);
    let open = || {
        for (sealed, raw) in sealed.iter().zip(bytes.chunks(BLOB_BYTES_MAX)) {
            let opened = cipher.decrypt(&nonce, &sealed[..]).expect("it was sealed so");
            out.clear();
            inflate.decompress(&mut out, &opened).expect("it was compressed so");
            assert!(out == raw);
        }
    };
    took.push(("open again: decrypt, inflate, compare", timed(open)));
    let pack: Vec<u8> = sealed.concat();
    let pack_name = || {
        black_box(blake3::hash(&pack));
    };
    took.push(("name of the packs: BLAKE3", timed(pack_name)));
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let put = || {
        for (number, piece) in pack.chunks(PACK_BYTES_TARGET).enumerate() {
            write(&folder.path().join(number.to_string()), piece).expect("the folder takes files");
        }
    };
    took.push(("put: write and fsync", timed(put)));
    took
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Seconds of the snapshots of one new repository, in the order of the table.
fn snapshots(folder: &Path, dump: &Path, next: Option<&PathBuf>) -> Vec<f64> {
    let home = tempfile::tempdir_in(folder).expect("the folder takes folders");
    let (key, repo) = (home.path().join("key"), home.path().join("repo"));
    fs::write(&key, [5; 32]).expect("the folder takes files");
    let vault = |arguments: &[&str], stdin: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vault"));
        command.env_clear().env("HOME", home.path()).env("VAULT_REPO", &repo).env("VAULT_KEY_FILE", &key);
        let began = Instant::now();
        let status = command.args(arguments).stdin(stdin).stdout(Stdio::null()).status().expect("the program starts");
        assert!(status.success(), "vault {arguments:?}: {status}");
        began.elapsed().as_secs_f64()
    };
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("the file is ours");
    vault(&["init", "-q"], Stdio::null());
    let snapshot = |path: &Path, options: &[&str]| {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        vault(&[&["snapshot", "stdin", "--name", "dump", "-q"], options].concat(), file.into())
    };
    let mut took = vec![snapshot(dump, &[]), snapshot(dump, &[])];
    if let Some(next) = next {
        // Each time after the first dump only: the snapshot of the one before is dropped again.
        took.push(snapshot(next, &["--delta", "off"]));
        vault(&["forget", "latest", "-q"], Stdio::null());
        vault(&["prune", "--keep-last", "9", "--grace", "0s", "-q"], Stdio::null());
        took.push(snapshot(next, &[]));
    }
    took
}
