//! Some tables of a snapshot, and what they need: their partitions, sequences, indexes, constraints, and the types and
//! functions that their definitions name.
//!
//! pg_dump writes every name with its schema, so what an entry needs is read off its text.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::saved::{SavedDatabase, entries};
use super::scripts::describe;
use super::{DatabaseRestore, TableReport, qualified_at, table_of};
use crate::source::ItemSource;
use crate::source::postgres::client::Client;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::quote::{display, table_matches};
use crate::source::postgres::script::{Entry, Word, words};

type Name = (String, String);

/// What was chosen, per database.
#[derive(Debug, Default)]
pub struct Selection {
    databases: BTreeMap<String, Selected>,
}

/// What was chosen of one database.
#[derive(Debug, Default)]
pub struct Selected {
    /// Relations that were named, and partitions of those.
    wanted: BTreeSet<Name>,
    sequences: BTreeSet<Name>,
    pub pre_data: Vec<Entry>,
    pub post_data: Vec<Entry>,
    /// Foreign keys to tables that were not chosen.
    pub outward: Vec<Entry>,
}

impl Selection {
    /// Finds what `include` names; `None` if it is empty, an error for a pattern that names nothing.
    pub fn new(
        include: &[String],
        databases: &[&SavedDatabase],
        source: &dyn ItemSource,
    ) -> Result<Option<Selection>, PostgresError> {
        if include.is_empty() {
            return Ok(None);
        }
        let mut selection = Selection::default();
        let mut unmatched: BTreeSet<&String> = include.iter().collect();
        for database in databases {
            let read = |item: &Option<_>| item.as_ref().map_or(Ok(Vec::new()), |item| entries(source, item));
            let selected =
                Selected::new(include, &mut unmatched, read(&database.pre_data)?, read(&database.post_data)?);
            if !selected.wanted.is_empty() {
                selection.databases.insert(database.name.clone(), selected);
            }
        }
        match unmatched.first() {
            None => Ok(Some(selection)),
            Some(pattern) => Err(PostgresError::Usage(format!(
                "the snapshot has no table {pattern}; write schema.table, or see what there is with: vault show"
            ))),
        }
    }

    /// What was chosen of a database.
    pub fn of(&self, database: &str) -> Option<&Selected> {
        self.databases.get(database)
    }
}

impl Selected {
    pub fn wants(&self, schema: &str, name: &str) -> bool {
        self.wanted.contains(&(schema.to_owned(), name.to_owned()))
    }

    pub fn wants_sequence(&self, schema: &str, name: &str) -> bool {
        self.sequences.contains(&(schema.to_owned(), name.to_owned()))
    }

    fn new(
        include: &[String],
        unmatched: &mut BTreeSet<&String>,
        pre_data: Vec<Entry>,
        post_data: Vec<Entry>,
    ) -> Selected {
        let objects = Objects::of(&pre_data);
        let mut selected = Selected::default();
        for (name, _) in objects.relations() {
            for pattern in include.iter().filter(|pattern| table_matches(pattern, &name.0, &name.1)) {
                unmatched.remove(pattern);
                selected.wanted.insert(name.clone());
            }
        }
        let attached: Vec<(Name, Name)> = pre_data.iter().filter_map(attachment).collect();
        loop {
            let before = selected.wanted.len();
            for (parent, child) in &attached {
                if selected.wanted.contains(parent) {
                    selected.wanted.insert(child.clone());
                }
            }
            if selected.wanted.len() == before {
                break;
            }
        }
        let mut need =
            Need { objects: &objects, pre_data: &pre_data, chosen: BTreeSet::new(), foreign_schemas: BTreeSet::new() };
        for name in &selected.wanted {
            need.object(name);
        }
        let mut post = Vec::new();
        for entry in post_data {
            let Some(table) = subject(&entry) else { continue };
            if !selected.wanted.contains(&table) {
                continue;
            }
            let words = words(&entry.sql);
            let outward = entry.heading.kind == "FK CONSTRAINT"
                && words
                    .iter()
                    .position(|word| word.is("REFERENCES"))
                    .and_then(|at| qualified_at(&words, at + 1))
                    .is_some_and(|(other, _)| !selected.wanted.contains(&other));
            if outward {
                selected.outward.push(entry);
            } else {
                need.names_in(&words);
                post.push(entry);
            }
        }
        need.belongings(&selected.wanted, &mut selected.sequences);
        need.environment();
        let chosen = need.chosen;
        selected.pre_data =
            pre_data.into_iter().enumerate().filter(|(at, _)| chosen.contains(at)).map(|(_, entry)| entry).collect();
        // An index is attached if both it and its parent came along.
        let indexes: BTreeSet<Name> = post.iter().filter_map(index_name).collect();
        post.retain(|entry| {
            entry.heading.kind != "INDEX ATTACH"
                || attachment(entry).is_some_and(|(a, b)| indexes.contains(&a) && indexes.contains(&b))
        });
        selected.post_data = post;
        selected
    }
}

