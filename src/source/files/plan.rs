//! Names in a snapshot, checked before any of them is written: every path in its place after the folder it lies in, nothing
//! twice, nothing absolute, no `..`, no link to what is not there. Pure.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::FilesError;
use super::glob::Patterns;
use super::meta::{FILE, FOLDER, Given, HARDLINK, MISSING, SYMLINK, unescape_link_target};
use super::walk::compare;
use crate::format::manifest::{Item, check_item_path};
use crate::source::unescape_name;

/// The one item of a stdin snapshot.
pub const STREAM: &str = "stream";
/// What is not finished is called.
const PARTIAL: &str = ".vault-partial";

/// What the user wants of the snapshot.
pub struct Choice {
    pub includes: Patterns,
    pub excludes: Patterns,
}

impl Choice {
    pub fn takes(&self, path: &[u8]) -> bool {
        let included = self.includes.is_empty() || self.includes.matches(path, Some(path));
        included && !self.excludes.matches(path, Some(path))
    }
}

/// The folders that lead to the item at hand. Items that do not come in the order of a tree are refused here, and with
/// that duplicates, files that are also folders, and anything below a symbolic link.
#[derive(Default)]
pub struct Place {
    pub folders: Vec<Folder>,
    last: String,
}

pub struct Folder {
    pub path: String,
    pub below: Vec<u8>,
    pub given: Given,
    pub is_taken: bool,
    pub is_made: bool,
}

impl Place {
    /// Goes on to an item and returns its path as the file system has it. Folders that are left go to `leave`.
    pub fn go_to(
        &mut self,
        item: &Item,
        leave: &mut dyn FnMut(Folder) -> Result<(), FilesError>,
    ) -> Result<Vec<u8>, FilesError> {
        let refuse = |why| FilesError::Unsafe { path: item.path.chars().take(300).collect(), why };
        check_item_path(&item.path).map_err(|_| refuse("is not a path that a snapshot can have"))?;
        if !self.last.is_empty() && compare(&self.last, &item.path) != Ordering::Less {
            return Err(refuse("comes twice or out of order"));
        }
        self.last.clone_from(&item.path);
        let (parent, name) = item.path.rsplit_once('/').unwrap_or(("", &item.path));
        while self.folders.last().is_some_and(|folder| folder.path != parent && !is_below(parent, &folder.path)) {
            leave(self.folders.pop().expect("it was just looked at"))?;
        }
        if self.folders.last().map_or("", |folder| &folder.path) != parent {
            return Err(refuse("lies in something that is no folder"));
        }
        let raw = match unescape_name(name) {
            // A stream's name is free text; its item path will do as name.
            raw if item.kind == STREAM => {
                raw.filter(|raw| is_safe_name(raw)).unwrap_or_else(|| name.as_bytes().to_vec())
            }
            Some(raw) if is_safe_name(&raw) => raw,
            _ => return Err(refuse("has a name that no file can have")),
        };
        let mut below = self.folders.last().map_or(Vec::new(), |folder| folder.below.clone());
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(&raw);
        Ok(below)
    }

