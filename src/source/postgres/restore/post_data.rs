//! Indexes, constraints and the rest of post-data: side by side where that is possible.
//!
//! pg_dump's order is a valid one. Runs of indexes and keys between other entries are worked on together, and so are
//! runs of foreign keys, as far as they do not touch the same table in ways that wait for each other; everything else
//! runs alone, in its place. The first run begins while tables are still being loaded, each unit once all the rows of
//! its tables are in.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::mark::{Mark, record};
use super::{DatabaseRestore, qualified_at, table_of};
use crate::source::postgres::client::{Client, Row};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::script::{Entry, statements, words};

pub(super) type Name = (String, String);

/// Entries that run one after the other in one connection.
pub(super) struct Unit<'e> {
    entries: Vec<(usize, &'e Entry)>,
    /// Tables it locks against everybody, and tables it locks against writers only. Without any it runs alone.
    exclusive: Vec<Name>,
    shared: Vec<Name>,
    bytes: u64,
    /// A foreign key, which needs the key that it refers to.
    foreign: bool,
    /// One of its tables is partitioned: copying into a partition takes a lock on that table too.
    parent: bool,
}

impl Unit<'_> {
    /// How many entries it has.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

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
        let parent = exclusive.iter().chain(&shared).any(|table| partitioned.contains(table));
        units.push(Unit { entries: vec![(place, entry)], exclusive, shared, bytes: 0, foreign, parent });
    }
    units
}

/// Parts units where those that run alone, and foreign keys, begin and end.
fn runs(units: Vec<Unit<'_>>) -> Vec<Vec<Unit<'_>>> {
    let mut runs: Vec<Vec<Unit<'_>>> = Vec::new();
    for unit in units {
        let fits =
            |run: &&mut Vec<Unit<'_>>| run[0].runs_alone() == unit.runs_alone() && run[0].foreign == unit.foreign;
        match runs.last_mut().filter(fits) {
            Some(run) => run.push(unit),
            None => runs.push(vec![unit]),
        }
    }
    runs
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

/// What is done beside the loading of tables.
#[derive(Default)]
pub(super) struct Early<'e> {
    pub units: Vec<Unit<'e>>,
    /// Tables that can be analyzed once they are loaded and these units are through.
    pub analyze: BTreeSet<Name>,
}

/// Units in runs: those of a run may be worked on together unless they run alone, and each run follows the one before.
pub(super) struct Plan<'e> {
    runs: Vec<Vec<Unit<'e>>>,
    /// Tables that are analyzed at the end: others belong to them, or statistics of several columns come first.
    last: BTreeSet<Name>,
}

impl<'e> Plan<'e> {
    /// Takes out the first run, if it needs nothing of post-data but its own tables. `loaded` are the tables that are loaded
    /// beside it.
    pub(super) fn take_early(&mut self, loaded: impl Iterator<Item = Name>) -> Early<'e> {
        let first = self.runs.first().and_then(|run| run.first());
        let beside = first.is_some_and(|unit| !unit.runs_alone() && !unit.foreign);
        let units = if beside { self.runs.remove(0) } else { Vec::new() };
        // Their statistics are to know every index.
        let later = self.runs.iter().flatten().filter(|unit| !unit.foreign);
        let later: BTreeSet<&Name> = later.flat_map(|unit| unit.exclusive.iter().chain(&unit.shared)).collect();
        let analyze = loaded.filter(|table| !self.last.contains(table) && !later.contains(table)).collect();
        Early { units, analyze }
    }
}

/// The table of a CREATE STATISTICS.
fn statistics_of(entry: &Entry) -> Option<Name> {
    let statement = statements(&entry.sql).into_iter().next()?;
    let words = words(statement);
    let from = words.iter().rposition(|word| word.is("FROM"))?;
    qualified_at(&words, from + 1).map(|(table, _)| table)
}

/// A table to load.
pub(super) struct Load {
    /// Its place among the tables of the restore.
    pub number: usize,
    /// The tables in which its rows may come to lie: one, or all partitions that are loaded through the same parent.
    pub fills: Vec<Name>,
}

/// Something to do for one connection.
pub(super) enum Work<'u, 'e> {
    Table(Load),
    Unit(&'u Unit<'e>),
    Analyze(Name),
}

