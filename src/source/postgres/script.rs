//! The SQL text that pg_dump writes, taken apart into its entries.
//!
//! Each entry stands under a comment `-- Name: ...; Type: ...; Schema: ...; Owner: ...`. A function body or a text may
//! hold the same words, so a lexer follows quotes, dollar quotes and comments, and only lines outside of them count.

use std::io;

/// Follows SQL line by line, to tell whether a line begins outside every quote, comment and statement.
#[derive(Debug, Clone, Default)]
pub struct Lexer {
    state: State,
    /// Something of a statement stands before this point.
    in_statement: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum State {
    #[default]
    Plain,
    /// `'...'`, and whether a backslash escapes.
    Text(bool),
    Name,
    /// `$tag$`, with both dollar signs.
    Dollar(Vec<u8>),
    /// `/* */`, nested this deep.
    Comment(u32),
}

impl Lexer {
    /// Whether what follows is outside of quotes and comments, and no statement is unfinished.
    pub fn at_top(&self) -> bool {
        self.state == State::Plain && !self.in_statement
    }

    /// Follows one line, or any piece of text that does not end inside a token.
    pub fn feed(&mut self, line: &[u8]) {
        self.scan(line, &mut |_| {});
    }

    /// The same; calls `ends` with the position behind each `;` that stands outside of quotes and comments.
    fn scan(&mut self, line: &[u8], ends: &mut dyn FnMut(usize)) {
        let mut at = 0;
        while at < line.len() {
            let byte = line[at];
            let next = line.get(at + 1).copied();
            match &mut self.state {
                State::Plain => match byte {
                    b'-' if next == Some(b'-') => {
                        // A comment ends with its line.
                        match line[at..].iter().position(|&b| b == b'\n') {
                            Some(length) => at += length,
                            None => return,
                        }
                    }
                    b'/' if next == Some(b'*') => {
                        self.state = State::Comment(1);
                        at += 2;
                    }
                    b'\'' => {
                        let escapes =
                            at > 0 && matches!(line[at - 1], b'e' | b'E') && !(at > 1 && in_word(line[at - 2]));
                        self.state = State::Text(escapes);
                        self.in_statement = true;
                        at += 1;
                    }
                    b'"' => {
                        self.state = State::Name;
                        self.in_statement = true;
                        at += 1;
                    }
                    b'$' if at == 0 || !in_word(line[at - 1]) => {
                        self.in_statement = true;
                        match dollar_tag(&line[at..]) {
                            Some(tag) => {
                                at += tag.len();
                                self.state = State::Dollar(tag.to_vec());
                            }
                            None => at += 1,
                        }
                    }
                    b';' => {
                        self.in_statement = false;
                        at += 1;
                        ends(at);
                    }
                    byte => {
                        self.in_statement |= !byte.is_ascii_whitespace();
                        at += 1;
                    }
                },
                State::Text(escapes) => match byte {
                    b'\\' if *escapes => at += 2,
                    b'\'' => {
                        // A doubled quote ends one text and begins the next, which comes to the same but for escapes.
                        if *escapes && next == Some(b'\'') {
                            at += 2;
                        } else {
                            self.state = State::Plain;
                            at += 1;
                        }
                    }
                    _ => at += 1,
                },
                State::Name => {
                    if byte == b'"' {
                        self.state = State::Plain;
                    }
                    at += 1;
                }
                State::Dollar(tag) => {
                    if byte == b'$' && line[at..].starts_with(tag) {
                        at += tag.len();
                        self.state = State::Plain;
                    } else {
                        at += 1;
                    }
                }
                State::Comment(depth) => match (byte, next) {
                    (b'*', Some(b'/')) => {
                        *depth -= 1;
                        if *depth == 0 {
                            self.state = State::Plain;
                        }
                        at += 2;
                    }
                    (b'/', Some(b'*')) => {
                        *depth += 1;
                        at += 2;
                    }
                    _ => at += 1,
                },
            }
        }
    }
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// The `$tag$` that `text` begins with.
fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let length = text[1..].iter().position(|&b| b == b'$' || !in_word(b))?;
    let tag = &text[1..=length];
    (text[1 + length] == b'$' && !tag.first().is_some_and(u8::is_ascii_digit)).then(|| &text[..length + 2])
}

/// The comment over an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heading {
    /// For people; line breaks are gone, so it may not be the exact name.
    pub name: String,
    /// `TABLE`, `FK CONSTRAINT`...
    pub kind: String,
    /// `None` for `-`.
    pub schema: Option<String>,
    pub owner: String,
}

