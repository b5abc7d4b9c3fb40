//! What a database (or a folder, or a pipe) is to vault: a run of items out of it, and a run of items back into it.
//!
//! A source pushes items into an [`ItemSink`]; a target pulls them from an [`ItemSource`]. Both are implemented by the
//! layers above, so a source knows nothing of chunks, packs and backends.
//!
//! Items are plaintext, never compressed, in a stable order, and nothing volatile (times, positions, tool banners) stands
//! inside their bytes: that belongs into the facts.

pub mod files;
pub mod postgres;
pub mod stdin;

use std::ffi::OsStr;
use std::io;
use std::process::Command;

use serde_json::{Map, Value};

pub use crate::format::manifest::Item;
use crate::limits::STREAM_BUFFER_BYTES;

/// Settings of vault's own that no child process gets to see.
const SECRET_VARIABLES: [&str; 2] = ["VAULT_PASSWORD", "VAULT_NEW_PASSWORD"];

/// A command to run, with the environment of this process but for vault's own passwords. Every child is started by it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    SECRET_VARIABLES.iter().for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// Takes the items of one snapshot. Usable from several threads at once.
pub trait ItemSink: Sync {
    /// Starts an item.
    ///
    /// `order` is its place in the snapshot: every number from 0 up to the last is used exactly once, but items may be
    /// begun and finished in any order and side by side. Orders that lie far apart are buffered, so begin roughly in order.
    ///
    /// `path` is unique in the snapshot: `/`-separated, each component non-empty, not `.` or `..`, without NUL. A component
    /// that is somebody's name is passed through [`escape_component`]. `kind` is the source's own word for what it is
    /// (`table-data`, `file`, `stream`...).
    fn begin<'s>(&'s self, order: u64, path: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>>;

    /// Takes over the content of an item of the parent snapshot without reading it again, with new facts.
    ///
    /// Returns false if that is not possible (some of its chunks are not certain to be stored): then `begin` it.
    fn reuse(&self, order: u64, unchanged: &Item, facts: ItemFacts) -> io::Result<bool>;

    /// Whether what changed here and there in an item is stored against what it was in the snapshot before, so that it costs
    /// little wherever it stands.
    fn makes_deltas(&self) -> bool {
        true
    }
}

/// One item being written: bytes in, then [`finish`](ItemStream::finish). Dropped without it, the snapshot fails.
pub trait ItemStream: io::Write + Send {
    /// Takes in all that `input` has, as if it were written piece by piece. Returns how many bytes that were.
    fn take_in(&mut self, input: &mut (dyn io::Read + Send)) -> Result<u64, TakeInError> {
        let (mut buffer, mut bytes) = (vec![0; STREAM_BUFFER_BYTES], 0);
        loop {
            let length = match input.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(TakeInError::Read(error)),
            };
            self.write_all(&buffer[..length]).map_err(TakeInError::Store)?;
            bytes += length as u64;
        }
    }

    /// Ends the item. Only after this is it part of the snapshot.
    fn finish(self: Box<Self>, facts: ItemFacts) -> io::Result<ItemDone>;

    /// Gives the item up, as if it had never been begun: its order and path may be used again. For sources that find
    /// out late that what they read is not one state, such as a file that was written to meanwhile.
    fn discard(self: Box<Self>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a stream was not taken in: what it comes from, or where it goes.
#[derive(Debug)]
pub enum TakeInError {
    Read(io::Error),
    Store(io::Error),
}

/// What a source knows about an item beside its bytes.
#[derive(Debug, Clone, Default)]
pub struct ItemFacts {
    /// Rows, records or points, where the kind has such a thing.
    pub rows: Option<u64>,
    /// Whatever the source needs to write it back, or people want to see; documented in format-spec/sources.md.
    pub meta: Map<String, Value>,
}

/// What came of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemDone {
    /// Plaintext bytes.
    pub bytes: u64,
    /// BLAKE3 of the plaintext.
    pub hash: blake3::Hash,
}

