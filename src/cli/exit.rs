//! Exit codes, chosen once, from the kind of the error.

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::backend::BackendError;
use crate::format::FormatError;
use crate::ops::forget::ForgetError;
use crate::ops::prune::PruneError;
use crate::ops::snapshot::SnapshotError;
use crate::pipeline::PipelineError;
use crate::progress::Cancelled;
use crate::repo::RepoError;
use crate::repo::snapshots::FindError;
use crate::source::files::FilesError;
use crate::source::postgres::{ErrorKind, PostgresError};
use crate::source::stdin::StdinError;

/// The table of the manual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Other = 1,
    Usage = 2,
    NotCommitted = 3,
    Damaged = 4,
    DumpFailed = 5,
    Target = 6,
    NoRepository = 10,
    Busy = 11,
    WrongKey = 12,
    Rollback = 13,
    Unreachable = 14,
    NoSpace = 15,
    Clock = 16,
    /// 128 + SIGINT, as shells have it.
    Interrupted = 130,
    /// 128 + SIGPIPE: whoever read the list has seen enough.
    ReaderGone = 141,
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            // Told from Ctrl-C as shells and service managers tell them.
            Exit::Interrupted => STOPPED_BY.load(Relaxed).try_into().map_or(self as u8, |signal: u8| 128 + signal),
            exit => exit as u8,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// The signal that asked this run to stop.
static STOPPED_BY: AtomicI32 = AtomicI32::new(signal_hook::consts::SIGINT);

/// Remembers which signal asked this run to stop.
pub fn stopped_by(signal: i32) {
    STOPPED_BY.store(signal, Relaxed);
}

/// An error of the command line itself, with its code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    pub exit: Exit,
    pub message: String,
}

/// The result could not be written.
#[derive(Debug, thiserror::Error)]
#[error("standard output")]
pub struct StdoutError {
    pub source: io::Error,
}

/// A wrong or missing argument.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    CliError { exit: Exit::Usage, message: message.into() }.into()
}

/// Prints the chain once and returns its code.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let exit = code_of(error);
    if exit == Exit::ReaderGone {
        return exit.into();
    }
    // Which thread was stopped doing what is nobody's question then.
    let message = if exit == Exit::Interrupted { Cancelled.to_string() } else { text_of(error) };
    if json {
        print_object(&message, exit);
    } else {
        eprintln!("vault: {message}");
    }
    exit.into()
}

/// Prints what is wrong with the arguments, or the help or version that they ask for, and returns the code.
pub fn report_arguments(error: &clap::Error) -> ExitCode {
    let wrong = error.use_stderr();
    // What follows `--` is a producer's.
    if wrong && std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json") {
        let text = error.render().to_string();
        print_object(text.trim_start_matches("error: ").trim_end(), Exit::Usage);
    } else {
        let _ = error.print();
    }
    if wrong { Exit::Usage } else { Exit::Ok }.into()
}

fn print_object(message: &str, exit: Exit) {
    eprintln!("{}", serde_json::json!({ "error": message, "exit": exit.code() }));
}

