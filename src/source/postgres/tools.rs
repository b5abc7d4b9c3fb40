//! `pg_dump` and `pg_dumpall`: found, started without a secret in sight, watched to their end.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::client::Halt;
use super::error::PostgresError;
use super::settings::{Host, Settings, SslMode};
use crate::progress::Cancelled;
use crate::source::command;

/// What is kept of a tool's last words.
const STDERR_BYTES_KEPT: usize = 16 << 10;
const STDERR_LINES_SHOWN: usize = 12;

/// Where the authorities that a system trusts lie: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The folder with the tools of one version.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
    /// As the tool says it, e.g. `15.14`.
    pub version: String,
}

/// Where tools may lie.
#[derive(Debug, Clone)]
pub struct ToolSearch {
    /// The folders of `PATH`, in order.
    pub path: Vec<PathBuf>,
    /// Folders that hold one folder a version, with the tools in its `bin`; a prefix of the name may follow the last `/`.
    pub versioned: Vec<(PathBuf, String)>,
}

impl ToolSearch {
    /// `path` as in the variable of that name, and where Debian and Red Hat keep the tools.
    pub fn new(path: Option<&str>) -> ToolSearch {
        ToolSearch {
            path: path.unwrap_or("/usr/local/bin:/usr/bin:/bin").split(':').map(PathBuf::from).collect(),
            versioned: vec![
                (PathBuf::from("/usr/lib/postgresql"), String::new()),
                (PathBuf::from("/usr"), "pgsql-".to_owned()),
            ],
        }
    }

    /// Finds the tools for a server of version `server` (`server_version_num`).
    ///
    /// An older pg_dump refuses a newer server. Of those that can, the oldest is taken: its text suits the server best.
    pub fn find(&self, server: u32) -> Result<Tools, PostgresError> {
        let wanted = server / 10_000;
        let mut folders = self.path.clone();
        for (parent, prefix) in &self.versioned {
            let Ok(entries) = fs::read_dir(parent) else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(prefix.as_str()) {
                    folders.push(entry.path().join("bin"));
                }
            }
        }
        let mut seen = Vec::new();
        let mut best: Option<(u32, Tools)> = None;
        for folder in folders {
            let Some(version) = version_of(&folder.join("pg_dump")) else { continue };
            let Some(major) = major_of(&version) else { continue };
            seen.push(format!("{} is {version}", folder.join("pg_dump").display()));
            if major >= wanted && best.as_ref().is_none_or(|(other, _)| major < *other) {
                best = Some((major, Tools { folder, version }));
            }
        }
        best.map(|(_, tools)| tools).ok_or_else(|| {
            let found = if seen.is_empty() { "none was found".to_owned() } else { format!("found: {}", seen.join(", ")) };
            let path: Vec<String> = self.path.iter().map(|folder| folder.display().to_string()).collect();
            let versioned: Vec<String> =
                self.versioned.iter().map(|(parent, prefix)| format!("{}/{prefix}*/bin", parent.display())).collect();
            PostgresError::source(format!(
                "the server is PostgreSQL {wanted} and needs pg_dump {wanted} or newer; {found}; looked in PATH ({}) and {}; \
                 install it, on Debian with: apt-get install postgresql-client-{wanted}",
                path.join(":"),
                versioned.join(", "),
            ))
        })
    }
}

impl Tools {
    /// Runs `pg_dump` on one database and hands its lines, with their ends, to `line`.
    pub fn pg_dump(
        &self,
        settings: &Settings,
        database: &str,
        arguments: &[String],
        halt: &Halt,
        line: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), PostgresError> {
        self.run("pg_dump", settings, database, arguments, halt, line)
    }

    /// Runs `pg_dumpall`, which begins at `database`.
    pub fn pg_dumpall(
        &self,
        settings: &Settings,
        database: &str,
        arguments: &[String],
        halt: &Halt,
        line: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), PostgresError> {
        let mut all = vec!["--database".to_owned(), database.to_owned()];
        all.extend_from_slice(arguments);
        self.run("pg_dumpall", settings, database, &all, halt, line)
    }

