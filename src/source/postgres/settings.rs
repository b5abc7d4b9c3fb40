//! How to reach a server: what a DSN, libpq's variables and files, and the `POSTGRES_*` variables say.
//!
//! Order: the DSN, then `PG*`, then the service file, then `POSTGRES_*`, then defaults; the password last of all from
//! `PGPASSFILE` or `~/.pgpass`. The environment comes in as a function, so that nothing here reads it by itself.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::error::PostgresError;
use super::stream::default_socket_folder;

/// Where to connect, as whom, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub password: Option<Password>,
    /// The database that was named, if one was.
    pub database: Option<String>,
    pub ssl_mode: SslMode,
    /// File of root certificates; `system` for the system's own.
    pub ssl_root_cert: Option<PathBuf>,
    pub connect_timeout: Duration,
}

/// A server's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Name or address, over TCP.
    Name(String),
    /// Folder of the Unix socket.
    Socket(PathBuf),
}

/// libpq's sslmode; `allow` is taken for `prefer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A password; wiped when dropped, never printed.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

/// A connection string, and whether other users of the machine may have seen it.
#[derive(Clone, Copy)]
pub enum Dsn<'a> {
    /// From the command line: must not hold a password.
    Argument(&'a str),
    /// From the environment or a file.
    Hidden(&'a str),
}

impl Password {
    pub fn new(text: impl Into<String>) -> Password {
        Password(Zeroizing::new(text.into()))
    }

    /// The password itself, for authentication and for a child's password file.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SslMode {
    /// libpq's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }

    fn parse(word: &str) -> Result<SslMode, PostgresError> {
        Ok(match word {
            "disable" => SslMode::Disable,
            "allow" | "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            other => {
                return Err(PostgresError::Usage(format!(
                    "sslmode {other:?} is none of disable, prefer, require, verify-ca, verify-full"
                )));
            }
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Socket(folder) => write!(f, "{}", folder.display()),
        }
    }
}

impl Settings {
    /// Settles everything from a DSN, if there is one, and the environment that `lookup` shows.
    pub fn resolve(dsn: Option<Dsn<'_>>, lookup: impl Fn(&str) -> Option<String>) -> Result<Settings, PostgresError> {
        let env = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut given = match dsn {
            Some(Dsn::Argument(text)) => {
                let given = parse_dsn(text)?;
                if given.contains_key("password") {
                    return Err(PostgresError::Usage(
                        "a password on the command line can be read by every user of this machine; \
                         leave it out and set PGPASSWORD, or write it to ~/.pgpass, or name a PGPASSFILE or PGSERVICE"
                            .into(),
                    ));
                }
                given
            }
            Some(Dsn::Hidden(text)) => parse_dsn(text)?,
            None => BTreeMap::new(),
        };
        for (key, variable) in LIBPQ_VARIABLES {
            if let Some(value) = env(variable) {
                given.entry((*key).to_owned()).or_insert(value);
            }
        }
        if let Some(service) = given.get("service").cloned() {
            for (key, value) in read_service(&service, &env)? {
                given.entry(key).or_insert(value);
            }
        }
        for (key, variable) in POSTGRES_VARIABLES {
            if let Some(value) = env(variable) {
                given.entry((*key).to_owned()).or_insert(value);
            }
        }
        Settings::from_keywords(given, &env)
    }

    /// The same from the environment alone.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Settings, PostgresError> {
        Settings::resolve(None, lookup)
    }

    fn from_keywords(
        mut given: BTreeMap<String, String>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Settings, PostgresError> {
        let port = match given.remove("port") {
            None => 5432,
            Some(text) => text.parse().ok().filter(|&port| port != 0).ok_or_else(|| {
                PostgresError::Usage(format!(
                    "port {text:?} is no number from 1 to 65535; several hosts are not supported"
                ))
            })?,
        };
        let host = match given.remove("hostaddr").or_else(|| given.remove("host")) {
            None => default_socket_folder(port).map_or_else(|| Host::Name("localhost".into()), Host::Socket),
            Some(host) if host.contains(',') => {
                return Err(PostgresError::Usage(format!("{host:?} names several hosts; name the one to use")));
            }
            Some(host) if host.starts_with('/') => Host::Socket(host.into()),
            Some(host) => Host::Name(host),
        };
        let user = match given.remove("user").or_else(|| env("USER")).or_else(|| env("LOGNAME")) {
            Some(user) => user,
            None => own_name().ok_or_else(|| PostgresError::Usage("no user given; set PGUSER".into()))?,
        };
        let ssl_mode = given.remove("sslmode").map_or(Ok(SslMode::Prefer), |word| SslMode::parse(&word))?;
        let ssl_root_cert = given.remove("sslrootcert").map(PathBuf::from).or_else(|| {
            let own = Path::new(&env("HOME")?).join(".postgresql/root.crt");
            own.exists().then_some(own)
        });
        let connect_timeout = match given.remove("connect_timeout") {
            None => 15,
            Some(text) => match text.trim().parse::<u64>() {
                // libpq's word for "for ever"; a day is near enough.
                Ok(0) => 86_400,
                Ok(seconds) => seconds.min(86_400),
                Err(_) => {
                    return Err(PostgresError::Usage(format!("connect_timeout {text:?} is no number of seconds")));
                }
            },
        };
        let database = given.remove("dbname");
        let mut settings = Settings {
            host,
            port,
            user,
            password: given.remove("password").map(Password::new),
            database,
            ssl_mode,
            ssl_root_cert,
            connect_timeout: Duration::from_secs(connect_timeout),
        };
        if settings.password.is_none() {
            let file = given.remove("passfile").map(PathBuf::from);
            let file = file.or_else(|| Some(Path::new(&env("HOME")?).join(".pgpass")));
            settings.password = file.and_then(|file| settings.password_from(&file));
        }
        Ok(settings)
    }

    /// `host:port`, for messages.
    pub fn at(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Looks a password up in a file of `host:port:database:user:password` lines, kept from others' eyes.
    fn password_from(&self, file: &Path) -> Option<Password> {
        let metadata = fs::metadata(file).ok()?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o077 != 0 {
            return None;
        }
        let text = Zeroizing::new(fs::read_to_string(file).ok()?);
        let host = match &self.host {
            Host::Socket(_) => "localhost".to_owned(),
            Host::Name(name) => name.clone(),
        };
        let wanted = [host, self.port.to_string(), self.database.clone().unwrap_or_default(), self.user.clone()];
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let fields = split_pgpass(line);
            let fits = fields.len() >= 5
                && wanted.iter().enumerate().all(|(at, want)| {
                    // Several databases are read with one password: without a name any line's database does.
                    fields[at] == "*" || fields[at] == *want || (at == 2 && want.is_empty())
                });
            if fits {
                return Some(Password::new(fields[4].clone()));
            }
        }
        None
    }
}

const LIBPQ_VARIABLES: &[(&str, &str)] = &[
    ("service", "PGSERVICE"),
    ("hostaddr", "PGHOSTADDR"),
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("dbname", "PGDATABASE"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
];

const POSTGRES_VARIABLES: &[(&str, &str)] = &[
    ("host", "POSTGRES_HOST"),
    ("port", "POSTGRES_PORT"),
    ("user", "POSTGRES_USER"),
    ("password", "POSTGRES_PASSWORD"),
    ("dbname", "POSTGRES_DB"),
];

/// Keywords of a DSN that change nothing here.
const IGNORED: &[&str] = &[
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "options",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "gssencmode",
    "channel_binding",
    "target_session_attrs",
];

/// Reads `postgres://user:password@host:port/database?key=value`, or `key=value key='another value'`.
fn parse_dsn(text: &str) -> Result<BTreeMap<String, String>, PostgresError> {
    let mut given = BTreeMap::new();
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    match rest {
        Some(rest) => parse_url(rest, &mut given)?,
        None if text.contains('=') => parse_pairs(text, &mut given)?,
        None => {
            return Err(PostgresError::Usage(
                "not a PostgreSQL connection; write postgres://user@host:port/database".into(),
            ));
        }
    }
    let known = |key: &str| LIBPQ_VARIABLES.iter().any(|(known, _)| *known == key) || IGNORED.contains(&key);
    if let Some(unknown) = given.keys().find(|key| !known(key)) {
        return Err(PostgresError::Usage(format!("connection parameter {unknown:?} is not known")));
    }
    given.retain(|_, value| !value.is_empty());
    Ok(given)
}

fn parse_url(rest: &str, given: &mut BTreeMap<String, String>) -> Result<(), PostgresError> {
    let (main, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = main.split_once('/').unwrap_or((main, ""));
    let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = match place.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((v6, port)) => (v6, port.strip_prefix(':').unwrap_or(port)),
        None => place.rsplit_once(':').unwrap_or((place, "")),
    };
    for (key, value) in [("user", user), ("password", password), ("host", host), ("port", port), ("dbname", database)] {
        if !value.is_empty() {
            given.insert(key.into(), percent_decoded(value)?);
        }
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| PostgresError::Usage("a connection parameter after ? has no value".into()))?;
        let key = if key == "ssl" && value == "true" { "sslmode" } else { key };
        let value = if key == "sslmode" && value == "true" { "require" } else { value };
        given.insert(percent_decoded(key)?, percent_decoded(value)?);
    }
    Ok(())
}

fn parse_pairs(text: &str, given: &mut BTreeMap<String, String>) -> Result<(), PostgresError> {
    let broken = || PostgresError::Usage("the connection string does not read as key=value pairs".into());
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(());
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|&c| c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') || key.is_empty() {
            return Err(broken());
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                None if quoted => return Err(broken()),
                None => break,
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some('\\') => value.push(chars.next().ok_or_else(broken)?),
                Some(c) => value.push(c),
            }
        }
        given.insert(key, value);
    }
}