/// Objects of pre-data by name; functions of one name share it.
struct Objects {
    places: BTreeMap<Name, Vec<usize>>,
    relations: BTreeMap<Name, usize>,
}

impl Objects {
    fn of(entries: &[Entry]) -> Objects {
        let mut objects = Objects { places: BTreeMap::new(), relations: BTreeMap::new() };
        for (at, entry) in entries.iter().enumerate() {
            let words = words(&entry.sql);
            if !words.first().is_some_and(|word| word.is("CREATE")) {
                continue;
            }
            let Some(name) = first_name(&words) else { continue };
            if matches!(entry.heading.kind.as_str(), "TABLE" | "FOREIGN TABLE" | "VIEW" | "MATERIALIZED VIEW") {
                objects.relations.insert(name.clone(), at);
            }
            objects.places.entry(name).or_default().push(at);
        }
        objects
    }

    fn relations(&self) -> impl Iterator<Item = (&Name, &usize)> {
        self.relations.iter()
    }
}

/// Gathers what is needed.
struct Need<'a> {
    objects: &'a Objects,
    pre_data: &'a [Entry],
    chosen: BTreeSet<usize>,
    /// Schemas of names that no entry makes: they come from an extension.
    foreign_schemas: BTreeSet<String>,
}

impl Need<'_> {
    fn object(&mut self, name: &Name) {
        let mut queue: VecDeque<usize> = self.objects.places.get(name).into_iter().flatten().copied().collect();
        while let Some(at) = queue.pop_front() {
            if self.chosen.insert(at) {
                let words = words(&self.pre_data[at].sql);
                queue.extend(self.places_of(&words));
            }
        }
    }

    fn names_in(&mut self, words: &[Word]) {
        for at in self.places_of(words) {
            if self.chosen.insert(at) {
                let words = crate::source::postgres::script::words(&self.pre_data[at].sql);
                self.names_in(&words);
            }
        }
    }

    fn places_of(&mut self, words: &[Word]) -> Vec<usize> {
        let mut places = Vec::new();
        for name in names(words) {
            match self.objects.places.get(&name) {
                Some(at) => places.extend(at),
                None => {
                    self.foreign_schemas.insert(name.0);
                }
            }
        }
        places
    }

    /// Adds defaults, sequences, attachments, comments and privileges of what is chosen.
    fn belongings(&mut self, wanted: &BTreeSet<Name>, sequences: &mut BTreeSet<Name>) {
        // Sequences first: their comments come in the second round.
        for _ in 0..2 {
            for (at, entry) in self.pre_data.iter().enumerate() {
                if self.chosen.contains(&at) {
                    continue;
                }
                let words = words(&entry.sql);
                let belongs = match entry.heading.kind.as_str() {
                    "SEQUENCE OWNED BY" => {
                        let owner = words.iter().position(|word| word.is("OWNED"));
                        let owner = owner.and_then(|at| qualified_at(&words, at + 2)).map(|(name, _)| name);
                        let owned = owner.is_some_and(|owner| wanted.contains(&owner));
                        if let (true, Some(sequence)) = (owned, first_name(&words)) {
                            self.object(&sequence);
                            sequences.insert(sequence);
                        }
                        owned
                    }
                    // An identity column's sequence is made by an ALTER TABLE.
                    "SEQUENCE" => {
                        let table = first_name(&words).filter(|_| words[0].is("ALTER"));
                        let belongs = table.is_some_and(|table| wanted.contains(&table));
                        let named = words.windows(2).position(|pair| pair[0].is("SEQUENCE") && pair[1].is("NAME"));
                        if let (true, Some((sequence, _))) =
                            (belongs, named.and_then(|at| qualified_at(&words, at + 2)))
                        {
                            sequences.insert(sequence);
                        }
                        belongs
                    }
                    "TABLE ATTACH" => attachment(entry)
                        .is_some_and(|(parent, child)| self.is_chosen(&parent) && self.is_chosen(&child)),
                    "DEFAULT" | "COMMENT" | "ACL" | "SECURITY LABEL" => {
                        first_name(&words).is_some_and(|name| self.is_chosen(&name))
                    }
                    _ => false,
                };
                if belongs {
                    self.chosen.insert(at);
                    if entry.heading.kind == "DEFAULT" {
                        self.names_in(&words);
                    }
                }
            }
        }
    }

    fn is_chosen(&self, name: &Name) -> bool {
        self.objects.places.get(name).is_some_and(|places| places.iter().any(|at| self.chosen.contains(at)))
    }

    /// Adds schemas, and extensions in the schemas of names that nothing else makes.
    fn environment(&mut self) {
        for (at, entry) in self.pre_data.iter().enumerate() {
            let words = words(&entry.sql);
            if entry.heading.kind == "EXTENSION" {
                let schema = words.windows(2).position(|pair| pair[0].is("WITH") && pair[1].is("SCHEMA"));
                let schema = schema.and_then(|at| words.get(at + 2)).and_then(Word::name);
                if schema.is_some_and(|schema| self.foreign_schemas.contains(schema)) {
                    self.chosen.insert(at);
                }
            }
        }
        let mut schemas: BTreeSet<&str> =
            self.chosen.iter().filter_map(|&at| self.pre_data[at].heading.schema.as_deref()).collect();
        schemas.extend(self.foreign_schemas.iter().map(String::as_str));
        for (at, entry) in self.pre_data.iter().enumerate() {
            let words = words(&entry.sql);
            let makes = entry.heading.kind == "SCHEMA"
                && words.first().is_some_and(|word| word.is("CREATE"))
                && words.get(2).and_then(Word::name).is_some_and(|name| schemas.contains(name));
            if makes {
                self.chosen.insert(at);
            }
        }
    }
}

