//! Which errors of `pg_dump` and `pg_dumpall` are worth another attempt.

use crate::source::postgres::error::PostgresError;

/// Attempts at one piece of work, each with a snapshot of its own.
const ATTEMPTS: u32 = 8;

/// What came of the attempts so far.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: u32,
    words: String,
}

impl Attempts {
    /// Whether to begin anew after `error`, of which nothing has been stored.
    ///
    /// A lock for which others wait is given to them in between. And what is no table is read without a lock: what others
    /// drop meanwhile (a view, a function, a tablespace) makes the server refuse a query. Both pass, unless the same words
    /// come again, which name what is missing by its number.
    pub fn again(&mut self, error: &PostgresError) -> bool {
        let PostgresError::Tool { stderr, .. } = error else { return false };
        self.failed += 1;
        let before = std::mem::replace(&mut self.words, stderr.clone());
        let locked = stderr.contains("LOCK TABLE");
        // The tool's own words: they are not in the server's language.
        let refused = stderr.contains("query failed");
        self.failed < ATTEMPTS && (locked || (refused && *stderr != before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(stderr: &str) -> PostgresError {
        PostgresError::Tool {
            tool: "pg_dump".into(),
            outcome: "ended with exit status 1".into(),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn what_passes_is_tried_again_and_nothing_else() {
        let again = |words: &[&str]| {
            let mut attempts = Attempts::default();
            words.iter().map(|words| attempts.again(&tool(words))).collect::<Vec<_>>()
        };
        let gone = |oid: u32| format!("pg_dump: error: query failed: ERROR:  could not open relation with OID {oid}");
        let gone: Vec<String> = (1..=9).map(gone).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        assert_eq!(again(&gone), [[true; 7].as_slice(), &[false; 2]].concat());
        assert_eq!(again(&[gone[0], gone[0]]), [true, false]);
        assert_eq!(again(&[gone[0], gone[1], gone[1]]), [true, true, false]);
        assert_eq!(again(&["query was: LOCK TABLE a"; 8]), [[true; 7].as_slice(), &[false]].concat());
        assert_eq!(again(&["pg_dump: error: out of memory"]), [false]);
        assert!(!Attempts::default().again(&PostgresError::source("query failed")));
    }
}