fn percent_decoded(text: &str) -> Result<String, PostgresError> {
    // The text may be a password, so no message repeats it.
    let broken = || PostgresError::Usage("the connection string has a % that is not followed by two hex digits".into());
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok()).ok_or_else(broken)?;
            out.push(u8::from_str_radix(hex, 16).map_err(|_| broken())?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).map_err(|_| broken())
}

/// The settings of one section of the service file: `PGSERVICEFILE`, `~/.pg_service.conf`, then `PGSYSCONFDIR`'s.
fn read_service(
    service: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, PostgresError> {
    let mut files = Vec::new();
    match env("PGSERVICEFILE") {
        Some(file) => files.push(PathBuf::from(file)),
        None => files.extend(env("HOME").map(|home| Path::new(&home).join(".pg_service.conf"))),
    }
    let system = env("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into());
    files.push(Path::new(&system).join("pg_service.conf"));
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else { continue };
        let text = Zeroizing::new(text);
        let mut inside = false;
        let mut found = None;
        for line in text.lines().map(str::trim) {
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                inside = name == service;
                if inside {
                    found.get_or_insert_with(BTreeMap::new);
                }
            } else if let (true, Some(map), Some((key, value))) = (inside, found.as_mut(), line.split_once('=')) {
                map.entry(key.trim().to_owned()).or_insert_with(|| value.trim().to_owned());
            }
        }
        if let Some(map) = found {
            return Ok(map);
        }
    }
    let places: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(PostgresError::Usage(format!("service {service:?} stands in none of {}", places.join(", "))))
}

