//! What a vector is, and how it stands in its file (format-spec/vectors/README.md).

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

/// A run of bytes, as short as it can be said.
#[derive(Clone)]
pub enum Bytes {
    Hex(Vec<u8>),
    Text(String),
    Repeat(Vec<u8>, usize),
    /// Extended output of BLAKE3 of a text: bytes that look random and are the same everywhere.
    Noise(&'static str, usize),
    Parts(Vec<Bytes>),
}

impl Bytes {
    fn json(&self) -> Value {
        match self {
            Bytes::Hex(bytes) => HEXLOWER.encode(bytes).into(),
            Bytes::Text(text) => json!({ "text": text }),
            Bytes::Repeat(bytes, times) => json!({ "repeat": HEXLOWER.encode(bytes), "times": times }),
            Bytes::Noise(seed, length) => json!({ "noise": seed, "bytes": length }),
            Bytes::Parts(parts) => parts.iter().map(Bytes::json).collect(),
        }
    }
}

impl<T: AsRef<[u8]>> From<T> for Bytes {
    fn from(bytes: T) -> Self {
        Bytes::Hex(bytes.as_ref().to_vec())
    }
}

pub fn text(text: impl Into<String>) -> Bytes {
    Bytes::Text(text.into())
}

pub fn repeat(bytes: impl AsRef<[u8]>, times: usize) -> Bytes {
    Bytes::Repeat(bytes.as_ref().to_vec(), times)
}

pub fn noise(seed: &'static str, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Returns the bytes that stand in a file as `value`.
pub fn expand(value: &Value) -> Vec<u8> {
    let hex = |value: &Value| HEXLOWER.decode(value.as_str().expect("hex").as_bytes()).expect("hex");
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    match value {
        Value::String(_) => hex(value),
        Value::Array(parts) => parts.iter().flat_map(expand).collect(),
        _ if value["text"].is_string() => value["text"].as_str().expect("text").as_bytes().to_vec(),
        _ if value["repeat"].is_string() => hex(&value["repeat"]).repeat(number(&value["times"])),
        _ => {
            let mut out = vec![0; number(&value["bytes"])];
            let seed = value["noise"].as_str().expect("one of the four forms");
            blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
            out
        }
    }
}

/// How bytes stand among the facts: hex, or length and hash where that is shorter.
pub fn fact(bytes: &[u8]) -> Value {
    if bytes.len() <= 64 {
        HEXLOWER.encode(bytes).into()
    } else {
        format!("{} bytes, BLAKE3 {}", bytes.len(), blake3::hash(bytes).to_hex()).into()
    }
}

/// What every reader must come to.
#[derive(Clone)]
pub enum Expect {
    Ok(Value),
    Damaged,
    Unsupported,
    WrongKey,
}

/// One input and its outcome.
pub struct Case {
    pub name: &'static str,
    pub given: Map<String, Value>,
    pub expect: Expect,
}

/// The cases of one kind of object: a file.
pub struct Group {
    pub object: &'static str,
    pub page: &'static str,
    pub about: &'static str,
    pub given: Map<String, Value>,
    pub cases: Vec<Case>,
}

/// `given("bytes", ..).and("kind", ..)` and so on.
#[derive(Default, Clone)]
pub struct Given(pub Map<String, Value>);

impl Given {
    pub fn bytes(self, name: &str, bytes: impl Into<Bytes>) -> Self {
        self.value(name, bytes.into().json())
    }

    pub fn list(self, name: &str, list: &[Vec<u8>]) -> Self {
        self.value(name, list.iter().map(|bytes| Bytes::from(bytes).json()).collect::<Value>())
    }

    pub fn value(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }
}

/// Short for a case whose only input is `bytes`.
pub fn bytes(bytes: impl Into<Bytes>) -> Given {
    Given::default().bytes("bytes", bytes)
}

impl Group {
    pub fn new(object: &'static str, page: &'static str, about: &'static str, given: Given) -> Self {
        Self { object, page, about, given: given.0, cases: Vec::new() }
    }

    pub fn ok(&mut self, name: &'static str, given: Given, facts: Value) {
        self.cases.push(Case { name, given: given.0, expect: Expect::Ok(facts) });
    }

    pub fn damaged(&mut self, name: &'static str, given: Given) {
        self.cases.push(Case { name, given: given.0, expect: Expect::Damaged });
    }

    pub fn unsupported(&mut self, name: &'static str, given: Given) {
        self.cases.push(Case { name, given: given.0, expect: Expect::Unsupported });
    }

    pub fn wrong_key(&mut self, name: &'static str, given: Given) {
        self.cases.push(Case { name, given: given.0, expect: Expect::WrongKey });
    }

    /// The file's text.
    pub fn json(&self) -> Value {
        let cases: Vec<_> = self
            .cases
            .iter()
            .map(|case| {
                let mut out = Map::new();
                out.insert("name".into(), case.name.into());
                let expect = match &case.expect {
                    Expect::Ok(_) => "ok",
                    Expect::Damaged => "damaged",
                    Expect::Unsupported => "unsupported",
                    Expect::WrongKey => "wrong-key",
                };
                out.insert("expect".into(), expect.into());
                out.insert("given".into(), case.given.clone().into());
                if let Expect::Ok(facts) = &case.expect {
                    out.insert("facts".into(), facts.clone());
                }
                Value::Object(out)
            })
            .collect();
        json!({ "object": self.object, "page": self.page, "about": self.about, "given": self.given, "cases": cases })
    }
}
