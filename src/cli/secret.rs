//! Passwords and key files: from a file, a variable, a command or the terminal; never from an argument.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use zeroize::Zeroizing;

use super::exit::{CliError, Exit, usage};
use super::settings::{File, Global, env, env_path};
use crate::progress::Cancelled;
use crate::seal::slot::Secret;
use crate::source::command;

/// The secret that was set, if any was.
pub fn given(global: &Global, file: &File) -> anyhow::Result<Option<Secret>> {
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

/// Keeps keys and passwords out of core files, and other processes of this user out of our memory.
pub fn hide_memory() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Core).maximum;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
