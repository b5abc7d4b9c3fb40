//! What goes in comes out: streams of every shape through a repository in memory, with and without delta, with the local
//! index whole, deleted and damaged.

use std::io::{self, Read};
use std::sync::Arc;

use serde_json::Map;
use vault::backend::fault::{Failure, Fault, Faults, Rule};
use vault::backend::memory::Memory;
use vault::backend::recording::CallKind;
use vault::format::manifest::StreamRef;
use vault::limits::SEGMENT_BYTES;
use vault::ops::restore::SnapshotItems;
use vault::ops::snapshot::{SnapshotError, SnapshotOptions, snapshot};
use vault::pipeline::snapshot::WriteOptions;
use vault::progress::Progress;
use vault::repo::snapshots::Snapshot;
use vault::repo::{Places, Repository};
use vault::seal::slot::Secret;
use vault::source::{ItemFacts, ItemSource, ItemStream, SourceFacts, TakeInError};

const MEBI: usize = 1 << 20;

struct Lab {
    folder: tempfile::TempDir,
    backend: Arc<Memory>,
}

fn secret() -> Secret {
    Secret::KeyFile([7; 32].into())
}

impl Lab {
    fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap(), backend: Arc::new(Memory::default()) };
        let now = jiff::Timestamp::UNIX_EPOCH;
        Repository::init(lab.backend.clone(), &secret(), "test", now, &lab.places()).unwrap();
        lab
    }

    fn places(&self) -> Places {
        Places { cache: self.folder.path().join("cache"), state: self.folder.path().join("state") }
    }

    fn open(&self) -> Arc<Repository> {
        let repo = Repository::open(self.backend.clone(), &secret(), &self.places()).unwrap();
        repo.load_index(&Progress::default()).unwrap();
        Arc::new(repo)
    }

    fn take(&self, items: &[(&str, &[u8])], delta: bool) -> Snapshot {
        self.take_in_pieces(items, delta, &[8192])
    }

    /// The items come in pieces of these lengths, over and over.
    fn take_in_pieces(&self, items: &[(&str, &[u8])], delta: bool, pieces: &[usize]) -> Snapshot {
        let write = |stream: &mut dyn ItemStream, mut rest: &[u8]| {
            let mut lengths = pieces.iter().cycle();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
                stream.write_all(piece)?;
                rest = after;
            }
            Ok(())
        };
        self.try_take(self.open(), items, delta, write).unwrap()
    }

    fn try_take(
        &self,
        repo: Arc<Repository>,
        items: &[(&str, &[u8])],
        delta: bool,
        write: impl Fn(&mut dyn ItemStream, &[u8]) -> io::Result<()>,
    ) -> Result<Snapshot, SnapshotError<io::Error>> {
        let options = SnapshotOptions {
            source: "test".to_owned(),
            name: "test".to_owned(),
            host: "here".to_owned(),
            tags: Vec::new(),
            options: Map::new(),
            write: WriteOptions { sealers: 3, level: 3, delta },
            time: jiff::Timestamp::now(),
        };
        let taken = snapshot(&repo, options, &Progress::default(), |sink, _| -> io::Result<SourceFacts> {
            for (order, (path, bytes)) in items.iter().enumerate() {
                let mut stream = sink.begin(order as u64, path, "test")?;
                write(&mut *stream, bytes)?;
                let done = stream.finish(ItemFacts::default())?;
                assert_eq!((done.bytes, done.hash), (bytes.len() as u64, blake3::hash(bytes)));
            }
            Ok(SourceFacts::default())
        })?;
        Ok(taken.snapshot)
    }

    /// The chunk lists of all items.
    fn lists(&self, snapshot: &Snapshot) -> Vec<StreamRef> {
        let source = SnapshotItems::new(self.open(), snapshot.manifest.clone(), 1, Progress::default());
        let mut lists = Vec::new();
        source
            .each_item(&mut |item| {
                lists.push(item.stream);
                Ok(())
            })
            .unwrap();
        lists
    }

    fn assert_holds(&self, snapshot: &Snapshot, items: &[(&str, &[u8])]) {
        let source = SnapshotItems::new(self.open(), snapshot.manifest.clone(), 2, Progress::default());
        let mut got = Vec::new();
        source
            .each_item(&mut |item| {
                let mut bytes = Vec::new();
                source.read_item(&item, &mut bytes)?;
                got.push((item.path.clone(), bytes));
                Ok(())
            })
            .unwrap();
        assert_eq!(got.len(), items.len());
        for ((path, bytes), (wanted_path, wanted)) in got.iter().zip(items) {
            assert_eq!(path, wanted_path);
            assert!(bytes == wanted, "{path} came back with other bytes");
        }
    }
}

