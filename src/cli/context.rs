//! What every command needs: settings, the repository, progress, Ctrl-C.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::exit::{self, Exit, StdoutError};
use super::screen::Screen;
use super::secret;
use super::settings::{self, File, Global};
use crate::backend::limit::{Limited, Rates};
use crate::backend::location::{self, Location};
use crate::backend::{Backend, BackendError};
use crate::progress::{Cancelled, Progress};
use crate::repo::snapshots::Snapshot;
use crate::repo::together::both;
use crate::repo::{Places, RepoError, Repository};

/// Settings of this run.
pub struct Context {
    pub global: Global,
    pub file: File,
    pub places: Places,
    pub progress: Progress,
}

impl Context {
    /// Reads the settings, starts logging, and listens for Ctrl-C.
    pub fn new(global: &Global) -> anyhow::Result<Self> {
        start_logging(global);
        let progress = Progress::default();
        cancel_on_signals(progress.clone(), global.json)?;
        Ok(Self { global: global.clone(), file: settings::load_file(global)?, places: settings::places()?, progress })
    }

    /// Where the repository is.
    pub fn location(&self) -> anyhow::Result<Location> {
        Ok(settings::repo_url(&self.global, &self.file)?.parse()?)
    }

    /// The store, as an existing one.
    pub fn backend(&self) -> anyhow::Result<Arc<dyn Backend>> {
        match location::open(&settings::repo_url(&self.global, &self.file)?) {
            Err(BackendError::NoStore { location, .. }) => Err(RepoError::NoRepository { location }.into()),
            other => Ok(self.limited(other?)),
        }
    }

    /// The store, made if it is a folder that does not exist.
    pub fn new_backend(&self) -> anyhow::Result<Arc<dyn Backend>> {
        Ok(self.limited(location::create(&settings::repo_url(&self.global, &self.file)?)?))
    }

    fn limited(&self, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let rates = self.global.rates();
        match rates {
            Rates { up: None, down: None } => backend,
            rates => Arc::new(Limited::new(backend, rates, self.progress.clone())),
        }
    }

    /// Opens the repository.
    pub fn open(&self) -> anyhow::Result<Arc<Repository>> {
        let backend = self.backend()?;
        let secret = match secret::given(&self.global, &self.file)? {
            Some(secret) => secret,
            None => secret::ask_password()?,
        };
        Ok(Arc::new(Repository::open(backend, &secret, &self.places)?))
    }

    /// Opens the repository, loads its index and lists its snapshots, oldest first.
    pub fn open_to_read(&self) -> anyhow::Result<(Arc<Repository>, Vec<Snapshot>)> {
        let repo = self.open()?;
        let (snapshots, loaded) = both(|| repo.snapshots(), || repo.load_index(&Progress::default()));
        loaded?;
        Ok((repo, snapshots?))
    }

    /// The screen for a long operation; it is cleared when dropped.
    pub fn screen(&self) -> Screen {
        Screen::start(&self.global, self.progress.clone())
    }

    /// A line of the result, on stdout.
    pub fn print(&self, line: impl std::fmt::Display) -> anyhow::Result<()> {
        self.print_bytes(format!("{line}\n").as_bytes())
    }

    /// Part of the result, on stdout, at once.
    pub fn print_bytes(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|source| StdoutError { source }.into())
    }

    /// A line for people, on stderr.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.global.quiet && !self.global.json {
            eprintln!("{}", line.as_ref());
        }
    }

    /// A warning, on stderr.
    pub fn warn(&self, line: impl AsRef<str>) {
        eprintln!("vault: warning: {}", line.as_ref());
    }

    /// Name of this host for people.
    pub fn host(&self) -> String {
        settings::env("VAULT_HOST")
            .or_else(|| self.file.host.clone())
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Threads that are worth having for compute-bound work.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn start_logging(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "vault=warn,error",
        (_, 1) => "vault=info,warn",
        (_, 2) => "vault=debug,info",
        _ => "trace",
    };
    let filter = settings::env("VAULT_LOG").unwrap_or_else(|| level.to_owned());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .try_init();
}

/// After this long, a run that was asked to stop is not waited for: the store or server it waits for may never answer.
const STOP_PATIENCE: Duration = Duration::from_millis(1500);

/// The first signal asks the operation to stop; the second ends the process.
fn cancel_on_signals(progress: Progress, json: bool) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(Exit::Interrupted.code().into());
            }
            exit::stopped_by(signal);
            progress.cancel();
            std::thread::spawn(move || {
                std::thread::sleep(STOP_PATIENCE);
                exit::report(&Cancelled.into(), json);
                std::process::exit(Exit::Interrupted.code().into());
            });
        }
    });
    Ok(())
}