/// The qualified names in a text, and in texts of it that are cast to regclass.
fn names(words: &[Word]) -> Vec<Name> {
    let mut found = Vec::new();
    for at in 0..words.len() {
        if let Some((name, _)) = qualified_at(words, at) {
            found.push(name);
        }
        if let Word::Text(text) = &words[at] {
            let cast = words[at + 1..].iter().take(3).collect::<Vec<_>>();
            if cast.len() == 3 && cast[0].is(":") && cast[1].is(":") && cast[2].is("regclass") {
                let inner = crate::source::postgres::script::words(text);
                found.extend(qualified_at(&inner, 0).map(|(name, _)| name));
            }
        }
    }
    found
}

fn first_name(words: &[Word]) -> Option<Name> {
    (0..words.len()).find_map(|at| qualified_at(words, at)).map(|(name, _)| name)
}

/// `ALTER ... parent ATTACH PARTITION child`.
fn attachment(entry: &Entry) -> Option<(Name, Name)> {
    let words = words(&entry.sql);
    let at = words.windows(2).position(|pair| pair[0].is("ATTACH") && pair[1].is("PARTITION"))?;
    Some((first_name(&words[..at])?, qualified_at(&words, at + 2)?.0))
}

/// The relation that an entry of post-data is about. For an index that is attached: any that will do, as both its sides
/// are looked at later.
fn subject(entry: &Entry) -> Option<Name> {
    let words = words(&entry.sql);
    let after = |keyword: &str| {
        let at = words.iter().position(|word| word.is(keyword))?;
        let only = usize::from(words.get(at + 1)?.is("ONLY"));
        qualified_at(&words, at + 1 + only).map(|(name, _)| name)
    };
    match entry.heading.kind.as_str() {
        "INDEX" | "CONSTRAINT" | "CHECK CONSTRAINT" | "FK CONSTRAINT" | "TRIGGER" | "POLICY" | "ROW SECURITY" => {
            table_of(&entry.sql).map(|(table, _)| table)
        }
        "RULE" if words.iter().any(|word| word.is("VIEW")) => first_name(&words),
        "RULE" => after("TO"),
        "STATISTICS" => after("FROM"),
        "MATERIALIZED VIEW DATA" => after("VIEW"),
        "COMMENT" => {
            let at = words.iter().rposition(|word| word.is("ON"))?;
            (at > 1).then(|| qualified_at(&words, at + 1)).flatten().map(|(name, _)| name)
        }
        _ => None,
    }
}

