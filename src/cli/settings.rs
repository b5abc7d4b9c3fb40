//! Settings: flag, environment, `vault.toml`, default, in this order.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::{SignedDuration, SpanRelativeTo};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::exit::{CliError, Exit, usage};
use crate::backend::limit::Rates;
use crate::progress::Cancelled;
use crate::repo::Places;
use crate::seal::slot::Secret;
use crate::source::command;

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Where the repository is: a folder, or s3://bucket/prefix [env: VAULT_REPO]
    #[arg(long, global = true, value_name = "URL")]
    pub repo: Option<String>,
    /// Read the password from this file (its last newline is not part of it) [env: VAULT_PASSWORD_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Unlock with a key file of 32 bytes instead of a password [env: VAULT_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "password_file")]
    pub key_file: Option<PathBuf>,
    /// Settings file [env: VAULT_CONFIG; default: vault.toml in the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object a line on stdout, for scripts
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but the result
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No progress bar
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Send no more than this to the store a second, e.g. 10MB or 512KiB
    #[arg(long, global = true, value_name = "RATE", value_parser = rate)]
    pub limit_upload: Option<NonZeroU64>,
    /// Fetch no more than this from the store a second
    #[arg(long, global = true, value_name = "RATE", value_parser = rate)]
    pub limit_download: Option<NonZeroU64>,
}

impl Global {
    /// The bandwidth that may be used.
    pub fn rates(&self) -> Rates {
        Rates { up: self.limit_upload, down: self.limit_download }
    }
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let bytes = text.trim_end_matches("/s").parse::<bytesize::ByteSize>()?;
    NonZeroU64::new(bytes.as_u64()).ok_or_else(|| "a limit of nothing lets nothing through".to_owned())
}

/// A length of time: `0s`, `30m`, `23h`, `7d`.
pub fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = |detail: String| format!("{detail}; write a time as 30m, 23h or 7d");
    let span: jiff::Span = text.parse().map_err(|error: jiff::Error| wrong(error.to_string()))?;
    let time = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| wrong(error.to_string()))?;
    if time.is_negative() { Err(wrong("less than nothing".to_owned())) } else { Ok(time) }
}

/// A share: `5%` is 0.05.
pub fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a share from 0% to 100%");
    let percent: f64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err(wrong()) }
}

/// `vault.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    pub repo: Option<String>,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<String>,
    pub key_file: Option<PathBuf>,
    /// Name of this host in manifests.
    pub host: Option<String>,
}

/// Keeps keys and passwords out of core files, and other processes of this user out of our memory.
pub fn hide_memory() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Core).maximum;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Reads an environment variable; empty counts as unset.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn home() -> anyhow::Result<PathBuf> {
    env_path("HOME")
        .ok_or_else(|| usage("HOME is not set: set it, or say --repo and XDG_CACHE_HOME and XDG_STATE_HOME"))
}

fn user_folder(variable: &str, below_home: &str) -> anyhow::Result<PathBuf> {
    match env_path(variable).filter(|path| path.is_absolute()) {
        Some(path) => Ok(path.join("vault")),
        None => Ok(home()?.join(below_home).join("vault")),
    }
}

/// Where this installation keeps what is its own.
pub fn places() -> anyhow::Result<Places> {
    Ok(Places {
        cache: user_folder("XDG_CACHE_HOME", ".cache")?,
        state: user_folder("XDG_STATE_HOME", ".local/state")?,
    })
}

/// Reads the settings file. Only one that was asked for must exist.
pub fn load_file(global: &Global) -> anyhow::Result<File> {
    let asked = global.config.clone().or_else(|| env_path("VAULT_CONFIG"));
    let path = match &asked {
        Some(path) => path.clone(),
        None => match user_folder("XDG_CONFIG_HOME", ".config") {
            Ok(folder) => folder.join("vault.toml"),
            Err(_) => return Ok(File::default()),
        },
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| usage(format!("{}: {}", path.display(), error.to_string().trim_end()))),
        Err(error) if asked.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(usage(format!("settings file {}: {error}", path.display()))),
    }
}

/// The repository's URL.
pub fn repo_url(global: &Global, file: &File) -> anyhow::Result<String> {
    if let Some(url) = global.repo.clone().or_else(|| env("VAULT_REPO")).or_else(|| file.repo.clone()) {
        return Ok(url);
    }
    if let Some(bucket) = env("BACKUP_BUCKET") {
        return Ok(format!("s3://{bucket}"));
    }
    Ok(user_folder("XDG_DATA_HOME", ".local/share")?.join("repository").to_string_lossy().into_owned())
}

/// The secret that was set, if any was.
pub fn secret(global: &Global, file: &File) -> anyhow::Result<Option<Secret>> {
    if let Some(path) = &global.password_file {
        return password_from_file(path).map(Some);
    }
    if let Some(path) = &global.key_file {
        return key_from_file(path).map(Some);
    }
    if let Some(password) = env("VAULT_PASSWORD") {
        return Ok(Some(password_of(password.into_bytes())));
    }
    if let Some(path) = env_path("VAULT_PASSWORD_FILE") {
        return password_from_file(&path).map(Some);
    }
    if let Some(command) = env("VAULT_PASSWORD_COMMAND") {
        return password_from_command(&command).map(Some);
    }
    if let Some(path) = env_path("VAULT_KEY_FILE") {
        return key_from_file(&path).map(Some);
    }
    match file {
        File { password_file: Some(path), .. } => password_from_file(path).map(Some),
        File { password_command: Some(command), .. } => password_from_command(command).map(Some),
        File { key_file: Some(path), .. } => key_from_file(path).map(Some),
        _ => Ok(None),
    }
}

