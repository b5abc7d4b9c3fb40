//! In which order the rows of a table are read: as they lie in its heap, or by its key.
//!
//! What each costs: docs/decisions/row-order.md. In another order the same rows are other chunks, so a table keeps the
//! order that it had in the snapshot before until it is clearly one for the other.

use std::collections::BTreeMap;
use std::io;

use serde_json::Value;

use crate::source::{ItemSource, escape_component};

/// Tables up to this many bytes are sorted by the server if nothing else is said: docs/decisions/row-order.md.
pub const SORTED_BYTES_MAX: u64 = 1 << 30;
/// Tables up to this many pages, 64 MiB, are read by their key whatever order they lie in: the server's cache holds them.
const SMALL_PAGES: u64 = 8_192;
/// Longer tables lie in the order of their key, so that the server may follow the index, if they do at least this well.
const CORRELATION_MIN: f64 = 0.8;
/// A table that was read by its key stays so down to this, and up to so many times the size that is sorted; one that was
/// not comes to it below that part of the size.
const CORRELATION_STAYS: f64 = 0.5;
const PAGES_FACTOR: u64 = 2;

/// An order in which rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Heap,
    Key,
}

/// How rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As they lie.
    Heap,
    /// By the key, as the server thinks best.
    Key,
    /// By the key, by a sort: left to itself the server follows the index from page to page, three times as long.
    SortedByKey,
}

/// What a snapshot may ask of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The server sorts tables up to this many pages, in temporary files of their size.
    pub sorted_pages_max: u64,
    /// What changed in a chunk is stored as a delta. Without, one new row in each chunk stores all of the table anew, so keys
    /// that come in no order are better left as they lie.
    pub deltas: bool,
}

/// How a table of so many pages is read that has a key. `correlation` is between the order of the key and that of the rows,
/// -1 to 1; it is asked for only of tables that are not small.
///
/// Where rows lie in the order of the key both orders are the same, so nothing brings a table back to its key by how it
/// lies: a queue, which goes round in its heap, would change its order every time.
pub fn way<E>(
    before: Option<Order>,
    pages: u64,
    limits: Limits,
    correlation: impl FnOnce() -> Result<f64, E>,
) -> Result<Way, E> {
    let Limits { sorted_pages_max, deltas } = limits;
    let first_max = if deltas { sorted_pages_max } else { sorted_pages_max.min(SMALL_PAGES) };
    let (pages_max, correlation_min) = match before {
        None => (first_max, CORRELATION_MIN),
        Some(Order::Key) => (sorted_pages_max * PAGES_FACTOR, CORRELATION_STAYS),
        Some(Order::Heap) => (first_max / PAGES_FACTOR, f64::INFINITY),
    };
    if pages <= pages_max.min(SMALL_PAGES) {
        return Ok(Way::Key);
    }
    if pages > pages_max && correlation_min.is_infinite() {
        return Ok(Way::Heap);
    }
    let correlation = correlation()?;
    let may_be_sorted = pages <= pages_max;
    Ok(if may_be_sorted && correlation < CORRELATION_MIN {
        Way::SortedByKey
    } else if may_be_sorted || correlation >= correlation_min {
        Way::Key
    } else {
        Way::Heap
    })
}

/// The columns by which the tables of an earlier snapshot were read, by the paths of their items; none for the heap.
#[derive(Debug, Default)]
pub struct Earlier(BTreeMap<String, Vec<String>>);

impl Earlier {
    /// Reads the facts of all items.
    pub fn load(parent: &dyn ItemSource) -> io::Result<Self> {
        let mut earlier = Self::default();
        parent.each_item(&mut |item| {
            if item.kind == "table-data" {
                let columns = item.meta.get("order_by").and_then(Value::as_array).into_iter().flatten();
                let columns = columns.filter_map(|name| name.as_str().map(str::to_owned)).collect();
                earlier.0.insert(item.path, columns);
            }
            Ok(())
        })?;
        Ok(earlier)
    }

    /// How a table was read that has this key now. `None` for one that was not there, or was read by another key.
    pub fn order(&self, path: &str, key: &[String]) -> Option<Order> {
        let columns = self.0.get(path)?;
        if columns.is_empty() { Some(Order::Heap) } else { (columns == key).then_some(Order::Key) }
    }
}

