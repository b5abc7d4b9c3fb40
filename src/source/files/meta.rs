//! What is known of a file beside its bytes, as the `meta` of its item. Fields: format-spec/sources.md.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use data_encoding::BASE64;
use rustix::fs::{FileType, Stat, XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use crate::format::manifest::Item;
use crate::source::{escape_name, unescape_name};

/// Kinds of items.
pub const FILE: &str = "file";
pub const FOLDER: &str = "folder";
pub const SYMLINK: &str = "symlink";
pub const HARDLINK: &str = "hardlink";
pub const MISSING: &str = "missing";

/// A file changed this shortly before it was looked at might change again without its times telling, because the clock
/// that stamps files is coarse (FAT: two seconds).
pub const RACY_SECONDS: i64 = 2;

/// Extended attributes of one file that are kept, in bytes; a whole item line has at most 1 MiB.
const XATTR_BYTES_MAX: usize = 256 << 10;

/// A point in time as files have it: seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What `stat` says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub file_type: FileType,
    /// Permissions with set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub modified: Time,
    pub changed: Time,
    pub device: u64,
    pub inode: u64,
    pub links: u64,
}

impl Status {
    // The fields of `stat` have other widths on other machines.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    pub fn new(stat: &Stat) -> Self {
        Self {
            file_type: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode as u32 & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            modified: Time { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 },
            changed: Time { seconds: stat.st_ctime as i64, nanoseconds: stat.st_ctime_nsec as u32 },
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
        }
    }

    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::fstat(file)?))
    }

    /// Whether the bytes may differ between the two.
    pub fn is_same_state(&self, other: &Self) -> bool {
        let state = |status: &Self| (status.size, status.modified, status.changed, status.inode, status.device);
        state(self) == state(other)
    }

    /// Mode, owner and time, as every kind has them.
    pub fn meta(&self) -> Map<String, Value> {
        let mut meta = Map::new();
        meta.insert("mode".to_owned(), json!(format!("{:04o}", self.mode)));
        meta.insert("uid".to_owned(), json!(self.uid));
        meta.insert("gid".to_owned(), json!(self.gid));
        meta.insert("mtime".to_owned(), self.modified.value());
        meta
    }

    /// The same for a regular file, with what tells later that it has not changed, unless it was changed so shortly before
    /// `looked` (seconds since 1970) that this could not be told.
    pub fn file_meta(&self, looked: i64) -> Map<String, Value> {
        let mut meta = self.meta();
        if self.links > 1 {
            meta.insert("links".to_owned(), json!(self.links));
        }
        if self.changed.seconds.max(self.modified.seconds).saturating_add(RACY_SECONDS) < looked {
            meta.insert("ctime".to_owned(), self.changed.value());
            meta.insert("inode".to_owned(), json!(self.inode));
        }
        meta
    }

    /// Whether `item` holds the bytes that this file still has: same size, times, inode, owner and mode, and nothing
    /// that was doubtful when it was read.
    pub fn is_unchanged(&self, item: &Item) -> bool {
        let now = self.file_meta(i64::MAX);
        item.kind == FILE
            && item.bytes == self.size
            && !item.meta.contains_key("changing")
            && item.meta.contains_key("links") == now.contains_key("links")
            && now.iter().all(|(field, value)| item.meta.get(field) == Some(value))
    }
}

impl Time {
    fn value(self) -> Value {
        json!([self.seconds, self.nanoseconds])
    }

    fn from_value(value: &Value) -> Option<Self> {
        let [seconds, nanoseconds] = value.as_array()?.as_slice() else { return None };
        let nanoseconds = u32::try_from(nanoseconds.as_u64()?).ok().filter(|&n| n < 1_000_000_000)?;
        Some(Self { seconds: seconds.as_i64()?, nanoseconds })
    }
}

/// What of an item's meta is given back to a restored file. Fields that are absent or not what they should be are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub mode: Option<u32>,
    pub owner: Option<(u32, u32)>,
    pub modified: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Given {
    pub fn of(meta: &Map<String, Value>) -> Self {
        let id =
            |field: &str| meta.get(field)?.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX);
        let mode = meta.get("mode").and_then(Value::as_str).and_then(|text| u32::from_str_radix(text, 8).ok());
        let xattr = |(name, value): (&String, &Value)| {
            let name = unescape_name(name).filter(|name| is_kept(name) && !name.contains(&0))?;
            Some((name, BASE64.decode(value.as_str()?.as_bytes()).ok()?))
        };
        Self {
            mode: mode.filter(|&mode| mode <= 0o7777),
            owner: id("uid").zip(id("gid")),
            modified: meta.get("mtime").and_then(Time::from_value),
            xattrs: meta.get("xattrs").and_then(Value::as_object).into_iter().flatten().filter_map(xattr).collect(),
        }
    }
}

/// Writes a symbolic link's target: the components escaped, the slashes between them and `.` and `..` as they are.
pub fn escape_link_target(target: &[u8]) -> String {
    let escape = |part: &[u8]| match part {
        b"" | b"." | b".." => String::from_utf8_lossy(part).into_owned(),
        part => escape_name(part),
    };
    target.split(|&byte| byte == b'/').map(escape).collect::<Vec<_>>().join("/")
}

/// Returns the target that [`escape_link_target`] was given, or `None` if it is none that a link can have.
pub fn unescape_link_target(text: &str) -> Option<Vec<u8>> {
    let mut target = Vec::with_capacity(text.len());
    for (at, part) in text.split('/').enumerate() {
        if at > 0 {
            target.push(b'/');
        }
        match part {
            "" | "." | ".." => target.extend_from_slice(part.as_bytes()),
            part => target.extend(unescape_name(part)?),
        }
    }
    let possible = !target.is_empty() && target.len() < 4096 && !target.contains(&0);
    (possible && escape_link_target(&target) == text).then_some(target)
}