/// What is left to do of tables and a run of units, and what is being done.
pub(super) struct Board<'u, 'e> {
    state: Mutex<State<'u, 'e>>,
    changed: Condvar,
}

#[derive(Default)]
struct State<'u, 'e> {
    tables: VecDeque<Load>,
    /// Tables whose rows are not all there yet, and how many loads fill each.
    unloaded: BTreeMap<Name, usize>,
    waiting: Vec<&'u Unit<'e>>,
    exclusive: BTreeSet<&'u Name>,
    shared: BTreeMap<&'u Name, usize>,
    /// How many units of a table are not through yet.
    left: BTreeMap<&'u Name, usize>,
    /// Tables that wait for their statistics.
    analyze: BTreeSet<Name>,
    failed: bool,
}

impl<'u, 'e> Board<'u, 'e> {
    /// `tables` are to be loaded, in the order in which to begin.
    pub(super) fn new(tables: Vec<Load>, units: &'u [Unit<'e>], analyze: BTreeSet<Name>) -> Board<'u, 'e> {
        let mut waiting: Vec<&Unit<'_>> = units.iter().collect();
        waiting.sort_by_key(|unit| Reverse(unit.bytes));
        let mut state = State { waiting, analyze, ..State::default() };
        for table in units.iter().flat_map(|unit| unit.exclusive.iter().chain(&unit.shared)) {
            *state.left.entry(table).or_default() += 1;
        }
        for load in tables {
            for table in &load.fills {
                *state.unloaded.entry(table.clone()).or_default() += 1;
            }
            state.tables.push_back(load);
        }
        Board { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// How many could be worked on at once, at most.
    pub(super) fn len(&self) -> usize {
        let state = self.state();
        state.tables.len() + state.waiting.len()
    }

    /// The next work; waits for it if all there is has to wait. `None` once nothing is left to begin.
    pub(super) fn take(&self) -> Option<Work<'u, 'e>> {
        let mut state = self.state();
        loop {
            if state.failed {
                return None;
            }
            if let Some(work) = state.take() {
                return Some(work);
            }
            if state.waiting.is_empty() && state.analyze.is_empty() {
                return None;
            }
            state = self.changed.wait(state).expect("nothing panics with it");
        }
    }

    /// Says that a table is loaded.
    pub(super) fn loaded(&self, load: &Load) {
        self.state().loaded(load);
        self.changed.notify_all();
    }

    fn done(&self, unit: &'u Unit<'e>) {
        self.state().give_back(unit);
        self.changed.notify_all();
    }

    /// Lets nobody begin anything more.
    pub(super) fn fail(&self) {
        self.state().failed = true;
        self.changed.notify_all();
    }

    /// Lets nobody wait for one who panics: the board fails with him.
    pub(super) fn watch(&self) -> Watch<'_, 'u, 'e> {
        Watch(self)
    }

    fn state(&self) -> MutexGuard<'_, State<'u, 'e>> {
        self.state.lock().expect("nothing panics with it")
    }
}

/// See [`Board::watch`].
pub(super) struct Watch<'b, 'u, 'e>(&'b Board<'u, 'e>);

impl Drop for Watch<'_, '_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}

impl<'u, 'e> State<'u, 'e> {
    fn take(&mut self) -> Option<Work<'u, 'e>> {
        if let Some(load) = self.tables.pop_front() {
            return Some(Work::Table(load));
        }
        let ready = |unit: &&Unit<'_>| !unit.conflicts(&self.exclusive, &self.shared) && !self.waits_for_rows(unit);
        let Some(at) = self.waiting.iter().position(ready) else {
            let table = self.analyze.iter().find(|table| self.is_settled(table))?.clone();
            self.analyze.remove(&table);
            return Some(Work::Analyze(table));
        };
        let unit = self.waiting.remove(at);
        self.exclusive.extend(&unit.exclusive);
        for table in &unit.shared {
            *self.shared.entry(table).or_default() += 1;
        }
        Some(Work::Unit(unit))
    }

    fn waits_for_rows(&self, unit: &Unit<'_>) -> bool {
        unit.parent && !self.unloaded.is_empty()
            || unit.exclusive.iter().chain(&unit.shared).any(|table| self.unloaded.contains_key(table))
    }

