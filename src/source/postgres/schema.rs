//! Takes what changes from run to run out of pg_dump's text, and what concerns the database itself to a place of its own.

use std::io;

use serde_json::{Map, Value};

use super::error::PostgresError;
use super::script::{Heading, Lexer};

/// Where a line belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// `CREATE DATABASE`, its settings, comment and privileges.
    Database,
    #[default]
    Content,
}

/// Filters a script line by line.
#[derive(Debug, Default)]
pub struct SchemaFilter {
    lexer: Lexer,
    part: Part,
    /// The last line was `--` alone, at the top; it belongs to what follows.
    dashes: bool,
    /// An entry of the content has begun.
    begun: bool,
    /// Settings before the first entry; repeated after each `\connect`, of which only the last counts.
    preamble: Vec<u8>,
    complete: bool,
    facts: Map<String, Value>,
}

/// The dump's last comment: without it the text is cut short, whatever the exit status says.
const LAST_COMMENTS: &[&[u8]] =
    &[b"-- PostgreSQL database dump complete", b"-- PostgreSQL database cluster dump complete"];

impl SchemaFilter {
    /// Takes the next line with its end, and hands on what stays.
    pub fn line(&mut self, line: &[u8], keep: &mut dyn FnMut(Part, &[u8]) -> io::Result<()>) -> io::Result<()> {
        if !self.lexer.at_top() {
            self.lexer.feed(line);
            return self.pass(line, keep);
        }
        let text = line.trim_ascii_end();
        let dashes = std::mem::replace(&mut self.dashes, text == b"--");
        if self.dashes {
            return if dashes { self.pass(b"--\n", keep) } else { Ok(()) };
        }
        if let Some(heading) = Heading::parse(line) {
            self.part = if heading.is_database() { Part::Database } else { Part::Content };
            if self.part == Part::Content && !self.begun {
                self.begun = true;
                let preamble = std::mem::take(&mut self.preamble);
                keep(Part::Content, &preamble)?;
            }
        }
        if text.starts_with(b"\\") {
            // psql's own: \restrict and its random key, and \connect to the database.
            if text.starts_with(b"\\connect") {
                self.part = Part::Content;
                self.preamble.clear();
            }
            return Ok(());
        }
        for (prefix, name) in
            [(&b"-- Dumped from database version "[..], "server"), (b"-- Dumped by pg_dump version ", "pg_dump")]
        {
            if let Some(version) = text.strip_prefix(prefix) {
                self.facts.insert(name.to_owned(), String::from_utf8_lossy(version).into());
                return Ok(());
            }
        }
        if LAST_COMMENTS.contains(&text) {
            self.complete = true;
            self.part = Part::Content;
        }
        if dashes {
            self.pass(b"--\n", keep)?;
        }
        self.lexer.feed(line);
        self.pass(line, keep)
    }

    fn pass(&mut self, line: &[u8], keep: &mut dyn FnMut(Part, &[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.part == Part::Content && !self.begun && !self.complete {
            self.preamble.extend_from_slice(line);
            return Ok(());
        }
        if !self.preamble.is_empty() && self.part == Part::Content {
            let preamble = std::mem::take(&mut self.preamble);
            keep(Part::Content, &preamble)?;
        }
        keep(self.part, line)
    }

    /// Ends the script; returns what was taken out of it. An error if it does not end as a whole script does.
    pub fn complete(self, tool: &str) -> Result<Map<String, Value>, PostgresError> {
        if self.complete && self.lexer.at_top() {
            Ok(self.facts)
        } else {
            Err(PostgresError::Tool {
                tool: tool.to_owned(),
                outcome: "ended with success, but its text is cut short".to_owned(),
                stderr: String::new(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(script: &str) -> (String, String, Result<Map<String, Value>, PostgresError>) {
        let (mut database, mut content) = (Vec::new(), Vec::new());
        let mut filter = SchemaFilter::default();
        for line in script.split_inclusive('\n') {
            filter
                .line(line.as_bytes(), &mut |part, bytes| {
                    if part == Part::Database {
                        database.extend_from_slice(bytes)
                    } else {
                        content.extend_from_slice(bytes)
                    }
                    Ok(())
                })
                .unwrap();
        }
        (String::from_utf8(database).unwrap(), String::from_utf8(content).unwrap(), filter.complete("pg_dump"))
    }

    #[test]
    fn random_keys_and_versions_leave_the_text() {
        let script = |key: &str, version: &str| {
            format!(
                "--\n-- PostgreSQL database dump\n--\n\n\\restrict {key}\n\n-- Dumped from database version {version}\n\
                 -- Dumped by pg_dump version {version}\n\nSET x = 1;\n\n\
                 --\n-- Name: d; Type: DATABASE; Schema: -; Owner: o\n--\n\nCREATE DATABASE d;\n\n\n\
                 \\unrestrict {key}\n\\connect d\n\\restrict {key}\n\nSET x = 1;\n\n\
                 --\n-- Name: f(); Type: FUNCTION; Schema: public; Owner: o\n--\n\n\
                 CREATE FUNCTION f() AS $$\n\\restrict stays\n-- Dumped by pg_dump version too\n$$;\n\n\
                 --\n-- Name: DATABASE d; Type: ACL; Schema: -; Owner: o\n--\n\nGRANT x;\n\n\
                 --\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict {key}\n"
            )
        };
        let (database, content, facts) = filter(&script("abc", "15.1"));
        assert_eq!(facts.unwrap()["server"], "15.1");
        assert!(database.contains("CREATE DATABASE d;") && database.contains("GRANT x;"), "{database}");
        assert!(!database.contains("FUNCTION") && !database.contains("\\"), "{database}");
        assert!(content.contains("\\restrict stays") && content.contains("version too"), "{content}");
        assert!(!content.contains("abc") && !content.contains("DATABASE d"), "{content}");
        assert_eq!(content.matches("SET x = 1;").count(), 1, "{content}");
        let again = filter(&script("xyz", "15.2"));
        assert_eq!((database, content), (again.0, again.1), "the same schema is the same text");
    }

    #[test]
    fn a_text_without_its_end_is_refused() {
        assert!(
            filter("SET x = 1;\n--\n-- Name: t; Type: TABLE; Schema: s; Owner: o\n--\n\nCREATE TABLE t ();\n")
                .2
                .is_err()
        );
        assert!(filter("").2.is_err());
        let (_, content, facts) = filter("SET x = 1;\n\n--\n-- PostgreSQL database dump complete\n--\n\n");
        assert!(facts.is_ok(), "a database without content is whole");
        assert!(content.starts_with("SET x = 1;"), "{content:?}");
    }
}
