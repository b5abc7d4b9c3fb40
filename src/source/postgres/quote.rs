//! Names and texts as PostgreSQL's SQL writes them.

/// Writes a name so that it stands for itself in SQL. Always quoted, so no list of keywords is needed.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Writes `schema.name`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// Writes a text literal that means the same whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// Writes `schema.name` for people: bare, with quotes only where a name has unusual characters.
pub fn display(schema: &str, name: &str) -> String {
    format!("{}.{}", plain_or_quoted(schema), plain_or_quoted(name))
}

fn plain_or_quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_' || !c.is_ascii())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '$' || !c.is_ascii());
    if plain {
        name.to_owned()
    } else {
        ident(&name.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"))
    }
}

/// Decodes a field of COPY's text format; `None` is NULL. Errors are `Err(())`: a lone backslash at the end or bytes that
/// are no UTF-8.
pub fn copy_field(field: &[u8]) -> Result<Option<String>, ()> {
    if field == b"\\N" {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next().ok_or(())? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            &other => other,
        });
    }
    String::from_utf8(out).map(Some).map_err(|_| ())
}

/// Matches a name against a pattern of literal characters, `*` (any run) and `?` (any one character).
pub fn glob(pattern: &str, name: &str) -> bool {
    let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut pi, mut ni) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while ni < n.len() {
        if pi < p.len() && p[pi] == '*' {
            star = Some((pi, ni));
            pi += 1;
        } else if pi < p.len() && (p[pi] == '?' || p[pi] == n[ni]) {
            pi += 1;
            ni += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            pi = at + 1;
            ni = from + 1;
        } else {
            return false;
        }
    }
    p[pi..].iter().all(|&c| c == '*')
}

/// Matches a table against `schema.table`, or against `table` in any schema where the pattern has no dot.
///
/// A whole name may also be given exactly, quoted as in SQL: `"My Schema"."Orders"`.
pub fn table_matches(pattern: &str, schema: &str, name: &str) -> bool {
    if pattern.contains('"') {
        return pattern == qualified(schema, name) || pattern == display(schema, name);
    }
    glob(pattern, &format!("{schema}.{name}")) || (!pattern.contains('.') && glob(pattern, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_cannot_leave_their_quotes() {
        assert_eq!(ident("a\"; drop"), "\"a\"\"; drop\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(display("public", "orders"), "public.orders");
        assert_eq!(display("public", "Or\nders"), "public.\"Or\\nders\"");
    }

    #[test]
    fn copy_fields_decode() {
        assert_eq!(copy_field(b"\\N"), Ok(None));
        assert_eq!(copy_field(b"a\\tb\\\\c\\n"), Ok(Some("a\tb\\c\n".into())));
        assert_eq!(copy_field(b"a\\"), Err(()));
        assert_eq!(copy_field(b"\xff"), Err(()));
    }

    #[test]
    fn patterns_match_as_people_expect() {
        for (pattern, hit) in [
            ("public.orders", true),
            ("orders", true),
            ("public.*", true),
            ("*.ord?rs", true),
            ("*", true),
            ("public.order", false),
            ("other.*", false),
            ("\"public\".\"orders\"", true),
            ("**s", true),
            ("", false),
        ] {
            assert_eq!(table_matches(pattern, "public", "orders"), hit, "{pattern}");
        }
    }
}
