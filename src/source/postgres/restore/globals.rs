//! Roles, memberships and tablespaces of the cluster that was saved, as far as they are missing here.
//!
//! What exists is never changed: no password, no attribute, no setting. A membership is granted if one of its two roles is
//! new.

use std::collections::BTreeSet;

use crate::source::postgres::client::{Client, Row};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::script::{Word, statements, words};

/// Runs what is missing of a `pg_dumpall --globals-only` text. What cannot be made becomes a warning.
pub fn restore(home: &mut Client, text: &[u8], warnings: &mut Vec<String>) -> Result<(), PostgresError> {
    let failed = |e| PostgresError::restore("the server's roles could not be read", e);
    let names = |rows: Vec<Row>| -> BTreeSet<String> { rows.iter().map(|row| row.text(0).to_owned()).collect() };
    let roles = names(home.query("SELECT rolname FROM pg_catalog.pg_roles").map_err(failed)?);
    let tablespaces = names(home.query("SELECT spcname FROM pg_catalog.pg_tablespace").map_err(failed)?);
    let text = String::from_utf8_lossy(text);
    let without_psql: String =
        text.lines().filter(|line| !line.starts_with('\\')).flat_map(|line| [line, "\n"]).collect();
    let mut lost = BTreeSet::new();
    for statement in statements(&without_psql) {
        if !is_wanted(&words(statement), &roles, &tablespaces) {
            continue;
        }
        if let Err(e) = home.execute(statement) {
            if e.code().is_empty() {
                return Err(PostgresError::restore("the server's roles could not be restored", e));
            }
            // The statement may hold a password, so only its beginning is shown.
            let shown: Vec<&str> = statement.split_whitespace().take(3).collect();
            if lost.insert(shown.join(" ")) {
                warnings.push(format!("{} ... failed, make it by hand if it is needed: {e}", shown.join(" ")));
            }
        }
    }
    Ok(())
}

/// Whether a statement makes something that is missing.
fn is_wanted(words: &[Word], roles: &BTreeSet<String>, tablespaces: &BTreeSet<String>) -> bool {
    let is = |at: usize, keyword: &str| words.get(at).is_some_and(|word| word.is(keyword));
    let misses = |at: usize, there: &BTreeSet<String>| {
        words.get(at).and_then(Word::name).is_some_and(|name| !there.contains(name))
    };
    let object = if is(0, "CREATE") || is(0, "ALTER") { 1 } else { 2 };
    if object == 1 || (is(0, "COMMENT") && is(1, "ON")) {
        return (is(object, "ROLE") && misses(object + 1, roles))
            || (is(object, "TABLESPACE") && misses(object + 1, tablespaces));
    }
    // GRANT role TO role, GRANT ... ON TABLESPACE ... TO role, GRANT ... ON PARAMETER ... TO role.
    let to = words.iter().position(|word| word.is("TO"));
    is(0, "GRANT") && to.is_some_and(|to| misses(to + 1, roles) || (to == 2 && misses(1, roles)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_left_alone() {
        let roles = BTreeSet::from(["postgres".to_owned(), "app".to_owned()]);
        let tablespaces = BTreeSet::from(["fast".to_owned()]);
        for (statement, wanted) in [
            ("CREATE ROLE app;", false),
            ("CREATE ROLE \"new one\";", true),
            ("ALTER ROLE postgres WITH PASSWORD 'x';", false),
            ("ALTER ROLE other SET work_mem TO '1MB';", true),
            ("COMMENT ON ROLE app IS 'x';", false),
            ("GRANT app TO postgres GRANTED BY postgres;", false),
            ("GRANT app TO other;", true),
            ("GRANT other TO app;", true),
            ("CREATE TABLESPACE fast OWNER app LOCATION '/x';", false),
            ("CREATE TABLESPACE slow OWNER app LOCATION '/x';", true),
            ("GRANT CREATE ON TABLESPACE fast TO other;", true),
            ("GRANT SET ON PARAMETER work_mem TO app;", false),
            ("SET standard_conforming_strings = on;", false),
            ("SELECT 1;", false),
            (";", false),
        ] {
            assert_eq!(is_wanted(&words(statement), &roles, &tablespaces), wanted, "{statement}");
        }
    }
}
