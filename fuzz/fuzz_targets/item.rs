#![no_main]
//! Lines of items: the paths in them never leave the target.

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use vault::format::manifest::Item;

fuzz_target!(|data: &[u8]| {
    if let Ok(item) = Item::decode_line(data) {
        let inside = Path::new(&item.path).components().all(|part| matches!(part, Component::Normal(_)));
        assert!(inside && !item.path.is_empty() && !item.path.contains('\0'), "{:?}", item.path);
        let mut line = Vec::new();
        item.encode_line(&mut line);
        let again = Item::decode_line(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!((again.path, again.stream), (item.path, item.stream), "an item survives being written");
    }
});