    /// Whether a table has its rows and all that its units build.
    fn is_settled(&self, table: &Name) -> bool {
        !self.unloaded.contains_key(table) && !self.left.contains_key(table)
    }

    fn loaded(&mut self, load: &Load) {
        for table in &load.fills {
            one_less(&mut self.unloaded, table);
        }
    }

    fn give_back(&mut self, unit: &'u Unit<'e>) {
        for table in &unit.exclusive {
            self.exclusive.remove(table);
        }
        for table in &unit.shared {
            one_less(&mut self.shared, &table);
        }
        for table in unit.exclusive.iter().chain(&unit.shared) {
            one_less(&mut self.left, &table);
        }
    }
}

/// Counts down, and forgets what has come to nothing.
fn one_less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl DatabaseRestore<'_> {
    /// Sorts post-data into runs. Pre-data must be there.
    pub(super) fn plan_post_data<'e>(
        &self,
        client: &mut Client,
        entries: &'e [Entry],
    ) -> Result<Plan<'e>, PostgresError> {
        let rows = client
            .query(
                "SELECT n.nspname, c.relname, c.relkind = 'p' FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND (c.relkind = 'p' OR c.relispartition OR c.relhassubclass)",
            )
            .map_err(|e| self.failed("its tables cannot be listed", e))?;
        let name = |row: &Row| (row.text(0).to_owned(), row.text(1).to_owned());
        let partitioned = rows.iter().filter(|row| row.is_true(2)).map(name).collect();
        let mut last: BTreeSet<Name> = rows.iter().map(name).collect();
        last.extend(entries.iter().filter(|entry| entry.heading.kind == "STATISTICS").filter_map(statistics_of));
        let sizes: BTreeMap<Name, u64> = self
            .database
            .tables
            .iter()
            .map(|table| ((table.schema.clone(), table.name.clone()), table.item.bytes))
            .collect();
        let mut units = units(entries, &partitioned);
        for unit in &mut units {
            unit.bytes = unit.exclusive.iter().chain(&unit.shared).filter_map(|table| sizes.get(table)).sum();
        }
        Ok(Plan { runs: runs(units), last })
    }

    /// Runs what is planned.
    pub(super) fn run_post_data(&self, client: &mut Client, mark: &Mark, plan: &Plan<'_>) -> Result<(), PostgresError> {
        self.progress.phase(&format!("{}: indexes and constraints", self.into));
        self.progress.add_items_total(plan.runs.iter().flatten().map(|unit| unit.entries.len() as u64).sum());
        for run in &plan.runs {
            if run.iter().any(Unit::runs_alone) {
                run.iter().try_for_each(|unit| self.run_unit(client, mark, unit))?;
                continue;
            }
            let board = Board::new(Vec::new(), run, BTreeSet::new());
            let connections = self.jobs().min(board.len());
            self.side_by_side(client, connections, &|client| {
                let _watch = board.watch();
                while let Some(work) = board.take() {
                    if let Work::Unit(unit) = work {
                        self.work_on(client, mark, &board, unit)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Runs a unit of a board.
    pub(super) fn work_on<'u, 'e>(
        &self,
        client: &mut Client,
        mark: &Mark,
        board: &Board<'u, 'e>,
        unit: &'u Unit<'e>,
    ) -> Result<(), PostgresError> {
        let result = self.run_unit(client, mark, unit);
        match &result {
            Ok(()) => board.done(unit),
            Err(_) => board.fail(),
        }
        result
    }

    fn run_unit(&self, client: &mut Client, mark: &Mark, unit: &Unit<'_>) -> Result<(), PostgresError> {
        for (place, entry) in &unit.entries {
            let step = format!("post-data {place}");
            if mark.done(&step).is_none() {
                self.progress.doing(&format!("{}: {}", self.into, super::scripts::describe(entry)));
                self.run_entry(client, entry, &record(&step, 1, ""))?;
            }
            self.progress.add_items(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::script::entry;

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
        let mut board = State { waiting: units.iter().take(3).collect(), ..State::default() };
        let load = Load { number: 7, fills: vec![("s".to_owned(), "B c".to_owned())] };
        board.unloaded.insert(load.fills[0].clone(), 1);
        board.tables.push_back(load);
        let Some(Work::Table(load)) = board.take() else { panic!("tables come first") };
        assert_eq!(load.number, 7);
        assert_eq!(taken(&mut board).as_deref(), Some("a a_pkey"));
        assert_eq!(taken(&mut board), None, "i1 waits for the key of the same table, i2 for its table to be loaded");
        board.loaded(&load);
        assert_eq!(taken(&mut board).as_deref(), Some("i2"));
        board.give_back(&units[0]);
        assert_eq!(taken(&mut board).as_deref(), Some("i1"));
    }

    fn taken(board: &mut State<'_, '_>) -> Option<String> {
        match board.take()? {
            Work::Unit(unit) => Some(unit.entries[0].1.heading.name.clone()),
            Work::Analyze((_, table)) => Some(format!("statistics of {table}")),
            Work::Table(load) => panic!("table {}", load.number),
        }
    }

    #[test]
    fn an_index_waits_for_every_load_that_may_fill_its_table() {
        let name = |name: &str| ("s".to_owned(), name.to_owned());
        let entries = [
            entry("INDEX", "parent", "CREATE INDEX i ON ONLY s.p USING btree (x);"),
            entry("INDEX", "first", "CREATE INDEX i0 ON s.p0 USING btree (x);"),
            entry("INDEX", "second", "CREATE INDEX i1 ON s.p1 USING btree (x);"),
            entry("INDEX", "other", "CREATE INDEX i2 ON s.t USING btree (x);"),
        ];
        let units = units(&entries, &BTreeSet::from([name("p")]));
        // Both loads go through the parent: rows of either may be for either partition.
        let loads = [0, 1].map(|number| Load { number, fills: vec![name("p0"), name("p1")] });
        let analyze = BTreeSet::from(["t", "p0", "none"].map(name));
        let board = Board::new(loads.into(), &units, analyze);
        let mut state = board.state();
        let (Some(Work::Table(one)), Some(Work::Table(two))) = (state.take(), state.take()) else {
            panic!("tables come first");
        };
        assert_eq!(taken(&mut state).as_deref(), Some("other"));
        assert_eq!(taken(&mut state).as_deref(), Some("statistics of none"), "units come first");
        assert_eq!(taken(&mut state), None, "the index of t is still being built");
        state.give_back(&units[3]);
        assert_eq!(taken(&mut state).as_deref(), Some("statistics of t"));
        state.loaded(&one);
        assert_eq!(taken(&mut state), None, "the second load can still bring rows for the first partition");
        state.loaded(&two);
        for wanted in ["parent", "first", "second"] {
            assert_eq!(taken(&mut state).as_deref(), Some(wanted));
        }
        assert_eq!(taken(&mut state), None);
        state.give_back(&units[1]);
        assert_eq!(taken(&mut state).as_deref(), Some("statistics of p0"));
        assert_eq!(taken(&mut state), None);
    }

    #[test]
    fn statistics_wait_for_what_comes_later() {
        let name = |name: &str| ("s".to_owned(), name.to_owned());
        let entries = [
            entry("INDEX", "i", "CREATE INDEX i ON s.a USING btree (x);"),
            entry("MATERIALIZED VIEW", "v", "CREATE MATERIALIZED VIEW s.v AS SELECT 1 WITH NO DATA;"),
            entry("INDEX", "j", "CREATE INDEX j ON s.b USING btree (x);"),
            entry(
                "STATISTICS",
                "st",
                "CREATE STATISTICS s.st ON x, (EXTRACT(year FROM y)) FROM s.c;\n\n\nALTER STATISTICS s.st OWNER TO o;",
            ),
            entry("FK CONSTRAINT", "fk", "ALTER TABLE ONLY s.d ADD CONSTRAINT fk FOREIGN KEY (x) REFERENCES s.a(id);"),
        ];
        assert_eq!(statistics_of(&entries[3]), Some(name("c")));
        let mut plan = Plan { runs: runs(units(&entries, &BTreeSet::new())), last: BTreeSet::from([name("c")]) };
        assert_eq!(plan.runs.len(), 5);
        let early = plan.take_early(["a", "b", "c", "d"].into_iter().map(name));
        assert_eq!((early.units.len(), plan.runs.len()), (1, 4));
        assert_eq!(early.analyze, BTreeSet::from([name("a"), name("d")]), "a foreign key changes no statistics");
    }
}
