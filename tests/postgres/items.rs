//! Items kept in memory: stands for the whole of vault between a source and its target.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;

use vault::format::manifest::StreamRef;
use vault::source::{Item, ItemDone, ItemFacts, ItemSink, ItemSource, ItemStream};

/// Keeps what it is given, and gives it back.
#[derive(Default)]
pub struct Kept {
    items: Mutex<BTreeMap<u64, (Item, Vec<u8>)>>,
}

impl Kept {
    /// Paths in order.
    pub fn paths(&self) -> Vec<String> {
        self.items.lock().unwrap().values().map(|(item, _)| item.path.clone()).collect()
    }

    pub fn item(&self, path: &str) -> Option<Item> {
        self.items.lock().unwrap().values().find(|(item, _)| item.path == path).map(|(item, _)| item.clone())
    }

    pub fn text(&self, path: &str) -> String {
        let items = self.items.lock().unwrap();
        let (_, bytes) = items.values().find(|(item, _)| item.path == path).unwrap_or_else(|| panic!("no item {path}"));
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Changes an item.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.damage(path, change);
        let mut items = self.items.lock().unwrap();
        let (item, bytes) = items.values_mut().find(|(item, _)| item.path == path).expect("there is such an item");
        (item.bytes, item.hash) = (bytes.len() as u64, blake3::hash(bytes).to_hex().to_string());
    }

    /// Changes the bytes of an item behind the back of its hash.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut items = self.items.lock().unwrap();
        change(&mut items.values_mut().find(|(item, _)| item.path == path).expect("there is such an item").1);
    }

    /// The promise of `ItemSink::begin`: every number from 0 on, once.
    pub fn check_orders(&self) {
        let items = self.items.lock().unwrap();
        let orders: Vec<u64> = items.keys().copied().collect();
        assert_eq!(orders, (0..items.len() as u64).collect::<Vec<_>>(), "order numbers have no gap");
    }

    /// Everything that identifies the content.
    pub fn contents(&self) -> Vec<(String, String, Option<u64>)> {
        self.items.lock().unwrap().values().map(|(item, _)| (item.path.clone(), item.hash.clone(), item.rows)).collect()
    }
}

struct Stream<'k> {
    kept: &'k Kept,
    order: u64,
    path: String,
    kind: String,
    bytes: Vec<u8>,
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ItemStream for Stream<'_> {
    fn finish(self: Box<Self>, facts: ItemFacts) -> io::Result<ItemDone> {
        let hash = blake3::hash(&self.bytes);
        let bytes = self.bytes.len() as u64;
        let item = Item {
            path: self.path,
            kind: self.kind,
            bytes,
            hash: hash.to_hex().to_string(),
            rows: facts.rows,
            bytes_new: 0,
            chunker: 0,
            meta: facts.meta,
            stream: StreamRef::default(),
        };
        let mut items = self.kept.items.lock().unwrap();
        assert!(items.values().all(|(other, _)| other.path != item.path), "{} is given once", item.path);
        assert!(items.insert(self.order, (item, self.bytes)).is_none(), "order {} is used once", self.order);
        Ok(ItemDone { bytes, hash })
    }
}

impl ItemSink for Kept {
    fn begin<'s>(&'s self, order: u64, path: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>> {
        for component in path.split('/') {
            assert!(!matches!(component, "" | "." | "..") && !component.contains('\0'), "{path:?}");
        }
        Ok(Box::new(Stream { kept: self, order, path: path.into(), kind: kind.into(), bytes: Vec::new() }))
    }

    fn reuse(&self, _: u64, _: &Item, _: ItemFacts) -> io::Result<bool> {
        Ok(false)
    }
}

impl ItemSource for Kept {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        let items: Vec<Item> = self.items.lock().unwrap().values().map(|(item, _)| item.clone()).collect();
        items.into_iter().try_for_each(each)
    }

    fn read_item(&self, item: &Item, out: &mut dyn Write) -> io::Result<()> {
        let bytes = {
            let items = self.items.lock().unwrap();
            items.values().find(|(other, _)| other.path == item.path).expect("listed before").1.clone()
        };
        // In pieces that fit no row.
        bytes.chunks(65_521).try_for_each(|piece| out.write_all(piece))?;
        // As `ItemSource` promises.
        if blake3::hash(&bytes).to_hex().as_str() == item.hash {
            Ok(())
        } else {
            Err(io::Error::other("it does not hash to what was backed up"))
        }
    }
}