/// Bytes that look random and are the same everywhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A table dump: rows of about 100 bytes, of which `changed` says which have another text.
fn rows(count: u32, changed: impl Fn(u32) -> bool) -> Vec<u8> {
    (0..count)
        .flat_map(|row| {
            let text =
                data_encoding::HEXLOWER.encode(&noise(u64::from(row) + u64::from(changed(row)) * 1_000_000_007, 40));
            format!("{row}\t{text}\tsome words that are the same in every row\n").into_bytes()
        })
        .collect()
}

#[test]
fn streams_of_every_size_come_back() {
    let lab = Lab::new();
    let sizes = [0, 1, 16_384, 16_385, 262_144, 1 << 20, (1 << 20) + 1, 5_000_000, 40_000_000];
    let streams: Vec<_> = sizes.iter().map(|&size| (format!("noise/{size}"), noise(size as u64, size))).collect();
    let mut items: Vec<_> = streams.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let zeros = vec![0; 3_000_000];
    items.push(("zeros", &zeros));
    let first = lab.take(&items, true);
    lab.assert_holds(&first, &items);
    let second = lab.take(&items, true);
    assert_eq!(second.manifest.bytes_new, 0, "the same again is found again, all of it");
    assert_eq!(second.manifest.parent, Some(first.id));
    assert_eq!((second.manifest.seq, second.manifest.previous), (2, Some(first.id)));
    lab.assert_holds(&second, &items);
}

#[test]
fn streams_are_cut_alike_in_whatever_pieces_they_come() {
    let lab = Lab::new();
    let bytes = noise(5, 23_456_789);
    let items: &[(&str, &[u8])] = &[("stream", &bytes)];
    let first = lab.take(items, true);
    for pieces in [
        &[4 * MEBI][..],
        &[2 * MEBI, 1, 3 * MEBI + 7, 100_000],
        &[300_000, 2 * MEBI],
        &[4 * MEBI - 1, 4 * MEBI],
        &[5, 20_000_000],
        &[bytes.len()],
    ] {
        let again = lab.take_in_pieces(items, true, pieces);
        assert_eq!(lab.lists(&again), lab.lists(&first), "pieces of {pieces:?}");
        lab.assert_holds(&again, items);
    }
}

/// Gives bytes in pieces of these lengths, over and over; at the end, an error if there is one.
struct Pieces<'b> {
    rest: &'b [u8],
    lengths: std::iter::Cycle<std::slice::Iter<'b, usize>>,
    fails: Option<io::ErrorKind>,
}

impl<'b> Pieces<'b> {
    fn of(rest: &'b [u8], lengths: &'b [usize]) -> Self {
        Self { rest, lengths: lengths.iter().cycle(), fails: None }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty()
            && let Some(kind) = self.fails
        {
            return Err(kind.into());
        }
        let length = (*self.lengths.next().unwrap()).min(buffer.len()).min(self.rest.len());
        let (now, later) = self.rest.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.rest = later;
        Ok(length)
    }
}

#[test]
fn streams_that_are_read_are_those_that_are_written() {
    let lab = Lab::new();
    let around =
        |segments: usize| [segments * SEGMENT_BYTES - 1, segments * SEGMENT_BYTES, segments * SEGMENT_BYTES + 1];
    let sizes = [[0, 1, 100_000], around(1), around(2), around(3), around(7)].concat();
    let streams: Vec<_> = sizes.iter().map(|&size| (format!("{size}"), noise(size as u64, size))).collect();
    let items: Vec<_> = streams.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let first = lab.take(&items, true);
    for (before, lengths) in
        [(0, &[usize::MAX][..]), (0, &[MEBI, 65_536, 3 * MEBI + 7, 1]), (5, &[2 * MEBI]), (SEGMENT_BYTES, &[300_000])]
    {
        let write = |stream: &mut dyn ItemStream, bytes: &[u8]| {
            // Some of it is written before, some after.
            let (written, read) = bytes.split_at(before.min(bytes.len()));
            let (read, after) = read.split_at(read.len() - before.min(read.len()));
            stream.write_all(written)?;
            let Ok(took) = stream.take_in(&mut Pieces::of(read, lengths)) else { panic!("it can be read") };
            assert_eq!(took, read.len() as u64);
            stream.write_all(after)
        };
        let again = lab.try_take(lab.open(), &items, true, write).unwrap();
        assert_eq!(again.manifest.bytes_new, 0);
        assert_eq!(lab.lists(&again), lab.lists(&first), "{before} bytes before, then {lengths:?}");
        lab.assert_holds(&again, &items);
    }
}