fn split_pgpass(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => fields.last_mut().expect("starts with one").extend(chars.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => fields.last_mut().expect("starts with one").push(c),
        }
    }
    fields
}

/// The name of the user this process runs as, from the passwd file.
fn own_name() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(dsn: Option<&str>, env: &[(&str, &str)]) -> Result<Settings, PostgresError> {
        let find = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Settings::resolve(dsn.map(Dsn::Hidden), find)
    }

    #[test]
    fn a_dsn_says_everything() {
        let s =
            resolve(Some("postgres://us%65r:p%40ss@db.example:6000/shop?sslmode=verify-full&connect_timeout=3"), &[])
                .unwrap();
        assert_eq!((s.at().as_str(), s.user.as_str()), ("db.example:6000", "user"));
        assert_eq!(s.password.as_ref().map(Password::reveal), Some("p@ss"));
        assert_eq!(s.database.as_deref(), Some("shop"));
        assert_eq!((s.ssl_mode, s.connect_timeout), (SslMode::VerifyFull, Duration::from_secs(3)));
        assert!(!format!("{s:?}").contains("p@ss"), "debug output must not show the password");

        let s = resolve(Some("host=/run/pg port=7 user='a b' password=it\\'s dbname=x"), &[]).unwrap();
        assert_eq!((&s.host, s.port, s.user.as_str()), (&Host::Socket("/run/pg".into()), 7, "a b"));
        assert_eq!(s.password.unwrap().reveal(), "it's");
        assert_eq!(resolve(Some("postgres://[::1]:99/"), &[]).unwrap().at(), "::1:99");
    }

    #[test]
    fn a_password_on_the_command_line_is_refused_without_repeating_it() {
        for dsn in ["postgres://u:sesame@h/d", "host=h password=sesame", "postgres://u@h/d?password=sesame"] {
            let error = Settings::resolve(Some(Dsn::Argument(dsn)), |_| None).unwrap_err();
            assert!(matches!(error, PostgresError::Usage(_)), "{error}");
            assert!(error.to_string().contains("PGPASSWORD") && !error.to_string().contains("sesame"), "{error}");
        }
        assert!(Settings::resolve(Some(Dsn::Argument("postgres://u@h/d")), |_| None).is_ok());
    }

    #[test]
    fn the_nearer_setting_wins() {
        let env = [("PGHOST", "pg"), ("POSTGRES_HOST", "compose"), ("POSTGRES_USER", "app"), ("POSTGRES_PORT", "1")];
        let s = resolve(Some("postgres://:2/x"), &env).unwrap();
        assert_eq!((s.at().as_str(), s.user.as_str(), s.database.as_deref()), ("pg:2", "app", Some("x")));
        let s = resolve(None, &env).unwrap();
        assert_eq!(s.at(), "pg:1");
    }

    #[test]
    fn what_does_not_read_is_a_usage_error() {
        for dsn in [
            "shop",
            "postgres://h:port/",
            "postgres://a,b/",
            "postgres://h/?sslmode=maybe",
            "postgres://h/?x=1",
            "host=h password='x",
            "postgres://%zz@h/",
            "postgres://h:0/",
            "=x",
        ] {
            let error = resolve(Some(dsn), &[]).expect_err(dsn);
            assert!(matches!(error, PostgresError::Usage(_)), "{dsn}: {error}");
        }
    }

    #[test]
    fn passwords_come_from_files_that_others_cannot_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pass");
        fs::write(&file, "# comment\nother:*:*:*:no\ndb:5432:*:u\\:x:a\\:b\\\\c\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let path = file.to_str().unwrap();
        let env = [("PGPASSFILE", path), ("PGHOST", "db"), ("PGUSER", "u:x")];
        let s = resolve(None, &env).unwrap();
        assert_eq!(s.password.as_ref().map(Password::reveal), Some("a:b\\c"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(resolve(None, &env).unwrap().password.is_none(), "a file that others can read is not used");
    }

    #[test]
    fn services_are_found_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("services");
        fs::write(&file, "[other]\nhost=no\n[shop]\nhost = db\nport=77\n").unwrap();
        let env = [("PGSERVICEFILE", file.to_str().unwrap()), ("PGSERVICE", "shop"), ("PGUSER", "u")];
        assert_eq!(resolve(None, &env).unwrap().at(), "db:77");
        let error = resolve(Some("service=nope"), &env).unwrap_err().to_string();
        assert!(error.contains("nope") && error.contains("services"), "{error}");
    }
}
