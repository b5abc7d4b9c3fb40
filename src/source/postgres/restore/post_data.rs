//! Indexes, constraints and the rest of post-data: side by side where that is possible.
//!
//! pg_dump's order is a valid one. Runs of indexes and keys between other entries are worked on together, and so are
//! runs of foreign keys, as far as they do not touch the same table in ways that wait for each other; everything else runs alone, in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex};

use super::mark::{Mark, record};
use super::{DatabaseRestore, qualified_at, table_of};
use crate::source::postgres::client::Client;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::script::{Entry, words};

type Name = (String, String);

/// Entries that run one after the other in one connection.
struct Unit<'e> {
    entries: Vec<(usize, &'e Entry)>,
    /// Tables it locks against everybody, and tables it locks against writers only. Without any it runs alone.
    exclusive: Vec<Name>,
    shared: Vec<Name>,
    bytes: u64,
    /// A foreign key, which needs the key that it refers to.
    foreign: bool,
}

impl Unit<'_> {
    fn runs_alone(&self) -> bool {
        self.exclusive.is_empty() && self.shared.is_empty()
    }

    fn conflicts(&self, exclusive: &BTreeSet<&Name>, shared: &BTreeMap<&Name, usize>) -> bool {
        self.exclusive.iter().any(|table| exclusive.contains(table) || shared.contains_key(table))
            || self.shared.iter().any(|table| exclusive.contains(table))
    }
}

/// Sorts entries into units. `partitioned` are the tables whose locks reach further than their name.
fn units<'e>(entries: &'e [Entry], partitioned: &BTreeSet<Name>) -> Vec<Unit<'e>> {
    let mut units: Vec<Unit<'e>> = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        let follows = matches!(entry.heading.kind.as_str(), "COMMENT" | "SECURITY LABEL")
            && ["INDEX ", "CONSTRAINT "].iter().any(|what| entry.heading.name.starts_with(what));
        if let Some(unit) = units.last_mut().filter(|unit| follows && !unit.runs_alone()) {
            unit.entries.push((place, entry));
            // A comment on a constraint locks its table.
            let tables: Vec<Name> = unit.shared.drain(..).collect();
            unit.exclusive.extend(tables);
            continue;
        }
        let (exclusive, shared) = tables(entry, partitioned);
        let foreign = entry.heading.kind == "FK CONSTRAINT";
        units.push(Unit { entries: vec![(place, entry)], exclusive, shared, bytes: 0, foreign });
    }
    units
}

/// The tables that an entry locks; none if it is not one that runs beside others.
fn tables(entry: &Entry, partitioned: &BTreeSet<Name>) -> (Vec<Name>, Vec<Name>) {
    let alone = (Vec::new(), Vec::new());
    let Some((table, only)) = table_of(&entry.sql) else { return alone };
    match entry.heading.kind.as_str() {
        "INDEX" if entry.sql.contains("ALTER TABLE") => (vec![table], Vec::new()),
        "INDEX" => (Vec::new(), vec![table]),
        "CONSTRAINT" if only => (vec![table], Vec::new()),
        "FK CONSTRAINT" if only => {
            let words = words(&entry.sql);
            let other = words.iter().position(|word| word.is("REFERENCES")).and_then(|at| qualified_at(&words, at + 1));
            match other {
                Some((other, _)) if !partitioned.contains(&table) && !partitioned.contains(&other) => {
                    if table == other { (vec![table], Vec::new()) } else { (vec![table, other], Vec::new()) }
                }
                _ => alone,
            }
        }
        _ => alone,
    }
}

/// What is left to do of a run of units, and what is being done.
struct Board<'u, 'e> {
    waiting: Vec<&'u Unit<'e>>,
    exclusive: BTreeSet<&'u Name>,
    shared: BTreeMap<&'u Name, usize>,
    failed: bool,
}

impl<'u, 'e> Board<'u, 'e> {
    fn take(&mut self) -> Option<&'u Unit<'e>> {
        let at = self.waiting.iter().position(|unit| !unit.conflicts(&self.exclusive, &self.shared))?;
        let unit = self.waiting.remove(at);
        self.exclusive.extend(&unit.exclusive);
        for table in &unit.shared {
            *self.shared.entry(table).or_default() += 1;
        }
        Some(unit)
    }

    fn give_back(&mut self, unit: &'u Unit<'e>) {
        for table in &unit.exclusive {
            self.exclusive.remove(table);
        }
        for table in &unit.shared {
            if let Some(count) = self.shared.get_mut(table) {
                *count -= 1;
                if *count == 0 {
                    self.shared.remove(table);
                }
            }
        }
    }
}