/// The chain of an error as one text.
pub fn text_of(error: &anyhow::Error) -> String {
    // Transparent wrappers repeat their cause: each text is said once.
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !said.iter().any(|earlier| earlier.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

/// The code of the first cause that has one.
pub fn code_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Other)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(error) = cause.downcast_ref::<CliError>() {
        return Some(error.exit);
    }
    if let Some(error) = cause.downcast_ref::<Coded>() {
        return Some(error.exit);
    }
    if let Some(StdoutError { source }) = cause.downcast_ref() {
        let gone = source.kind() == io::ErrorKind::BrokenPipe;
        return if gone { Some(Exit::ReaderGone) } else { of_io(source) };
    }
    if cause.is::<Cancelled>() {
        return Some(Exit::Interrupted);
    }
    if let Some(error) = cause.downcast_ref::<RepoError>() {
        return of_repo(error);
    }
    if let Some(error) = cause.downcast_ref::<BackendError>() {
        return Some(of_backend(error));
    }
    if let Some(error) = cause.downcast_ref::<PipelineError>() {
        return of_pipeline(error);
    }
    if cause.is::<FindError>() || matches!(cause.downcast_ref(), Some(ForgetError::Find(_))) {
        return Some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<StdinError>() {
        return match error {
            StdinError::Failed { .. } | StdinError::Start { .. } => Some(Exit::DumpFailed),
            StdinError::Empty { .. } | StdinError::Read { .. } => Some(Exit::NotCommitted),
            StdinError::Store(error) => of_io(error),
        };
    }
    if let Some(error) = cause.downcast_ref::<FilesError>() {
        return of_files(error);
    }
    if let Some(error) = cause.downcast_ref::<PostgresError>() {
        return of_postgres(error);
    }
    if let Some(error) = cause.downcast_ref::<PruneError>() {
        return of_prune(error);
    }
    if let Some(ForgetError::Repo(error)) = cause.downcast_ref::<ForgetError>() {
        return of_repo(error);
    }
    cause.downcast_ref::<io::Error>().and_then(of_io)
}

/// An error whose code depends on what was being done.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
struct Coded {
    exit: Exit,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Chooses the code of a snapshot that failed.
pub fn not_committed<E: std::error::Error + Send + Sync + 'static>(error: SnapshotError<E>) -> anyhow::Error {
    let exit = match &error {
        SnapshotError::Source(error) => code_below(error),
        SnapshotError::Pipeline(error) => of_pipeline(error),
        SnapshotError::Repo(error) => of_repo(error),
        SnapshotError::Overtaken { .. } => None,
    };
    Coded { exit: exit.unwrap_or(Exit::NotCommitted), source: Box::new(error) }.into()
}

/// Chooses the code of a restore into PostgreSQL that failed.
pub fn not_restored(error: PostgresError) -> anyhow::Error {
    let exit = code_below(&error).unwrap_or(match error.kind() {
        ErrorKind::Source => Exit::Target,
        _ => Exit::Other,
    });
    Coded { exit, source: Box::new(error) }.into()
}

/// The code of an error or the first of its causes that has one.
fn code_below(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    std::iter::successors(Some(error), |error| error.source()).find_map(of_cause)
}

fn of_postgres(error: &PostgresError) -> Option<Exit> {
    match (error.kind(), error) {
        (ErrorKind::Usage, _) => Some(Exit::Usage),
        (ErrorKind::DumpFailed, _) => Some(Exit::DumpFailed),
        (ErrorKind::Cancelled, _) => Some(Exit::Interrupted),
        // SQLSTATE disk_full
        (_, PostgresError::Target { source: Some(error), .. }) if error.code() == "53100" => Some(Exit::NoSpace),
        (ErrorKind::RestoreTarget, _) => Some(Exit::Target),
        // The cause has the better code, or what was being done.
        _ => None,
    }
}

fn of_prune(error: &PruneError) -> Option<Exit> {
    match error {
        PruneError::NoKeepRule => Some(Exit::Usage),
        // A lease that ran out let another prune begin.
        PruneError::Busy { .. } | PruneError::Lapsed => Some(Exit::Busy),
        PruneError::ClockSkew { .. } => Some(Exit::Clock),
        PruneError::LostBackup { .. } => Some(Exit::Rollback),
        PruneError::Repo(error) => of_repo(error),
        PruneError::Pipeline(error) => of_pipeline(error),
        PruneError::Cancelled(_) => Some(Exit::Interrupted),
    }
}

fn of_files(error: &FilesError) -> Option<Exit> {
    Some(match error {
        FilesError::NoPath | FilesError::SameName { .. } | FilesError::Pattern(_) => Exit::Usage,
        FilesError::NothingMatches { .. } => Exit::Usage,
        FilesError::Unsafe { .. } => Exit::Damaged,
        FilesError::NoSpace { .. } => Exit::NoSpace,
        FilesError::Cancelled(_) => Exit::Interrupted,
        error if error.is_of_target() => Exit::Target,
        // The cause has the better code.
        _ => return None,
    })
}

fn of_repo(error: &RepoError) -> Option<Exit> {
    Some(match error {
        RepoError::NoRepository { .. } => Exit::NoRepository,
        RepoError::WrongKey { .. } => Exit::WrongKey,
        RepoError::Rollback { .. } => Exit::Rollback,
        RepoError::Damaged { .. } => Exit::Damaged,
        RepoError::Format { source: FormatError::Version { .. } | FormatError::Newer { .. }, .. } => Exit::Other,
        RepoError::Format { .. } => Exit::Damaged,
        RepoError::Backend(error) => of_backend(error),
        RepoError::LastSlot => Exit::Usage,
        RepoError::Scratch { source, .. } => return of_io(source),
        _ => return None,
    })
}

fn of_pipeline(error: &PipelineError) -> Option<Exit> {
    match error {
        PipelineError::Repo(error) => of_repo(error),
        PipelineError::Cancelled(_) => Some(Exit::Interrupted),
        PipelineError::Target(error) => of_io(error).or(Some(Exit::Target)),
        PipelineError::Item { .. } => Some(Exit::Damaged),
        _ => None,
    }
}

fn of_backend(error: &BackendError) -> Exit {
    match error {
        BackendError::NoStore { .. } => Exit::NoRepository,
        BackendError::BadLocation { .. } => Exit::Usage,
        BackendError::NotFound { .. } | BackendError::ShortRange { .. } | BackendError::Damaged { .. } => Exit::Damaged,
        BackendError::Denied { .. } | BackendError::Unreachable { .. } => Exit::Unreachable,
        BackendError::NoSpace { .. } => Exit::NoSpace,
        BackendError::Interrupted { .. } => Exit::Interrupted,
        _ => Exit::Other,
    }
}

/// An I/O error may carry one of ours.
fn of_io(error: &io::Error) -> Option<Exit> {
    if let Some(inner) = error.get_ref() {
        return of_cause(inner);
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Some(Exit::NoSpace),
        _ => None,
    }
}

/// Ignores SIGXFSZ: the write then fails with EFBIG.
pub fn ignore_file_size_signal() {
    // A handler that does nothing serves as well as SIG_IGN and needs no unsafe code.
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen);
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::id::ObjectId;

    fn damaged() -> RepoError {
        RepoError::Damaged { name: "packs/x".to_owned(), detail: "cut short".to_owned() }
    }

    fn rollback() -> RepoError {
        RepoError::Rollback { location: "here".to_owned(), detail: "gone".to_owned() }
    }

    fn no_space() -> BackendError {
        BackendError::NoSpace { name: "x".to_owned(), location: "here".to_owned() }
    }

    fn no_scratch() -> RepoError {
        RepoError::Scratch { folder: "cache".into(), source: io::ErrorKind::StorageFull.into() }
    }

    fn unreachable() -> BackendError {
        BackendError::Unreachable { location: "here".to_owned(), detail: "no route".to_owned() }
    }

    #[test]
    fn what_stops_prune_and_repair_has_the_code_of_the_table() {
        let (host, now, id) = ("h".to_owned(), Timestamp::UNIX_EPOCH, ObjectId([1; 32]));
        let table = [
            (PruneError::NoKeepRule, Exit::Usage),
            (PruneError::Busy { host: host.clone(), since: now }, Exit::Busy),
            (PruneError::Lapsed, Exit::Busy),
            (PruneError::ClockSkew { local: now, store: now }, Exit::Clock),
            (PruneError::LostBackup { id, next_seq: 2, host }, Exit::Rollback),
            (PruneError::Cancelled(Cancelled), Exit::Interrupted),
            (PruneError::Repo(damaged()), Exit::Damaged),
            (PruneError::Repo(rollback()), Exit::Rollback),
            (PruneError::Pipeline(damaged().into()), Exit::Damaged),
            (no_space().into(), Exit::NoSpace),
            (unreachable().into(), Exit::Unreachable),
            (PruneError::Pipeline(RepoError::from(no_space()).into()), Exit::NoSpace),
            (PruneError::Repo(no_scratch()), Exit::NoSpace),
        ];
        for (error, exit) in table {
            let text = error.to_string();
            assert_eq!(code_of(&anyhow::Error::from(error)), exit, "{text}");
        }
    }

    #[test]
    fn what_stops_forget_and_check_has_the_code_of_the_table() {
        let unknown = FindError::Unknown { word: "x".to_owned() };
        assert_eq!(code_of(&ForgetError::from(unknown).into()), Exit::Usage);
        assert_eq!(code_of(&ForgetError::from(rollback()).into()), Exit::Rollback);
        assert_eq!(code_of(&ForgetError::from(RepoError::from(unreachable())).into()), Exit::Unreachable);
        assert_eq!(code_of(&PipelineError::from(damaged()).into()), Exit::Damaged);
        assert_eq!(code_of(&PipelineError::from(Cancelled).into()), Exit::Interrupted);
        assert_eq!(code_of(&PipelineError::from(RepoError::from(unreachable())).into()), Exit::Unreachable);
    }

    #[test]
    fn a_backup_that_was_overtaken_by_prune_is_not_committed() {
        let error = SnapshotError::<StdinError>::Overtaken { packs: 1 };
        assert_eq!(code_of(&not_committed(error)), Exit::NotCommitted);
        assert_eq!(code_of(&not_committed(SnapshotError::<StdinError>::Repo(damaged()))), Exit::Damaged);
    }
}