/// What to set when no secret was.
pub fn no_secret() -> anyhow::Error {
    CliError {
        exit: Exit::Usage,
        message: "no password: set VAULT_PASSWORD, VAULT_PASSWORD_FILE or VAULT_PASSWORD_COMMAND, or use --password-file or --key-file"
            .to_owned(),
    }
    .into()
}

fn password_of(mut bytes: Vec<u8>) -> Secret {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Secret::Password(Zeroizing::new(bytes))
}

/// Reads a password from a file.
pub fn password_from_file(path: &Path) -> anyhow::Result<Secret> {
    let bytes = std::fs::read(path).map_err(|error| usage(format!("password file {}: {error}", path.display())))?;
    match password_of(bytes) {
        Secret::Password(password) if password.is_empty() => {
            Err(usage(format!("password file {} is empty", path.display())))
        }
        secret => Ok(secret),
    }
}

/// Reads a key file: 32 bytes, or 64 hex digits. Others must not be able to read it.
pub fn key_from_file(path: &Path) -> anyhow::Result<Secret> {
    use std::os::unix::fs::PermissionsExt;
    let wrong = |detail: String| usage(format!("key file {}: {detail}", path.display()));
    let mode = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong(format!("others may read it (mode {:o}): chmod 600 it", mode & 0o777)));
    }
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| wrong(error.to_string()))?);
    let key = match <[u8; 32]>::try_from(bytes.as_slice()) {
        Ok(key) => Some(key),
        Err(_) => {
            data_encoding::HEXLOWER_PERMISSIVE.decode(bytes.trim_ascii()).ok().and_then(|key| key.try_into().ok())
        }
    };
    let key = key.ok_or_else(|| {
        wrong("is neither 32 bytes nor 64 hex digits: make one with `head -c 32 /dev/urandom`".to_owned())
    })?;
    Ok(Secret::KeyFile(Zeroizing::new(key)))
}

fn password_from_command(line: &str) -> anyhow::Result<Secret> {
    let output = command("/bin/sh")
        .args(["-c", line])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("the password command cannot be started")?;
    if !output.status.success() {
        return Err(usage(format!("the password command failed with {}", output.status)));
    }
    match password_of(output.stdout) {
        Secret::Password(password) if password.is_empty() => Err(usage("the password command printed nothing")),
        secret => Ok(secret),
    }
}

/// Where a new secret comes from, for the commands that set one.
#[derive(Debug, Clone, clap::Args)]
pub struct NewSecret {
    /// Read the new password from this file [env: VAULT_NEW_PASSWORD holds the password itself]
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    /// Take a key file of 32 bytes instead of a new password
    #[arg(long, value_name = "FILE", conflicts_with = "new_password_file")]
    new_key_file: Option<PathBuf>,
}

impl NewSecret {
    /// Reads it, or asks for it twice.
    pub fn get(&self) -> anyhow::Result<Secret> {
        if let Some(path) = &self.new_password_file {
            return password_from_file(path);
        }
        if let Some(path) = &self.new_key_file {
            return key_from_file(path);
        }
        if let Some(password) = env("VAULT_NEW_PASSWORD") {
            return Ok(password_of(password.into_bytes()));
        }
        ask_twice("New password: ", || {
            usage("no new password: set VAULT_NEW_PASSWORD, or use --new-password-file or --new-key-file")
        })
    }
}

/// Asks for the password of a new repository, or says what to set where there is no terminal.
pub fn ask_new_password() -> anyhow::Result<Secret> {
    ask_twice("New password for the repository: ", no_secret)
}

/// Asks for the password on the terminal, or says what to set where there is none.
pub fn ask_password() -> anyhow::Result<Secret> {
    ask("Password of the repository: ", no_secret)
}

fn ask(prompt: &str, no_terminal: impl Fn() -> anyhow::Error) -> anyhow::Result<Secret> {
    use std::io::IsTerminal;
    if !std::io::stderr().is_terminal() {
        return Err(no_terminal());
    }
    // The terminal itself is asked, as standard input may be a backup's data.
    let password = rpassword::prompt_password(prompt).map_err(|error| match error.kind() {
        std::io::ErrorKind::Interrupted => Cancelled.into(),
        _ => no_terminal(),
    });
    let password = Zeroizing::new(password?);
    Ok(Secret::Password(Zeroizing::new(password.as_bytes().to_vec())))
}

fn ask_twice(prompt: &str, no_terminal: impl Fn() -> anyhow::Error) -> anyhow::Result<Secret> {
    let first = ask(prompt, &no_terminal)?;
    let second = ask("Again: ", &no_terminal)?;
    match (&first, &second) {
        (Secret::Password(first), Secret::Password(second)) if first != second => {
            Err(usage("the two passwords are not the same"))
        }
        (Secret::Password(first), _) if first.is_empty() => Err(usage("an empty password protects nothing")),
        _ => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read_as_people_write_them() {
        for (text, seconds) in [("0s", 0), ("30m", 1800), ("23h", 82_800), ("7d", 604_800), ("1h 30m", 5400)] {
            assert_eq!(duration(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        for text in ["", "abc", "-1h", "7", "1 month"] {
            assert!(duration(text).is_err(), "{text:?} is no length of time");
        }
        assert_eq!((share("5%"), share("0%"), share("12.5%")), (Ok(0.05), Ok(0.0), Ok(0.125)));
        for text in ["", "5", "%", "-1%", "101%", "NaN%"] {
            assert!(share(text).is_err(), "{text:?} is no share");
        }
        assert_eq!(rate("10MB"), Ok(NonZeroU64::new(10_000_000).expect("it is not 0")));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }
}