/// What a source knows about the whole once all items are finished.
#[derive(Debug, Clone, Default)]
pub struct SourceFacts {
    /// Engine and tool versions, e.g. `{"postgresql": "15.14", "pg_dump": "15.14"}`.
    pub engine: Map<String, Value>,
    /// The point in time that the items show, e.g. `{"kind": "exact", "lsn": "0/16B3748"}`.
    pub consistency: Map<String, Value>,
    /// What a person should know; printed at the end of the run and kept in the manifest.
    pub warnings: Vec<String>,
}

/// Gives the items of one snapshot. Usable from several threads at once.
pub trait ItemSource: Sync {
    /// Calls `each` with every item in order. An error from `each` ends it and is returned.
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()>;

    /// Writes the plaintext of an item to `out`.
    ///
    /// Every chunk is authenticated and re-hashed before its bytes reach `out`; at the end length and hash of the whole are
    /// compared with the manifest. On any error `out` holds a prefix of the item and nothing else.
    fn read_item(&self, item: &Item, out: &mut dyn io::Write) -> io::Result<()>;
}

/// Writes a name so that it can stand as one component of an item path.
///
/// `%`, `/`, control characters and DEL become `%XX` of their UTF-8 bytes, and so does the first `.` of `.` and `..`;
/// an empty name becomes `%`. Everything else stays. [`unescape_component`] is the inverse.
pub fn escape_component(name: &str) -> String {
    escape_name(name.as_bytes())
}

/// Returns the name that [`escape_component`] was given, or `None` if it cannot have made `component`.
pub fn unescape_component(component: &str) -> Option<String> {
    String::from_utf8(unescape_name(component)?).ok()
}

/// [`escape_component`] for names that need not be text: each byte that is not part of valid UTF-8 becomes `%XX` too.
pub fn escape_name(name: &[u8]) -> String {
    if name.is_empty() {
        return "%".to_owned();
    }
    let dots = name == b"." || name == b"..";
    let mut out = String::with_capacity(name.len());
    let escape = |out: &mut String, byte: u8| out.push_str(&format!("%{byte:02X}"));
    for part in name.utf8_chunks() {
        for c in part.valid().chars() {
            if c == '%' || c == '/' || c.is_ascii_control() || (dots && out.is_empty()) {
                escape(&mut out, c as u8);
            } else {
                out.push(c);
            }
        }
        part.invalid().iter().for_each(|byte| escape(&mut out, *byte));
    }
    out
}

/// Returns the name that [`escape_name`] was given, or `None` if it cannot have made `component`.
pub fn unescape_name(component: &str) -> Option<Vec<u8>> {
    if component == "%" {
        return Some(Vec::new());
    }
    let mut out = Vec::with_capacity(component.len());
    let mut rest = component;
    while let Some(at) = rest.find('%') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        out.push(u8::from_str_radix(rest.get(at + 1..at + 3)?, 16).ok()?);
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest.as_bytes());
    // One spelling a name: two paths never mean the same file.
    (escape_name(&out) == component).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_as_a_path_component() {
        for name in ["", ".", "..", "a/b", "100%", "new\nline", "Größe", "public", "%2F", "...", "\u{7f}"] {
            let component = escape_component(name);
            assert!(!component.is_empty() && !component.contains('/') && component != "." && component != "..");
            assert_eq!(unescape_component(&component).as_deref(), Some(name), "{component:?}");
        }
        for name in [&b"caf\xe9"[..], b"\xff", b"\xc3", b"\xc3\xa9", b"a\xed\xa0\x80b", b"\x80%\xf0\x9f\x98", b"\x00"] {
            let component = escape_name(name);
            assert_eq!(unescape_name(&component).as_deref(), Some(name), "{component:?}");
        }
        for wrong in ["%zz", "%2", "a%", "%41", "%é", "%C3%A9", "%ff", "%+4", "a%2E", "%2E%2E"] {
            assert_eq!(unescape_name(wrong), None, "{wrong:?} is not what escape_name writes");
        }
    }
}