impl Heading {
    /// Reads `-- Name: x; Type: TABLE; Schema: public; Owner: postgres`.
    pub fn parse(line: &[u8]) -> Option<Heading> {
        let line = String::from_utf8_lossy(line);
        let rest = line.trim_end_matches(['\n', '\r']);
        // A dump with data says "Data for Name" and the like.
        let rest = rest.strip_prefix("-- Name: ").or_else(|| rest.strip_prefix("-- Data for Name: "))?;
        let rest = rest.rsplit_once("; Tablespace: ").map_or(rest, |(rest, _)| rest);
        let (rest, owner) = rest.rsplit_once("; Owner: ")?;
        let (rest, schema) = rest.rsplit_once("; Schema: ")?;
        let (name, kind) = rest.rsplit_once("; Type: ")?;
        Some(Heading {
            name: name.to_owned(),
            kind: kind.to_owned(),
            schema: (schema != "-").then(|| schema.to_owned()),
            owner: owner.to_owned(),
        })
    }

    /// Whether this belongs to the database itself rather than to something in it.
    pub fn is_database(&self) -> bool {
        match self.kind.as_str() {
            "DATABASE" | "DATABASE PROPERTIES" => true,
            "COMMENT" | "ACL" | "SECURITY LABEL" => self.schema.is_none() && self.name.starts_with("DATABASE "),
            _ => false,
        }
    }
}

/// An entry: a heading and the statements under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub heading: Heading,
    /// Statements, without the heading.
    pub sql: String,
    /// `SET default_tablespace` and the like that hold for it, wherever in the script they stand.
    pub settings: Vec<String>,
}

/// An entry as pg_dump would write it, for tests.
#[cfg(test)]
pub fn entry(kind: &str, name: &str, sql: &str) -> Entry {
    let heading = Heading { name: name.into(), kind: kind.into(), schema: Some("s".into()), owner: "o".into() };
    Entry { heading, sql: sql.into(), settings: Vec::new() }
}

/// Writes entries as they stood in their script.
pub fn write_entries(entries: &[Entry], out: &mut dyn io::Write) -> io::Result<()> {
    let mut settings: &[String] = &[];
    for entry in entries {
        if settings != entry.settings {
            settings = &entry.settings;
            writeln!(out, "{}\n", settings.join("\n"))?;
        }
        let heading = &entry.heading;
        let schema = heading.schema.as_deref().unwrap_or("-");
        writeln!(
            out,
            "--\n-- Name: {}; Type: {}; Schema: {schema}; Owner: {}\n--\n\n{}\n\n",
            heading.name, heading.kind, heading.owner, entry.sql
        )?;
    }
    Ok(())
}

/// Takes a script apart.
#[derive(Debug, Default)]
pub struct Splitter {
    lexer: Lexer,
    entries: Vec<Entry>,
    settings: Vec<String>,
    /// The last line was `--` alone, at the top.
    dashes: bool,
    /// Lines of the heading are still coming.
    in_heading: bool,
}

impl Splitter {
    /// Takes the next line with its end.
    pub fn line(&mut self, line: &[u8]) {
        let top = self.lexer.at_top();
        if top {
            let trimmed = trim_end(line);
            if self.dashes
                && let Some(heading) = Heading::parse(line)
            {
                self.entries.push(Entry { heading, sql: String::new(), settings: self.settings.clone() });
                self.in_heading = true;
                self.dashes = false;
                return;
            }
            self.dashes = trimmed == b"--";
            if self.dashes || trimmed.is_empty() {
                let closes = self.in_heading;
                self.in_heading = false;
                if closes || self.dashes {
                    return;
                }
            }
            if trimmed.starts_with(b"\\") || trimmed.starts_with(b"--") {
                return;
            }
            if trimmed.starts_with(b"SET default_t") {
                let setting = String::from_utf8_lossy(trimmed).into_owned();
                let name = |setting: &str| setting.split('=').next().map(str::to_owned);
                self.settings.retain(|other| name(other) != name(&setting));
                self.settings.push(setting);
                return;
            }
            if self.entries.is_empty() {
                return;
            }
        }
        self.lexer.feed(line);
        if let Some(entry) = self.entries.last_mut() {
            entry.sql.push_str(&String::from_utf8_lossy(line));
        }
    }