/// The path of the item that holds a part of a database.
pub fn item_path(database: &str, parts: &[&str]) -> String {
    let mut path = escape_component(database);
    for part in parts {
        path.push('/');
        path.push_str(&escape_component(part));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that may be sorted.
    const PAGES: u64 = 100 * SMALL_PAGES;
    const WITH: Limits = Limits { sorted_pages_max: PAGES, deltas: true };
    const WITHOUT: Limits = Limits { deltas: false, ..WITH };

    fn decide(before: Option<Order>, pages: u64, limits: Limits, correlation: f64) -> Way {
        way(before, pages, limits, || Ok::<_, ()>(correlation)).unwrap()
    }

    fn order_of(way: Way) -> Order {
        if way == Way::Heap { Order::Heap } else { Order::Key }
    }

    #[test]
    fn a_new_table_is_read_by_its_key_if_that_is_not_too_much() {
        for (pages, limits, correlation, wanted) in [
            (SMALL_PAGES, WITH, 0.0, Way::Key),
            (SMALL_PAGES, WITHOUT, 0.0, Way::Key),
            (SMALL_PAGES + 1, WITH, 0.0, Way::SortedByKey),
            (SMALL_PAGES + 1, WITHOUT, 0.0, Way::Heap),
            (PAGES, WITH, 0.0, Way::SortedByKey),
            (PAGES, WITH, 0.9, Way::Key),
            (PAGES + 1, WITH, 0.0, Way::Heap),
            (PAGES + 1, WITH, -1.0, Way::Heap),
            (1000 * PAGES, WITH, 0.8, Way::Key),
            (1000 * PAGES, WITHOUT, 0.8, Way::Key),
            (1, Limits { sorted_pages_max: 0, deltas: true }, 0.0, Way::Heap),
        ] {
            assert_eq!(decide(None, pages, limits, correlation), wanted, "{pages} {limits:?} {correlation}");
        }
    }

    #[test]
    fn near_the_limits_a_table_keeps_its_order() {
        let large = 1000 * PAGES;
        for limits in [WITH, WITHOUT] {
            for first in [0.3, 0.7, 0.79, 0.8, 0.81, 0.9, 1.0] {
                let order = order_of(decide(None, large, limits, first));
                assert_eq!(order == Order::Key, first >= CORRELATION_MIN, "{first} alone decides for a new table");
                for drift in [0.79, 0.81, 0.6, 0.9, 0.55, 0.99] {
                    let now = decide(Some(order), large, limits, drift);
                    assert_eq!(order_of(now), order, "from {first} to {drift}");
                    assert_ne!(now, Way::SortedByKey, "it is too large for that");
                }
            }
        }
        for first in [PAGES - 1, PAGES, PAGES + 1] {
            let order = order_of(decide(None, first, WITH, 0.0));
            assert_eq!(order == Order::Key, first <= PAGES);
            for pages in [PAGES + 1, PAGES - 1, PAGES * 3 / 2, PAGES * 2 / 3] {
                assert_eq!(order_of(decide(Some(order), pages, WITH, 0.0)), order, "from {first} to {pages} pages");
            }
        }
        for correlation in [0.0, 1.0] {
            assert_ne!(decide(Some(Order::Key), PAGES, WITHOUT, correlation), Way::Heap, "`--delta off` once");
        }
    }

    #[test]
    fn far_from_the_limits_a_table_changes_its_order_once() {
        assert_eq!(decide(Some(Order::Key), 1000 * PAGES, WITH, 0.1), Way::Heap, "it was loaded anew");
        assert_eq!(decide(Some(Order::Key), 3 * PAGES, WITH, 0.1), Way::Heap, "it has grown");
        for correlation in [-0.4, 0.0, 0.6, 1.0] {
            assert_eq!(decide(Some(Order::Heap), 3 * PAGES, WITH, correlation), Way::Heap, "a queue goes round");
        }
        assert_eq!(decide(Some(Order::Heap), PAGES / 3, WITH, 0.1), Way::SortedByKey, "it was emptied");
        assert_eq!(decide(Some(Order::Heap), PAGES / 3, WITHOUT, 0.1), Way::Heap, "but not enough for that");
    }

    #[test]
    fn how_a_table_lies_is_asked_only_where_it_decides() {
        let ask = |before, pages| way(before, pages, WITH, || Err("asked"));
        for before in [None, Some(Order::Key), Some(Order::Heap)] {
            assert_eq!(ask(before, SMALL_PAGES), Ok(Way::Key), "{before:?}");
        }
        assert_eq!(ask(Some(Order::Heap), PAGES), Ok(Way::Heap));
        assert_eq!(ask(None, SMALL_PAGES + 1), Err("asked"));
    }

    #[test]
    fn another_key_says_nothing_of_the_one_before() {
        let columns = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let earlier = Earlier(BTreeMap::from([("a".to_owned(), columns(&["id"])), ("b".to_owned(), columns(&[]))]));
        assert_eq!(earlier.order("a", &columns(&["id"])), Some(Order::Key));
        assert_eq!(earlier.order("a", &columns(&["id", "at"])), None);
        assert_eq!(earlier.order("b", &columns(&["id"])), Some(Order::Heap));
        assert_eq!(earlier.order("c", &columns(&["id"])), None);
    }
}
