//! Scripts of pg_dump, run entry by entry, and what is changed in them first.

use super::mark::{Mark, record};
use super::{DatabaseRestore, server_version};
use crate::source::postgres::client::{Client, QueryError};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::quote::ident;
use crate::source::postgres::script::{Entry, statements, words, words_at};

/// Entries in one transaction.
const BATCH_ENTRIES: usize = 32;
const BATCH_BYTES: usize = 64 << 10;

/// Another name for a database in the statements about it.
pub struct Rename<'a> {
    pub from: &'a str,
    pub to: &'a str,
}

impl Rename<'_> {
    /// Writes the new name wherever `DATABASE` stands before the old one.
    pub fn apply(&self, sql: &str) -> String {
        let words = words_at(sql);
        let mut out = String::with_capacity(sql.len());
        let mut from = 0;
        for pair in words.windows(2) {
            let (keyword, name) = (&pair[0], &pair[1]);
            if keyword.0.is("DATABASE") && name.0.name() == Some(self.from) {
                out.push_str(&sql[from..name.1]);
                out.push_str(&ident(self.to));
                from = name.2;
            }
        }
        out.push_str(&sql[from..]);
        out
    }
}

/// Takes `TABLESPACE = x` out of a CREATE DATABASE; `None` if it has none.
pub fn without_tablespace(sql: &str) -> Option<String> {
    let words = words_at(sql);
    let at = words.iter().position(|(word, ..)| word.is("TABLESPACE"))?;
    let end = words.get(at + 2).filter(|_| words[at + 1].0.is("="))?.2;
    Some(format!("{}{}", &sql[..words[at].1], &sql[end..]))
}

/// Takes ownership and privileges out of entries.
pub fn without_owners(entries: &mut Vec<Entry>) {
    entries.retain(|entry| !matches!(entry.heading.kind.as_str(), "ACL" | "DEFAULT ACL"));
    for entry in entries {
        if entry.sql.contains(" OWNER TO ") {
            let kept: Vec<&str> =
                statements(&entry.sql).into_iter().filter(|statement| !gives_owner(statement)).collect();
            entry.sql = kept.join("\n\n");
        }
    }
}

fn gives_owner(statement: &str) -> bool {
    let words = words(statement);
    let length = words.len();
    length >= 5 && words[0].is("ALTER") && words[length - 4].is("OWNER") && words[length - 3].is("TO")
}

impl DatabaseRestore<'_> {
    /// Runs entries in their order, several in a transaction, and records how far it came.
    pub(super) fn run_script(
        &self,
        client: &mut Client,
        mark: &Mark,
        step: &str,
        entries: &[Entry],
    ) -> Result<(), PostgresError> {
        self.progress.doing(&format!("{}: {step}", self.into));
        let mut at = mark.done(step).map_or(0, |(count, _)| usize::try_from(count).unwrap_or(usize::MAX));
        while at < entries.len() {
            let mut end = at;
            let mut bytes = 0;
            while end < entries.len() && end - at < BATCH_ENTRIES && (end == at || bytes < BATCH_BYTES) {
                bytes += entries[end].sql.len();
                end += 1;
            }
            let mut sql = String::with_capacity(bytes + 1_024);
            sql.push_str("BEGIN;\n");
            let mut settings: &[String] = &[];
            for entry in &entries[at..end] {
                if settings != entry.settings {
                    settings = &entry.settings;
                    sql.push_str(&settings.join("\n"));
                    sql.push('\n');
                }
                sql.push_str(&entry.sql);
                sql.push('\n');
            }
            sql.push_str(&record(step, end as u64, ""));
            sql.push_str("COMMIT");
            match client.execute(&sql) {
                Ok(_) => {}
                Err(e) if e.code().is_empty() => return Err(self.failed(step, e)),
                Err(_) => {
                    // One by one: then it is known which entry fails, and whether that may be.
                    client.execute("ROLLBACK").map_err(|e| self.failed(step, e))?;
                    for (place, entry) in entries.iter().enumerate().take(end).skip(at) {
                        self.run_entry(client, entry, &record(step, place as u64 + 1, ""))?;
                    }
                }
            }
            at = end;
            self.progress.check().map_err(|_| PostgresError::Cancelled(crate::progress::Cancelled))?;
        }
        Ok(())
    }

    /// Runs one entry and what records it, in one transaction.
    pub(super) fn run_entry(&self, client: &mut Client, entry: &Entry, record: &str) -> Result<(), PostgresError> {
        self.settings_before(client, entry, "")?;
        match client.execute(&format!("BEGIN;\n{}\n{record}COMMIT", entry.sql)) {
            Ok(_) => Ok(()),
            Err(e) if !e.code().is_empty() && may_fail(entry, &e) => {
                let lost = |e| self.failed(&describe(entry), e);
                client.execute("ROLLBACK").map_err(lost)?;
                if !record.is_empty() {
                    client.execute(record).map_err(lost)?;
                }
                self.warn(format!("database {}: {} is left out, because {e}", self.into, describe(entry)));
                Ok(())
            }
            Err(e) => {
                let hint = hint(&e, client);
                Err(self.failed(&format!("{} cannot be restored{hint}", describe(entry)), e))
            }
        }
    }

    /// Sets tablespace and access method for what follows. A tablespace that is missing here is the default one; inside a
    /// transaction, `undo` leads back to before the setting that failed.
    pub(super) fn settings_before(&self, client: &mut Client, entry: &Entry, undo: &str) -> Result<(), PostgresError> {
        for setting in &entry.settings {
            match client.execute(setting) {
                Ok(_) => {}
                Err(e) if setting.contains("default_tablespace") && !e.code().is_empty() => {
                    self.warn(format!("database {}: {setting} failed, the default tablespace is used: {e}", self.into));
                    let default = format!("{undo}SET default_tablespace = ''");
                    client.execute(&default).map_err(|e| self.failed("no tablespace", e))?;
                }
                Err(e) => return Err(self.failed(setting, e)),
            }
        }
        Ok(())
    }
}

