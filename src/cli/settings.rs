//! Settings: flag, environment, `vault.toml`, default, in this order.

use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::Deserialize;

use super::exit::usage;
use super::values::rate;
use crate::backend::limit::Rates;
use crate::repo::Places;

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

/// Reads an environment variable; empty counts as unset.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Reads an environment variable that holds a path; empty counts as unset.
pub fn env_path(name: &str) -> Option<PathBuf> {
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