    pub fn enter(&mut self, item: &Item, below: &[u8], is_taken: bool) {
        let given = Given::of(&item.meta);
        self.folders.push(Folder { path: item.path.clone(), below: below.to_vec(), given, is_taken, is_made: false });
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn is_safe_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

pub fn short_of(path: &str) -> [u8; 16] {
    *blake3::hash(path.as_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// What the first pass finds out.
#[derive(Default)]
pub struct Plan {
    place: Place,
    pub items: u64,
    pub bytes: u64,
    /// Files with several names, and those of them that are missing in the snapshot.
    linked: HashSet<[u8; 16]>,
    pub linked_missing: HashSet<[u8; 16]>,
    /// Files that are not taken but hard links to them are: the first of these, which gets the bytes.
    pub stand_ins: HashMap<String, String>,
    /// Times that `-partial` stands after `.vault` at the end of a name, at most.
    partial_names: usize,
}

impl Plan {
    pub fn check(&mut self, item: &Item, choice: &Choice) -> Result<(), FilesError> {
        let refuse = |why| FilesError::Unsafe { path: item.path.clone(), why };
        let below = self.place.go_to(item, &mut |_| Ok(()))?;
        let mut name = item.path.as_str();
        let mut partials = 0;
        while let Some(rest) = name.strip_suffix("-partial") {
            name = rest;
            partials += 1;
        }
        partials *= usize::from(name.ends_with(".vault"));
        if partials > 8 {
            return Err(refuse("has a name that is kept for unfinished files"));
        }
        self.partial_names = self.partial_names.max(partials);
        let is_taken = choice.takes(&below);
        let has_links = item.meta.contains_key("links");
        match item.kind.as_str() {
            FOLDER => self.place.enter(item, &below, is_taken),
            FILE | STREAM => {
                if has_links {
                    self.linked.insert(short_of(&item.path));
                }
                if is_taken {
                    self.bytes = self.bytes.saturating_add(item.bytes);
                }
            }
            MISSING => {
                if has_links {
                    self.linked_missing.insert(short_of(&item.path));
                }
            }
            SYMLINK => drop(link_target(item).ok_or_else(|| refuse("has a target that no link can have"))?),
            HARDLINK => {
                let target = hard_link_target(item);
                let Some(target_below) = target.and_then(path_below) else {
                    return Err(refuse("has a target that is no path"));
                };
                let target = target.expect("it was just read");
                let short = short_of(target);
                if self.linked.contains(&short) {
                    if is_taken && !choice.takes(&target_below) {
                        self.stand_ins.entry(target.to_owned()).or_insert_with(|| item.path.clone());
                    }
                } else if !self.linked_missing.contains(&short) {
                    return Err(refuse("links to something that is no file before it"));
                }
            }
            _ => return Err(refuse("is of a kind that this version of vault cannot restore")),
        }
        self.items += u64::from(is_taken);
        Ok(())
    }

    /// The ending of temporary names: one that no item's name has.
    pub fn suffix(&self) -> String {
        PARTIAL.to_owned() + &"-partial".repeat(self.partial_names)
    }
}

pub fn link_target(item: &Item) -> Option<Vec<u8>> {
    unescape_link_target(item.meta.get("target")?.as_str()?)
}

pub fn hard_link_target(item: &Item) -> Option<&str> {
    item.meta.get("target").and_then(Value::as_str).filter(|target| check_item_path(target).is_ok())
}

/// An item path as the file system has it.
pub fn path_below(path: &str) -> Option<Vec<u8>> {
    let names = path.split('/').map(|name| unescape_name(name).filter(|name| is_safe_name(name)));
    Some(names.collect::<Option<Vec<_>>>()?.join(&b'/'))
}

/// Whether a link at `below` that leads to `target` leads to somewhere below the same folder, wherever the other links
/// lead of which this is true: it is relative, and all its `..` stand at its beginning and are not too many. (One further
/// on would lead up from wherever a link before it leads.)
pub fn stays_inside(below: &[u8], target: &[u8]) -> bool {
    if target.first() == Some(&b'/') {
        return false;
    }
    let depth = below.iter().filter(|&&byte| byte == b'/').count();
    let mut names = target.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")).peekable();
    let mut up = 0;
    while names.next_if(|name| *name == b"..").is_some() {
        up += 1;
    }
    up <= depth && !names.any(|name| name == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::StreamRef;
    use proptest::prelude::*;

    fn item(path: &str, kind: &str) -> Item {
        Item {
            path: path.to_owned(),
            kind: kind.to_owned(),
            bytes: 0,
            hash: String::new(),
            rows: None,
            bytes_new: 0,
            chunker: 0,
            meta: serde_json::Map::new(),
            stream: StreamRef::default(),
        }
    }

    proptest! {
        /// Whatever list of names comes: what is accepted can be written, each to a place of its own below the target.
        #[test]
        fn what_is_accepted_lies_below_and_nothing_twice(
            list in prop::collection::vec((prop::collection::vec("|a|A|b|%41|%2E|%2E%2E|%2E.|\\.|\\.\\.|%|%00|%2F|%FF|\u{0}", 0..4), 0..3usize), 0..8)
        ) {
            let mut place = Place::default();
            let mut folders: HashSet<Vec<u8>> = HashSet::from([Vec::new()]);
            let mut seen: HashSet<Vec<u8>> = HashSet::new();
            for (names, kind) in list {
                let kind = [FOLDER, FILE, STREAM][kind];
                let item = item(&names.join("/"), kind);
                let Ok(below) = place.go_to(&item, &mut |_| Ok(())) else { continue };
                let names: Vec<&[u8]> = below.split(|&byte| byte == b'/').collect();
                for name in &names {
                    prop_assert!(is_safe_name(name), "{:?} in {:?}", name, item.path);
                }
                let parent = names[..names.len() - 1].join(&b'/');
                prop_assert!(folders.contains(&parent), "{:?} lies in a folder", item.path);
                if kind == FOLDER {
                    place.enter(&item, &below, true);
                    folders.insert(below.clone());
                }
                prop_assert!(seen.insert(below), "{:?} comes once", item.path);
            }
        }
    }
}