/// Extended attributes that are kept: users' own, and access control lists.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

/// Adds the extended attributes of an open file to its meta. Returns what a person should know if some are left out.
pub fn add_xattrs(file: BorrowedFd<'_>, meta: &mut Map<String, Value>) -> Option<&'static str> {
    let names = match read_growing(|buffer| flistxattr(file, buffer)) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return None,
        Err(_) => return Some("its extended attributes could not be read"),
    };
    let mut kept = Map::new();
    let mut bytes = 0;
    let mut left_out = None;
    for name in names.split(|&byte| byte == 0).filter(|name| is_kept(name)) {
        match read_growing(|buffer| fgetxattr(file, name, buffer)) {
            Ok(value) if bytes + name.len() + value.len() <= XATTR_BYTES_MAX => {
                bytes += name.len() + value.len();
                kept.insert(escape_name(name), json!(BASE64.encode(&value)));
            }
            Ok(_) => left_out = Some("its extended attributes are too long to be kept"),
            // Gone meanwhile.
            Err(Errno::NODATA) => {}
            Err(_) => left_out = Some("its extended attributes could not be read"),
        }
    }
    if !kept.is_empty() {
        kept.sort_keys();
        meta.insert("xattrs".to_owned(), Value::Object(kept));
    }
    left_out
}

/// Sets them again. Returns the first failure; the others are tried all the same.
pub fn set_xattrs(file: BorrowedFd<'_>, given: &Given) -> Option<Errno> {
    let set = |(name, value): &(Vec<u8>, Vec<u8>)| fsetxattr(file, &name[..], value, XattrFlags::empty()).err();
    given.xattrs.iter().filter_map(set).fold(None, |first, error| first.or(Some(error)))
}

fn read_growing(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // 64 KiB is the most that Linux has of either.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let time = Time { seconds: -5, nanoseconds: 999_999_999 };
        Status {
            file_type: FileType::RegularFile,
            mode: 0o4755,
            uid: 1000,
            gid: 4_294_967_294,
            size: 7,
            modified: time,
            changed: Time { seconds: 1_700_000_000, nanoseconds: 0 },
            device: 1,
            inode: u64::MAX,
            links: 1,
        }
    }

    fn item(meta: Map<String, Value>) -> Item {
        let text = json!({"path": "f", "kind": "file", "bytes": 7, "hash": "", "stream": {"depth": 0, "list": ""}});
        let mut item: Item = serde_json::from_value(text).expect("an item");
        // Through text, as it comes from a repository.
        item.meta = serde_json::from_str(&serde_json::to_string(&meta).expect("text")).expect("an object");
        item
    }

    #[test]
    fn meta_gives_back_what_it_was_given() {
        let given = Given::of(&item(status().meta()).meta);
        let expected = Given {
            mode: Some(0o4755),
            owner: Some((1000, 4_294_967_294)),
            modified: Some(status().modified),
            xattrs: Vec::new(),
        };
        assert_eq!(given, expected);
    }

    #[test]
    fn link_targets_come_back() {
        for target in
            [&b"a"[..], b"../a", b"/", b"/abs//x/", b"a/./b", b"100%", b"caf\xe9/x", b"new\nline", b"..", b"...x"]
        {
            let text = escape_link_target(target);
            assert_eq!(unescape_link_target(&text).as_deref(), Some(target), "{text:?}");
        }
        for wrong in ["", "%00", "%2E%2E", "a/%2Fb", "%41", "%", "a/%/b", &"x/".repeat(2048)] {
            assert_eq!(unescape_link_target(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn odd_meta_gives_nothing_back() {
        let odd = json!({"mode": "99999", "uid": 4_294_967_295_u64, "gid": 1, "mtime": [1, 1_000_000_000], "xattrs": {
            "security.capability": "AAAA", "trusted.x": "AAAA", "user.%00": "AAAA", "user.x": 7, "user.y": "!"}});
        assert_eq!(Given::of(odd.as_object().expect("an object")), Given::default());
        for odd in [json!({"mtime": [1]}), json!({"mtime": "x", "xattrs": [1]}), json!({"mode": 420})] {
            assert_eq!(Given::of(odd.as_object().expect("an object")), Given::default());
        }
    }

    #[test]
    fn a_file_is_unchanged_only_if_nothing_differs() {
        let status = status();
        let kept = item(status.file_meta(1_700_000_003));
        assert!(status.is_unchanged(&kept), "the same file");
        let later = |time: Time| Time { nanoseconds: time.nanoseconds ^ 1, ..time };
        let others = [
            Status { size: 8, ..status },
            Status { mode: 0o755, ..status },
            Status { uid: 0, ..status },
            Status { gid: 0, ..status },
            Status { inode: 3, ..status },
            Status { links: 2, ..status },
            Status { modified: later(status.modified), ..status },
            Status { changed: later(status.changed), ..status },
        ];
        for other in others {
            assert!(!other.is_unchanged(&kept), "{other:?} differs");
        }
        assert!(
            !status.is_unchanged(&item(status.file_meta(1_700_000_002))),
            "it changed too shortly before it was read"
        );
        assert!(!status.is_unchanged(&Item { kind: SYMLINK.to_owned(), ..kept.clone() }), "another kind");
        let mut changing = status.file_meta(1_700_000_003);
        changing.insert("changing".to_owned(), json!(true));
        assert!(!status.is_unchanged(&item(changing)), "it was written to while it was read");
    }
}