    fn run(
        &self,
        tool: &str,
        settings: &Settings,
        database: &str,
        arguments: &[String],
        halt: &Halt,
        line: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), PostgresError> {
        let program = self.folder.join(tool);
        let secret = password_file(settings)?;
        let mut child = command(&program);
        child
            .arg("--no-password")
            .args(arguments)
            .env_clear()
            .envs(environment(settings, database, secret.as_ref()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let failed = |outcome: String, stderr: String| PostgresError::Tool {
            tool: program.display().to_string(),
            outcome,
            stderr,
        };
        let mut child = child.spawn().map_err(|e| failed(format!("does not start: {e}"), String::new()))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let ended = AtomicBool::new(false);
        let (result, status, last_words) = thread::scope(|scope| {
            let words = scope.spawn(move || last_of(stderr));
            // Reading blocks while the tool works in silence, so somebody else ends it when it is time to stop.
            let pid = rustix::process::Pid::from_child(&child);
            let ended = &ended;
            scope.spawn(move || {
                while !ended.load(Relaxed) {
                    if halt.is_set() {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                        return;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let result = each_line(BufReader::with_capacity(128 << 10, stdout), line);
            if result.is_err() {
                let _ = child.kill();
            }
            let status = wait(&mut child, ended);
            (result, status, words.join().unwrap_or_default())
        });
        if halt.is_set() {
            return Err(PostgresError::Cancelled(Cancelled));
        }
        result.map_err(|e| PostgresError::items(format!("the output of {tool} could not be stored"), e))?;
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(outcome(status), last_words)),
            Err(e) => Err(failed(format!("cannot be waited for: {e}"), last_words)),
        }
    }
}

fn wait(child: &mut Child, ended: &AtomicBool) -> io::Result<ExitStatus> {
    let status = child.wait();
    ended.store(true, Relaxed);
    status
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn each_line(mut from: impl BufRead, line: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = Vec::new();
    while from.read_until(b'\n', &mut buffer)? > 0 {
        line(&buffer)?;
        buffer.clear();
    }
    Ok(())
}

/// Drains `from` and returns its last lines.
fn last_of(mut from: impl Read) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut piece = [0u8; 4096];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        kept.extend_from_slice(&piece[..n]);
        if kept.len() > 2 * STDERR_BYTES_KEPT {
            kept.drain(..kept.len() - STDERR_BYTES_KEPT);
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(STDERR_LINES_SHOWN)..].join("\n")
}

/// The whole environment of a tool: nothing of ours that is not named here, and no secret.
fn environment(
    settings: &Settings,
    database: &str,
    secret: Option<&NamedTempFile>,
) -> Vec<(&'static str, std::ffi::OsString)> {
    let host = match &settings.host {
        Host::Name(name) => name.into(),
        Host::Socket(folder) => folder.clone().into_os_string(),
    };
    let mut all = vec![
        ("PGHOST", host),
        ("PGPORT", settings.port.to_string().into()),
        ("PGUSER", settings.user.clone().into()),
        ("PGDATABASE", database.into()),
        ("PGSSLMODE", settings.ssl_mode.as_str().into()),
        ("PGCONNECT_TIMEOUT", settings.connect_timeout.as_secs().max(2).to_string().into()),
        // A dump must come out the same whatever the language and the time zone of the host.
        ("LC_ALL", "C".into()),
        ("PGTZ", "UTC".into()),
        ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
    ];
    if let Some(file) = root_certificates(settings) {
        all.push(("PGSSLROOTCERT", file.into()));
    }
    if let Some(secret) = secret {
        all.push(("PGPASSFILE", secret.path().into()));
    }
    all
}

/// The file of authorities that libpq is to trust. It does not look for the system's by itself, and before version 16 not
/// even if told to; we do, so it is told where they are.
fn root_certificates(settings: &Settings) -> Option<PathBuf> {
    let named = settings.ssl_root_cert.clone();
    let verifies = matches!(settings.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull);
    if !verifies || named.as_ref().is_some_and(|file| file.as_os_str() != "system") {
        return named;
    }
    let set = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    set.into_iter().chain(SYSTEM_ROOTS.iter().map(PathBuf::from)).find(|file| file.exists()).or(named)
}

/// Writes the password where only this user can read it; the file goes when the value is dropped.
fn password_file(settings: &Settings) -> Result<Option<NamedTempFile>, PostgresError> {
    let Some(password) = &settings.password else { return Ok(None) };
    let password = password.reveal();
    if password.contains(['\n', '\r', '\0']) {
        return Err(PostgresError::source(
            "the password holds a line break, which a password file cannot hold; give the role another one",
        ));
    }
    let written = tempfile::Builder::new().prefix("vault-").tempfile().and_then(|mut file| {
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        let line = zeroize::Zeroizing::new(format!("*:*:*:*:{escaped}\n"));
        file.write_all(line.as_bytes())?;
        file.flush()?;
        Ok(file)
    });
    written.map(Some).map_err(|e| PostgresError::items("no temporary password file could be written", e))
}

/// What `pg_dump --version` says, as `15.14`.
fn version_of(program: &Path) -> Option<String> {
    if !program.is_file() {
        return None;
    }
    let output = command(program).arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)
    let version = text.strip_prefix("pg_dump (PostgreSQL) ")?.split_whitespace().next()?;
    Some(version.to_owned())
}

fn major_of(version: &str) -> Option<u32> {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(parent: &Path, name: &str, says: &str) -> PathBuf {
        let bin = parent.join(name).join("bin");
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("pg_dump");
        fs::write(&program, format!("#!/bin/sh\necho 'pg_dump (PostgreSQL) {says}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        bin
    }

    #[test]
    fn the_oldest_tool_that_can_read_the_server_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let old = fake(folder.path(), "13", "13.4");
        fake(folder.path(), "16", "16.2 (Debian 16.2-1)");
        fake(folder.path(), "18", "18beta1");
        let search = ToolSearch { path: vec![old], versioned: vec![(folder.path().to_owned(), String::new())] };
        assert_eq!(search.find(130_001).unwrap().version, "13.4");
        assert_eq!(search.find(150_020).unwrap().version, "16.2");
        assert_eq!(search.find(180_000).unwrap().version, "18beta1");
        let error = search.find(190_000).unwrap_err().to_string();
        assert!(error.contains("needs pg_dump 19 or newer") && error.contains("13.4"), "{error}");
        assert!(error.contains(&folder.path().display().to_string()), "says where it looked: {error}");
    }

    #[test]
    fn stderr_is_cut_to_its_last_lines() {
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        let last = last_of(text.as_bytes());
        assert!(last.ends_with("line 99999") && last.lines().count() == STDERR_LINES_SHOWN, "{last}");
    }
}
