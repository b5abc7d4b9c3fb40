//! `vault doctor`.

mod postgres;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::context::Context;
use super::exit::{self, Exit};
use super::screen::{count, size};
use crate::backend::Backend;
use crate::backend::probe::{Verdict, probe_location};
use crate::repo::Repository;

/// Look at everything a backup needs, and say what is wrong and what to do about it
///
/// Without a source: this installation, the store (which is asked for everything that a repository needs, with objects that it
/// removes again), the repository and its backups. With one: the source.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!("vault doctor" "vault doctor postgres"))]
pub struct Args {
    #[command(subcommand)]
    source: Option<Source>,
}

#[derive(clap::Subcommand)]
enum Source {
    /// PostgreSQL: the way to the server, its version, pg_dump, rights
    Postgres(postgres::Args),
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Failed,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "failed",
        }
    }
}

/// Prints each finding as it comes, and remembers the first failure for the exit code.
struct Findings<'c> {
    context: &'c Context,
    failed: Option<Exit>,
}

impl Findings<'_> {
    fn say(&self, status: Status, check: &str, detail: impl AsRef<str>) -> anyhow::Result<()> {
        let detail = detail.as_ref();
        if self.context.global.json {
            return self.context.print(json!({ "check": check, "status": status.word(), "detail": detail }));
        }
        self.context.print(format!("{:<8} {check:<11} {detail}", status.word()))
    }

    /// The last object for scripts, and the exit code.
    fn end(&self) -> anyhow::Result<ExitCode> {
        let failed = self.failed.unwrap_or(Exit::Ok);
        if self.context.global.json {
            let status = if failed == Exit::Ok { "ok" } else { "failed" };
            self.context.print(json!({ "status": status, "exit": failed as u8 }))?;
        }
        Ok(failed.into())
    }

    /// Reports the error of a check that failed; `None` then.
    fn need<T>(&mut self, check: &str, result: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.failed.get_or_insert(exit::code_of(&error));
                self.say(Status::Failed, check, exit::text_of(&error))?;
                Ok(None)
            }
        }
    }
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let mut findings = Findings { context, failed: None };
    findings.say(Status::Ok, "version", format!("vault {}", env!("CARGO_PKG_VERSION")))?;
    if let Some(Source::Postgres(args)) = &args.source {
        postgres::run(&mut findings, args)?;
        return findings.end();
    }
    for (check, place) in [("cache", &context.places.cache), ("state", &context.places.state)] {
        folder(&mut findings, check, place)?;
    }
    if let Some(backend) = findings.need("store", context.backend())? {
        store(&mut findings, &*backend)?;
        if let Some(repo) = findings.need("repository", context.open())? {
            repository(&mut findings, &repo)?;
        }
    }
    findings.end()
}

/// A folder of this installation: can it be written, and how much fits.
fn folder(findings: &mut Findings<'_>, check: &str, path: &Path) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<u64> {
        std::fs::create_dir_all(path)?;
        tempfile::tempfile_in(path)?;
        let space = rustix::fs::statvfs(path)?;
        Ok(space.f_bavail * space.f_frsize)
    };
    match write() {
        Ok(free) => findings.say(Status::Ok, check, format!("{}, {} free", path.display(), size(free))),
        // Both may be missing; that costs time, or the notice of a rollback.
        Err(error) => findings.say(Status::Warning, check, format!("{} cannot be written: {error}", path.display())),
    }
}

fn store(findings: &mut Findings<'_>, backend: &dyn Backend) -> anyhow::Result<()> {
    let properties = backend.properties();
    let mut detail = format!("{} ({})", properties.location, properties.kind);
    if let (Ok(space), "local") = (rustix::fs::statvfs(&properties.location), properties.kind) {
        detail += &format!(", {} free", size(space.f_bavail * space.f_frsize));
    }
    findings.say(Status::Ok, "store", detail)?;
    let probed = findings.context.location().and_then(|location| Ok(probe_location(&location)?));
    for finding in findings.need("store", probed)?.into_iter().flat_map(|report| report.findings) {
        let status = match finding.verdict {
            Verdict::Ok => Status::Ok,
            Verdict::Warn => Status::Warning,
            Verdict::Fail => Status::Failed,
        };
        if status == Status::Failed {
            findings.failed.get_or_insert(Exit::Other);
        }
        findings.say(status, "store", format!("{}: {}", finding.name, finding.detail))?;
    }
    Ok(())
}

fn repository(findings: &mut Findings<'_>, repo: &Repository) -> anyhow::Result<()> {
    let config = &repo.config;
    findings.say(Status::Ok, "repository", format!("{}, format {}", config.repository, config.vault))?;
    if let Some(slots) = findings.need("keys", repo.slots().map_err(Into::into))? {
        match slots.len() {
            1 => findings.say(
                Status::Warning,
                "keys",
                "one slot only: keep a second password or key file somewhere safe, see `vault key add`",
            )?,
            many => findings.say(Status::Ok, "keys", format!("{many} slots"))?,
        }
    }
    let started = Instant::now();
    let load = |repo: &Repository| -> anyhow::Result<usize> {
        repo.load_index(&crate::progress::Progress::default())?;
        Ok(repo.index.packs()?.len())
    };
    if let Some(packs) = findings.need("index", load(repo))? {
        let seconds = started.elapsed().as_secs_f64();
        findings.say(Status::Ok, "index", format!("{} packs listed, loaded in {seconds:.2} s", count(packs as u64)))?;
    }
    if let Some(snapshots) = findings.need("snapshots", repo.snapshots().map_err(Into::into))? {
        match snapshots.last() {
            None => findings.say(Status::Warning, "snapshots", "none yet: take one with `vault snapshot`")?,
            Some(last) => {
                let age = findings.context.now().duration_since(last.manifest.time);
                let detail = format!("{}, the newest {} old", count(snapshots.len() as u64), age_text(age));
                findings.say(Status::Ok, "snapshots", detail)?;
            }
        }
    }
    Ok(())
}

fn age_text(age: jiff::SignedDuration) -> String {
    match (age.as_hours(), age.as_mins()) {
        (48.., _) => format!("{} days", age.as_hours() / 24),
        (2.., _) => format!("{} hours", age.as_hours()),
        (_, 2..) => format!("{} minutes", age.as_mins()),
        _ => format!("{} seconds", age.as_secs()),
    }
}