    /// Ends the script.
    pub fn finish(mut self) -> Vec<Entry> {
        for entry in &mut self.entries {
            let length = entry.sql.trim_end().len();
            entry.sql.truncate(length);
            let leading = entry.sql.len() - entry.sql.trim_start().len();
            entry.sql.drain(..leading);
        }
        self.entries
    }
}

/// Takes a whole script apart.
pub fn split(script: &[u8]) -> Vec<Entry> {
    let mut splitter = Splitter::default();
    for line in script.split_inclusive(|&b| b == b'\n') {
        splitter.line(line);
    }
    splitter.finish()
}

/// Splits the text of an entry into statements, each with its `;`.
///
/// A function with a body in SQL (`BEGIN ATOMIC ... END`) holds semicolons of its own and stays in one piece.
pub fn statements(sql: &str) -> Vec<&str> {
    let mut ends = Vec::new();
    Lexer::default().scan(sql.as_bytes(), &mut |at| ends.push(at));
    let mut found = Vec::new();
    let mut from = 0;
    for end in ends {
        let statement = sql[from..end].trim();
        if holds_open_body(statement) {
            continue;
        }
        if statement != ";" {
            found.push(statement);
        }
        from = end;
    }
    let rest = sql[from..].trim();
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

/// Whether a statement is a `CREATE FUNCTION` or `PROCEDURE` whose `BEGIN ATOMIC` has not come to its `END` yet.
fn holds_open_body(statement: &str) -> bool {
    let creates =
        ["CREATE FUNCTION ", "CREATE PROCEDURE ", "CREATE OR REPLACE "].iter().any(|s| statement.starts_with(s));
    if !creates {
        return false;
    }
    let words = words(statement);
    let Some(begin) = words.windows(2).position(|pair| pair[0].is("BEGIN") && pair[1].is("ATOMIC")) else {
        return false;
    };
    // Both words are reserved, so neither can be a name without quotes; each CASE has an END of its own.
    let count = |keyword| words[begin..].iter().filter(|word| word.is(keyword)).count();
    count("END") <= count("CASE")
}

/// A word of SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Keyword or unquoted name, as written.
    Bare(String),
    /// Quoted name, without its quotes.
    Quoted(String),
    /// Content of a text literal, quotes undoubled.
    Text(String),
    /// Any other character.
    Sign(char),
}

impl Word {
    /// Whether it is this keyword or sign.
    pub fn is(&self, keyword: &str) -> bool {
        match self {
            Word::Bare(word) => word.eq_ignore_ascii_case(keyword),
            Word::Sign(sign) => keyword.len() == sign.len_utf8() && keyword.starts_with(*sign),
            _ => false,
        }
    }

    /// The name it may be.
    pub fn name(&self) -> Option<&str> {
        match self {
            Word::Bare(word) | Word::Quoted(word) => Some(word),
            _ => None,
        }
    }
}

/// Splits a statement into words; comments and the content of dollar quotes are left out.
pub fn words(sql: &str) -> Vec<Word> {
    words_at(sql).into_iter().map(|(word, _, _)| word).collect()
}

/// The same with the bytes `from..to` where each stands.
pub fn words_at(sql: &str) -> Vec<(Word, usize, usize)> {
    let bytes = sql.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        let from = at;
        if byte.is_ascii_whitespace() {
            at += 1;
        } else if byte == b'-' && bytes.get(at + 1) == Some(&b'-') {
            at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
        } else if byte == b'"' || byte == b'\'' {
            let escapes =
                byte == b'\'' && at > 0 && matches!(bytes[at - 1], b'e' | b'E') && !(at > 1 && in_word(bytes[at - 2]));
            let mut content = Vec::new();
            at += 1;
            while at < bytes.len() {
                if bytes[at] == b'\\' && escapes {
                    content.extend(bytes.get(at + 1));
                    at += 2;
                } else if bytes[at] == byte {
                    at += 1;
                    if bytes.get(at) != Some(&byte) {
                        break;
                    }
                    content.push(byte);
                    at += 1;
                } else {
                    content.push(bytes[at]);
                    at += 1;
                }
            }
            at = at.min(bytes.len());
            let content = String::from_utf8_lossy(&content).into_owned();
            found.push((if byte == b'"' { Word::Quoted(content) } else { Word::Text(content) }, from, at));
        } else if byte == b'$' && dollar_tag(&bytes[at..]).is_some() {
            let tag = dollar_tag(&bytes[at..]).unwrap_or_default();
            at += tag.len();
            at = match bytes[at..].windows(tag.len()).position(|w| w == tag) {
                Some(length) => at + length + tag.len(),
                None => bytes.len(),
            };
            found.push((Word::Text(String::new()), from, at));
        } else if in_word(byte) && byte != b'$' {
            while at < bytes.len() && in_word(bytes[at]) {
                at += 1;
            }
            found.push((Word::Bare(sql[from..at].to_owned()), from, at));
        } else {
            found.push((Word::Sign(char::from(byte)), from, at + 1));
            at += 1;
        }
    }
    found
}