fn index_name(entry: &Entry) -> Option<Name> {
    // CREATE [UNIQUE] INDEX name ON schema.table, or a constraint of the same name as its index.
    let schema = entry.heading.schema.clone()?;
    let words = words(&entry.sql);
    let keyword = match entry.heading.kind.as_str() {
        "INDEX" => "INDEX",
        "CONSTRAINT" => "CONSTRAINT",
        _ => return None,
    };
    let at = words.iter().position(|word| word.is(keyword))?;
    Some((schema, words.get(at + 1)?.name()?.to_owned()))
}

impl DatabaseRestore<'_> {
    /// Restores chosen tables into a database that is in use: all of it in one transaction, or nothing.
    pub(super) fn in_one_transaction(&self, selected: &Selected) -> Result<Vec<TableReport>, PostgresError> {
        let mut client = self.connect()?;
        let failed = |e| self.failed("the tables cannot be restored, nothing is changed", e);
        client.execute("BEGIN").map_err(failed)?;
        for entry in &self.prepared(&selected.pre_data) {
            self.run_or_find(&mut client, selected, entry)?;
        }
        let mut reports = Vec::new();
        let tables = self.tables();
        self.progress.add_bytes_total(tables.iter().map(|table| table.item.bytes).sum());
        for table in &tables {
            self.progress.doing(&format!("{}: {}", self.into, table.display()));
            let rows = self.copy_table(&mut client, table, false)?;
            reports.push(super::data::report(table, rows, table.item.hash.clone()));
        }
        if let Some(item) = self.database.sequences.as_ref().filter(|_| !self.options.schema_only) {
            client.execute(&self.sequence_statements(item)?.concat()).map_err(failed)?;
        }
        for entry in &self.prepared(&selected.post_data) {
            self.run_or_find(&mut client, selected, entry)?;
        }
        for entry in &selected.outward {
            match client.execute(&format!("SAVEPOINT before;\n{}\nRELEASE before", entry.sql)) {
                Ok(_) => {}
                Err(e) if !e.code().is_empty() => {
                    client.execute("ROLLBACK TO before").map_err(failed)?;
                    self.warn(format!("database {}: {} is left out, because {e}", self.into, describe(entry)));
                }
                Err(e) => return Err(failed(e)),
            }
        }
        client.execute("COMMIT").map_err(failed)?;
        for table in &tables {
            client.execute(&format!("ANALYZE {}", table.sql())).map_err(|e| self.failed("it cannot be analyzed", e))?;
        }
        if self.options.verify {
            self.verify(&tables, &mut reports)?;
        }
        Ok(reports)
    }

    /// Runs an entry; one that makes something that is there already is left out, unless it was asked for by name.
    fn run_or_find(&self, client: &mut Client, selected: &Selected, entry: &Entry) -> Result<(), PostgresError> {
        let lost = |e| self.failed(&describe(entry), e);
        client.execute("SAVEPOINT before").map_err(lost)?;
        self.settings_before(client, entry, "ROLLBACK TO before; ")?;
        client.execute("RELEASE before").map_err(lost)?;
        match client.execute(&format!("SAVEPOINT before;\n{}\nRELEASE before", entry.sql)) {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.code(), "42P06" | "42P07" | "42710" | "42723") => {
                let name = first_name(&words(&entry.sql)).unwrap_or_default();
                if selected.wanted.contains(&name) || selected.sequences.contains(&name) {
                    return Err(PostgresError::restore(
                        format!(
                            "{} {} exists already in database {}; drop or rename it, or restore --into NEWNAME; nothing is changed",
                            entry.heading.kind.to_lowercase(),
                            display(&name.0, &name.1),
                            self.into
                        ),
                        e,
                    ));
                }
                client.execute("ROLLBACK TO before").map(drop).map_err(lost)
            }
            Err(e) => Err(self.failed(&format!("{} cannot be restored, nothing is changed", describe(entry)), e)),
        }
    }

    /// Entries as this restore wants them.
    fn prepared(&self, entries: &[Entry]) -> Vec<Entry> {
        let mut entries = entries.to_vec();
        if self.options.no_owner {
            super::scripts::without_owners(&mut entries);
        }
        if self.options.schema_only {
            entries.retain(|entry| entry.heading.kind != "MATERIALIZED VIEW DATA");
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::script::entry;

    #[test]
    fn a_table_comes_with_what_it_needs_and_nothing_else() {
        let pre = vec![
            entry("TYPE", "mood", "CREATE TYPE s.mood AS ENUM ('a');"),
            entry("TYPE", "other", "CREATE TYPE s.other AS ENUM ('a');"),
            entry("DOMAIN", "d", "CREATE DOMAIN s.d AS s.mood;"),
            entry("TABLE", "t", "CREATE TABLE s.t (id integer, m s.d DEFAULT nextval('s.q2'::regclass));"),
            entry("SEQUENCE", "t_id_seq", "CREATE SEQUENCE s.t_id_seq;"),
            entry("SEQUENCE OWNED BY", "t_id_seq", "ALTER SEQUENCE s.t_id_seq OWNED BY s.t.id;"),
            entry("SEQUENCE", "q2", "CREATE SEQUENCE s.q2;"),
            entry("TABLE", "u", "CREATE TABLE s.u (id integer, x s.other);"),
            entry("COMMENT", "TABLE t", "COMMENT ON TABLE s.t IS 'x';"),
            entry("COMMENT", "TABLE u", "COMMENT ON TABLE s.u IS 'x';"),
            entry("FUNCTION", "f()", "CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS $$ begin end $$;"),
        ];
        let post = vec![
            entry("INDEX", "i", "CREATE INDEX i ON s.t USING btree (id);"),
            entry("INDEX", "j", "CREATE INDEX j ON s.u USING btree (id);"),
            entry("TRIGGER", "t g", "CREATE TRIGGER g AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f();"),
            entry(
                "FK CONSTRAINT",
                "t fk",
                "ALTER TABLE ONLY s.t ADD CONSTRAINT fk FOREIGN KEY (id) REFERENCES s.u(id);",
            ),
        ];
        let include = vec!["s.t".to_owned()];
        let mut unmatched = include.iter().collect();
        let selected = Selected::new(&include, &mut unmatched, pre, post);
        assert!(unmatched.is_empty());
        let names: Vec<&str> = selected.pre_data.iter().map(|entry| entry.heading.name.as_str()).collect();
        assert_eq!(names, ["mood", "d", "t", "t_id_seq", "t_id_seq", "q2", "TABLE t", "f()"]);
        let names: Vec<&str> = selected.post_data.iter().map(|entry| entry.heading.name.as_str()).collect();
        assert_eq!(names, ["i", "t g"]);
        assert_eq!(selected.outward.len(), 1);
        assert!(selected.wants("s", "t") && !selected.wants("s", "u") && selected.wants_sequence("s", "t_id_seq"));
    }

    #[test]
    fn partitions_come_with_their_table() {
        let pre = vec![
            entry("TABLE", "p", "CREATE TABLE s.p (id integer) PARTITION BY RANGE (id);"),
            entry("TABLE", "p1", "CREATE TABLE s.p1 (id integer);"),
            entry("TABLE ATTACH", "p1", "ALTER TABLE ONLY s.p ATTACH PARTITION s.p1 FOR VALUES FROM (1) TO (2);"),
        ];
        let include = vec!["p".to_owned(), "none".to_owned()];
        let mut unmatched = include.iter().collect();
        let selected = Selected::new(&include, &mut unmatched, pre, Vec::new());
        assert_eq!(unmatched.len(), 1, "a pattern that names nothing is told");
        assert!(selected.wants("s", "p1"));
        assert_eq!(selected.pre_data.len(), 3);
    }
}