#[test]
fn what_cannot_be_read_or_stored_ends_a_stream_that_is_read() {
    let lab = Lab::new();
    for size in [0, 100, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 5, 10 * SEGMENT_BYTES] {
        let bytes = noise(9, size);
        let failed = lab.try_take(lab.open(), &[("item", &bytes)], true, |stream, bytes| {
            let mut input = Pieces { fails: Some(io::ErrorKind::BrokenPipe), ..Pieces::of(bytes, &[MEBI]) };
            match stream.take_in(&mut input) {
                Err(TakeInError::Read(error)) => Err(error),
                other => panic!("{other:?} of what breaks after {size} bytes"),
            }
        });
        let Err(SnapshotError::Source(error)) = failed else { panic!("{failed:?}") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
    // Room for two packs, and then no more.
    let fault = Fault::FailBefore(Failure::NoSpace);
    let store = Faults::new(lab.backend.clone(), [Rule::new(CallKind::Put, fault).under("packs/").from(3)]);
    let repo = Repository::open(Arc::new(store), &secret(), &lab.places()).unwrap();
    repo.load_index(&Progress::default()).unwrap();
    let bytes = noise(10, 40 * SEGMENT_BYTES);
    let failed = lab.try_take(Arc::new(repo), &[("item", &bytes)], true, |stream, bytes| {
        let mut input = Pieces::of(bytes, &[MEBI]);
        let Err(TakeInError::Store(error)) = stream.take_in(&mut input) else { panic!("it was stored") };
        assert!(!input.rest.is_empty(), "no more is read than can be stored");
        Err(error)
    });
    assert!(matches!(failed, Err(SnapshotError::Pipeline(_))), "{failed:?}");
}

#[test]
fn many_small_items_share_blobs() {
    let lab = Lab::new();
    let streams: Vec<_> = (0..3000u64).map(|n| (format!("small/{n}"), noise(n, 200))).collect();
    let items: Vec<_> = streams.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let taken = lab.take(&items, true);
    assert!(taken.manifest.bytes_stored < 2_000_000, "600 kB of noise in {} bytes", taken.manifest.bytes_stored);
    lab.assert_holds(&taken, &items);
}

#[test]
fn scattered_changes_cost_little_with_delta_and_chains_end() {
    let lab = Lab::new();
    let mut stored = Vec::new();
    let mut days = Vec::new();
    for day in 0..7u32 {
        let dump = rows(200_000, |row| day > 0 && row.wrapping_mul(2_654_435_761) % 100 < day);
        let taken = lab.take(&[("table", &dump)], true);
        stored.push(taken.manifest.bytes_stored);
        days.push((taken, dump));
    }
    let alone = Lab::new();
    alone.take(&[("table", &days[0].1)], false);
    let without = alone.take(&[("table", &days[1].1)], false).manifest.bytes_stored;
    assert!(stored[1] * 5 < without, "with delta {stored:?}, without {without}");
    for (taken, dump) in &days {
        lab.assert_holds(taken, &[("table", dump)]);
    }
}

#[test]
fn rows_that_leave_their_place_are_found_by_the_lengths_of_chunks() {
    let lab = Lab::new();
    let first = rows(200_000, |_| false);
    // As in a heap: changed rows leave holes where they were and come again at the end; something new stands before all.
    let lines: Vec<&[u8]> = first.split_inclusive(|&b| b == b'\n').collect();
    let (moved, stay): (Vec<_>, Vec<_>) = lines.iter().enumerate().partition(|(row, _)| row % 97 == 0);
    let mut second = noise(1, 700_000);
    stay.iter().chain(&moved).for_each(|(_, line)| second.extend_from_slice(line));
    lab.take(&[("table", &first)], true);
    let taken = lab.take(&[("table", &second)], true);
    lab.assert_holds(&taken, &[("table", &second)]);
    let alone = Lab::new();
    alone.take(&[("table", &first)], false);
    let without = alone.take(&[("table", &second)], false).manifest.bytes_stored - 700_000;
    let with = taken.manifest.bytes_stored - 700_000;
    assert!(with * 3 < without, "with delta {with}, without {without}");
}

#[test]
fn a_deleted_or_damaged_local_index_changes_no_result() {
    let lab = Lab::new();
    let data = noise(1, 9_000_000);
    let taken = lab.take(&[("data", &data)], true);
    let file = std::fs::read_dir(lab.places().cache).unwrap().next().unwrap().unwrap().path().join("index.sqlite");
    let whole = std::fs::read(&file).unwrap();
    assert!(!whole.is_empty(), "the local index is where it is looked for");
    let remove_journal = || {
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
    };
    for damage in 0..40 {
        remove_journal();
        let mut bytes = whole.clone();
        match damage {
            0 => bytes.clear(),
            1 => bytes.truncate(whole.len() / 2),
            2 => bytes = noise(2, 8192),
            _ => {
                let at = (damage * 7919) * 131 % whole.len();
                bytes[at..].iter_mut().take(64).for_each(|byte| *byte ^= 0x5a);
            }
        }
        std::fs::write(&file, bytes).unwrap();
        lab.assert_holds(&taken, &[("data", &data)]);
        let again = lab.take(&[("data", &data)], true);
        lab.assert_holds(&again, &[("data", &data)]);
    }
    std::fs::remove_dir_all(lab.places().cache).unwrap();
    lab.assert_holds(&taken, &[("data", &data)]);
}