fn trim_end(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAP: &str = "
SET default_tablespace = '';

--
-- Name: f(); Type: FUNCTION; Schema: public; Owner: o
--

CREATE FUNCTION public.f() RETURNS text
    LANGUAGE sql
    AS $x$ select '
--
-- Name: no; Type: TABLE; Schema: public; Owner: o
--
' $x$;


SET default_tablespace = fast;

--
-- Name: a; b; Type: TABLE; Schema: s; Owner: o; Tablespace: fast
--

CREATE TABLE s.\"a; b\" (
    x text DEFAULT E'it\\'s;

--
-- Name: neither; Type: TABLE; Schema: public; Owner: o
--
'
);


ALTER TABLE s.\"a; b\" OWNER TO o;

\\unrestrict x
--
-- PostgreSQL database dump complete
--
";

    #[test]
    fn headings_inside_of_quotes_do_not_count() {
        let entries = split(TRAP.as_bytes());
        let names: Vec<&str> = entries.iter().map(|e| e.heading.name.as_str()).collect();
        assert_eq!(names, ["f()", "a; b"]);
        assert!(
            entries[0].sql.starts_with("CREATE FUNCTION") && entries[0].sql.ends_with("$x$;"),
            "{:?}",
            entries[0].sql
        );
        assert_eq!(entries[0].settings, ["SET default_tablespace = '';"]);
        assert_eq!(entries[1].settings, ["SET default_tablespace = fast;"]);
        assert_eq!(entries[1].heading.schema.as_deref(), Some("s"));
        assert_eq!(statements(&entries[1].sql).len(), 2, "{:?}", statements(&entries[1].sql));
        assert!(entries[1].sql.ends_with("OWNER TO o;"), "{:?}", entries[1].sql);
    }

    #[test]
    fn a_body_in_sql_is_one_statement() {
        let sql = "CREATE FUNCTION public.f() RETURNS integer\n    LANGUAGE sql\n    BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 \
                   END;\n SELECT 2;\nEND;\n\n\nALTER FUNCTION public.f() OWNER TO o;";
        let found = statements(sql);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].starts_with("ALTER"));
    }

    #[test]
    fn statements_end_where_they_end() {
        for (sql, count) in [
            ("a; b;", 2),
            ("a ';' b;", 1),
            ("a \";\" b; c", 2),
            ("/* ; /* ; */ ; */ a;", 1),
            ("a -- ;\n;", 1),
            ("a $$ ; $$ $t$ ; $$ ; $t$;", 1),
            ("a E'\\';' ; b;", 2),
            ("a e'x''\\'';b;", 2),
            ("a U&'\\' ; b;", 2),
            ("a x$1; b$2$c; d;", 3),
            (";;", 0),
            ("", 0),
        ] {
            assert_eq!(statements(sql).len(), count, "{sql}: {:?}", statements(sql));
        }
    }

    #[test]
    fn words_keep_their_quotes_apart() {
        let found = words("COMMENT ON TABLE s.\"a \"\"b\" IS E'it\\'s' $q$;$q$;");
        assert_eq!(found[3], Word::Bare("s".into()));
        assert_eq!(found[5], Word::Quoted("a \"b".into()));
        assert!(found.last().is_some_and(|word| word.is(";")));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let pieces = ["'", "\"", "$", "$$", "$a$", "--", "/*", "*/", ";", "\\", "E'", "\n", "x", "é", " ", "-- Name: "];
        let mut seed = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push_str(pieces[(seed >> 33) as usize % pieces.len()]);
            }
            split(text.as_bytes());
            statements(&text);
            words(&text);
        }
    }
}