/// What people call an entry.
pub fn describe(entry: &Entry) -> String {
    let heading = &entry.heading;
    let name = match &heading.schema {
        Some(schema) => format!("{schema}.{}", heading.name),
        None => heading.name.clone(),
    };
    format!("{} {name}", heading.kind.to_lowercase())
}

/// Comments on what only a superuser may comment on are not worth a failed restore.
fn may_fail(entry: &Entry, error: &QueryError) -> bool {
    error.code() == "42501" && entry.heading.kind == "COMMENT" && entry.heading.name.starts_with("EXTENSION ")
}

fn hint(error: &QueryError, client: &Client) -> String {
    match error.code() {
        "42704" => "; if a role is missing here, make it or use --no-owner".to_owned(),
        "42501" => "; restore as a superuser, or use --no-owner".to_owned(),
        "0A000" | "58P01" | "42601" | "22023" => {
            format!(
                "; this server is PostgreSQL {}: see that it is no older and has the same extensions",
                server_version(client)
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::script::split;

    #[test]
    fn a_database_gets_its_new_name_only_where_it_is_meant() {
        let rename = Rename { from: "a", to: "b c" };
        for (sql, wanted) in [
            ("CREATE DATABASE a WITH TEMPLATE = template0;", "CREATE DATABASE \"b c\" WITH TEMPLATE = template0;"),
            ("ALTER DATABASE a SET x TO 'DATABASE a';", "ALTER DATABASE \"b c\" SET x TO 'DATABASE a';"),
            ("ALTER ROLE a IN DATABASE a SET a TO 'a';", "ALTER ROLE a IN DATABASE \"b c\" SET a TO 'a';"),
            ("COMMENT ON DATABASE a IS 'a';", "COMMENT ON DATABASE \"b c\" IS 'a';"),
            ("GRANT CONNECT ON DATABASE a TO a;", "GRANT CONNECT ON DATABASE \"b c\" TO a;"),
            ("ALTER DATABASE other SET x TO a;", "ALTER DATABASE other SET x TO a;"),
        ] {
            assert_eq!(rename.apply(sql), wanted);
        }
        let odd = Rename { from: "a \"b", to: "x" };
        assert_eq!(odd.apply("ALTER DATABASE \"a \"\"b\" OWNER TO o;"), "ALTER DATABASE \"x\" OWNER TO o;");
    }

    #[test]
    fn a_tablespace_can_be_taken_out() {
        let sql = "CREATE DATABASE a WITH TEMPLATE = template0 TABLESPACE = fast;";
        assert_eq!(without_tablespace(sql).as_deref(), Some("CREATE DATABASE a WITH TEMPLATE = template0 ;"));
        assert_eq!(without_tablespace("CREATE DATABASE tablespace_x;"), None);
    }

    #[test]
    fn owners_and_privileges_can_be_taken_out() {
        let mut entries = split(
            b"--\n-- Name: t; Type: TABLE; Schema: s; Owner: o\n--\n\nCREATE TABLE s.t (\n  x text DEFAULT 'ALTER TABLE x OWNER TO y;'\n);\n\n\n\
              ALTER TABLE s.t OWNER TO o;\n\n--\n-- Name: TABLE t; Type: ACL; Schema: s; Owner: o\n--\n\nGRANT SELECT ON TABLE s.t TO p;\n",
        );
        without_owners(&mut entries);
        assert_eq!(entries.len(), 1);
        assert!(entries[0].sql.ends_with("'\n);"), "{}", entries[0].sql);
    }
}
