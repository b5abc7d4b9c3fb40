//! Patterns that choose files by name.
//!
//! `*` stands for any run of bytes without `/`, `?` for one such byte, `[a-z]` and `[!a-z]` for one of a set, `**` as a whole
//! component for any number of components, `\` for the next byte as it stands. A pattern without `/` is matched against the
//! last component at any depth, one with `/` against the whole path. What lies below a matched folder is matched.

/// A list of patterns.
#[derive(Debug, Clone, Default)]
pub struct Patterns(Vec<Pattern>);

#[derive(Debug, Clone)]
struct Pattern {
    /// Against the absolute path on this host, not the path in the snapshot.
    absolute: bool,
    components: Vec<Component>,
}

#[derive(Debug, Clone)]
enum Component {
    Any,
    Name(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Byte(u8),
    One,
    Run,
    Set { inverted: bool, ranges: Vec<(u8, u8)> },
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a pattern: {why}; write \\ before a character that is meant as it stands")]
pub struct PatternError {
    pub pattern: String,
    pub why: &'static str,
}

impl Patterns {
    /// Reads the patterns.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        patterns.iter().map(|pattern| Pattern::new(pattern.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them matches a file by its path in the snapshot (names as they are, not escaped), or one of the
    /// folders it lies in. `absolute` is where it lies on this host, if it does.
    pub fn matches(&self, path: &[u8], absolute: Option<&[u8]>) -> bool {
        self.0.iter().any(|pattern| {
            let path = if pattern.absolute { absolute } else { Some(path) };
            path.is_some_and(|path| pattern.matches(path.strip_prefix(b"/").unwrap_or(path)))
        })
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, PatternError> {
        let wrong = |why| PatternError { pattern: text.to_owned(), why };
        let absolute = text.starts_with('/');
        let trimmed = text.trim_matches('/');
        if trimmed.is_empty() {
            return Err(wrong("it names nothing"));
        }
        let mut components = trimmed.split('/').map(component).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        if components.len() == 1 && !absolute {
            components.insert(0, Component::Any);
        }
        Ok(Self { absolute, components })
    }

    /// Whether the pattern matches the path or a folder that it lies in.
    fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        // As for stars within a name: going back to the last `**` is enough, earlier ones never need to give way.
        let (mut at, mut name) = (0, 0);
        let mut back: Option<(usize, usize)> = None;
        loop {
            match self.components.get(at) {
                None => return true,
                Some(Component::Any) => {
                    at += 1;
                    back = Some((at, name));
                    // `a/**` is what lies below a, not a itself.
                    if at == self.components.len() {
                        return name < names.len();
                    }
                    continue;
                }
                Some(Component::Name(tokens)) if name < names.len() && name_matches(tokens, names[name]) => {
                    at += 1;
                    name += 1;
                    continue;
                }
                Some(Component::Name(_)) => {}
            }
            match &mut back {
                Some((after, tried)) if *tried < names.len() => {
                    *tried += 1;
                    (at, name) = (*after, *tried);
                }
                _ => return false,
            }
        }
    }
}

fn component(text: &str) -> Result<Component, &'static str> {
    if text == "**" {
        return Ok(Component::Any);
    }
    let mut tokens = Vec::new();
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        tokens.push(match byte {
            b'*' if tokens.last() == Some(&Token::Run) => continue,
            b'*' => Token::Run,
            b'?' => Token::One,
            b'\\' => Token::Byte(bytes.next().ok_or("it ends with a single \\")?),
            b'[' => {
                let inverted = bytes.next_if(|byte| matches!(byte, b'!' | b'^')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let unclosed = "a [ has no ] in the same component";
                    let mut first = bytes.next().ok_or(unclosed)?;
                    if first == b']' && !ranges.is_empty() {
                        break;
                    }
                    if first == b'\\' {
                        first = bytes.next().ok_or(unclosed)?;
                    }
                    let mut last = first;
                    if bytes.peek() == Some(&b'-') {
                        bytes.next();
                        match bytes.peek() {
                            None => return Err(unclosed),
                            // A dash before the end of the set is a dash.
                            Some(b']') => ranges.push((b'-', b'-')),
                            Some(_) => last = bytes.next().expect("it was just seen"),
                        }
                    }
                    if last < first {
                        return Err("a range in [] runs backwards");
                    }
                    ranges.push((first, last));
                }
                Token::Set { inverted, ranges }
            }
            byte => Token::Byte(byte),
        });
    }
    if tokens.is_empty() { Err("a component is empty") } else { Ok(Component::Name(tokens)) }
}

fn name_matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut at, mut byte) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while byte < name.len() || at < tokens.len() {
        if let Some(token) = tokens.get(at) {
            if *token == Token::Run {
                at += 1;
                back = Some((at, byte));
                continue;
            }
            if name.get(byte).is_some_and(|&byte| token.matches(byte)) {
                at += 1;
                byte += 1;
                continue;
            }
        }
        match &mut back {
            Some((after, tried)) if *tried < name.len() => {
                *tried += 1;
                (at, byte) = (*after, *tried);
            }
            _ => return false,
        }
    }
    true
}

impl Token {
    fn matches(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::One => true,
            Self::Set { inverted, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *inverted
            }
            Self::Run => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Patterns::new(&[pattern]).expect(pattern).matches(path.as_bytes(), Some(format!("/srv/{path}").as_bytes()))
    }

    #[test]
    fn patterns_match_names_paths_and_what_lies_below() {
        let yes = [
            ("*.log", "data/a.log"),
            ("*.log", "data/x.log/inside"),
            ("cache", "data/cache"),
            ("cache", "data/cache/deep/file"),
            ("data/*.log", "data/a.log"),
            ("data/**/tmp", "data/tmp"),
            ("data/**/tmp", "data/a/b/tmp/x"),
            ("data/**", "data/a"),
            ("**/b", "a/b"),
            ("data/*/c", "data/b/c/d"),
            ("data/cache/", "data/cache/x"),
            ("/srv/data", "data/x"),
            ("/srv/*/x", "data/x"),
            ("a?c", "data/abc"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]]x", "]x"),
            ("[a-]x", "-x"),
            (r"\*", "data/*"),
            ("a*b*c", "a--b-b-c"),
            ("*", "x"),
            ("**", "x"),
        ];
        for (pattern, path) in yes {
            assert!(matches(pattern, path), "{pattern:?} matches {path:?}");
        }
        let no = [
            ("*.log", "data/a.logs"),
            ("cache", "data/caches"),
            ("data/*.log", "data/sub/a.log"),
            ("data/*.log", "x/data/a.log"),
            ("data/**", "data"),
            ("/data", "data/x"),
            ("a?c", "data/ac"),
            ("[a-c]x", "dx"),
            ("[!a-c]x", "ax"),
            (r"\*", "data/x"),
            ("a*b*c", "a--b-b-"),
            ("a/b", "a"),
        ];
        for (pattern, path) in no {
            assert!(!matches(pattern, path), "{pattern:?} does not match {path:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for wrong in ["", "/", "a//b", "[", "[a", "[]", "[a-", "[z-a]", "a\\", "x/[ab/c]"] {
            Patterns::new(&[wrong]).expect_err(wrong);
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_decided_at_once() {
        let pattern = "*a".repeat(200) + "b";
        assert!(!matches(&pattern, &"a".repeat(4000)));
        let deep = "**/a/".repeat(100) + "b";
        assert!(!matches(&deep, &vec!["a"; 1000].join("/")));
    }
}