impl DatabaseRestore<'_> {
    /// Runs post-data.
    pub(super) fn run_post_data(
        &self,
        client: &mut Client,
        mark: &Mark,
        entries: &[Entry],
    ) -> Result<(), PostgresError> {
        self.progress.phase(&format!("{}: indexes and constraints", self.into));
        self.progress.add_items_total(entries.len() as u64);
        let rows = client
            .query(
                "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p'",
            )
            .map_err(|e| self.failed("its tables cannot be listed", e))?;
        let partitioned = rows.iter().map(|row| (row.text(0).to_owned(), row.text(1).to_owned())).collect();
        let sizes: BTreeMap<Name, u64> = self
            .database
            .tables
            .iter()
            .map(|table| ((table.schema.clone(), table.name.clone()), table.item.bytes))
            .collect();
        let mut units = units(entries, &partitioned);
        for unit in &mut units {
            let tables = unit.exclusive.iter().chain(&unit.shared);
            unit.bytes = tables.filter_map(|table| sizes.get(table)).sum();
        }
        for run in units.chunk_by(|one, next| one.runs_alone() == next.runs_alone() && one.foreign == next.foreign) {
            if run.iter().all(Unit::runs_alone) {
                for unit in run {
                    self.run_unit(client, mark, unit)?;
                }
            } else {
                self.run_side_by_side(client, mark, run)?;
            }
        }
        Ok(())
    }

    fn run_side_by_side(&self, client: &mut Client, mark: &Mark, run: &[Unit<'_>]) -> Result<(), PostgresError> {
        let mut waiting: Vec<&Unit<'_>> = run.iter().collect();
        waiting.sort_by_key(|unit| std::cmp::Reverse(unit.bytes));
        let connections = self.jobs().min(waiting.len()).max(1);
        let board = Mutex::new(Board { waiting, exclusive: BTreeSet::new(), shared: BTreeMap::new(), failed: false });
        let changed = Condvar::new();
        self.side_by_side(client, connections, &|client| {
            loop {
                let mut guard = board.lock().expect("nothing panics with it");
                let unit = loop {
                    if guard.waiting.is_empty() || guard.failed {
                        return Ok(());
                    }
                    match guard.take() {
                        Some(unit) => break unit,
                        None => guard = changed.wait(guard).expect("nothing panics with it"),
                    }
                };
                drop(guard);
                let result = self.run_unit(client, mark, unit);
                let mut guard = board.lock().expect("nothing panics with it");
                guard.give_back(unit);
                guard.failed |= result.is_err();
                drop(guard);
                changed.notify_all();
                result?;
            }
        })
    }

    fn run_unit(&self, client: &mut Client, mark: &Mark, unit: &Unit<'_>) -> Result<(), PostgresError> {
        for (place, entry) in &unit.entries {
            let step = format!("post-data {place}");
            if mark.done(&step).is_none() {
                self.progress.doing(&format!("{}: {}", self.into, super::scripts::describe(entry)));
                self.run_entry(client, entry, &record(&step, 1, ""))?;
            } else {
                self.settings_before(client, entry)?;
            }
            self.progress.add_items(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::script::Heading;

    fn entry(kind: &str, name: &str, sql: &str) -> Entry {
        let heading = Heading { name: name.into(), kind: kind.into(), schema: Some("s".into()), owner: "o".into() };
        Entry { heading, sql: sql.into(), before: Vec::new() }
    }

    #[test]
    fn what_waits_for_each_other_is_not_begun_together() {
        let entries = [
            entry("CONSTRAINT", "a a_pkey", "ALTER TABLE ONLY s.a\n    ADD CONSTRAINT a_pkey PRIMARY KEY (id);"),
            entry("INDEX", "i1", "CREATE INDEX i1 ON s.a USING btree (x);"),
            entry("COMMENT", "INDEX i1", "COMMENT ON INDEX s.i1 IS 'x';"),
            entry("INDEX", "i2", "CREATE INDEX i2 ON ONLY s.\"B c\" USING btree (x);"),
            entry("INDEX ATTACH", "i2", "ALTER INDEX s.i2 ATTACH PARTITION s.i1;"),
            entry(
                "FK CONSTRAINT",
                "a fk",
                "ALTER TABLE ONLY s.a ADD CONSTRAINT fk FOREIGN KEY (x) REFERENCES s.p(id);",
            ),
            entry(
                "FK CONSTRAINT",
                "a f2",
                "ALTER TABLE ONLY s.a ADD CONSTRAINT fk FOREIGN KEY (x) REFERENCES s.q(id);",
            ),
            entry("FK CONSTRAINT", "p fk", "ALTER TABLE s.p ADD CONSTRAINT fk FOREIGN KEY (x) REFERENCES s.a(id);"),
        ];
        let partitioned = BTreeSet::from([("s".to_owned(), "q".to_owned())]);
        let units = units(&entries, &partitioned);
        let alone: Vec<bool> = units.iter().map(Unit::runs_alone).collect();
        assert_eq!(alone, [false, false, false, true, false, true, true]);
        assert_eq!(units[1].entries.len(), 2, "a comment goes with its index");
        assert_eq!(units[2].shared, [("s".to_owned(), "B c".to_owned())]);
        let mut board = Board {
            waiting: units.iter().take(3).collect(),
            exclusive: BTreeSet::new(),
            shared: BTreeMap::new(),
            failed: false,
        };
        let first = board.take().unwrap();
        let second = board.take().unwrap();
        assert_eq!(second.entries[0].1.heading.name, "i2", "i1 waits for the key of the same table");
        assert!(board.take().is_none());
        board.give_back(first);
        assert_eq!(board.take().unwrap().entries[0].1.heading.name, "i1");
    }
}
