//! Runs the program.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The password of repositories that have one. Most are opened by a key file, which takes no time to try.
pub const PASSWORD: &str = "correct horse battery staple";

/// A home with nothing in it, and a place for a repository.
pub struct Home {
    folder: tempfile::TempDir,
    /// What its programs find in their environment, beside what all of them find.
    env: BTreeMap<String, String>,
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Home {
    pub fn new() -> Self {
        let mut home =
            Self { folder: tempfile::tempdir().expect("a temporary folder can be made"), env: BTreeMap::new() };
        home.set("VAULT_PASSWORD", PASSWORD);
        home.set("VAULT_REPO", home.path("repo").to_str().expect("temporary names are plain"));
        home
    }

    /// Sets a variable for all later runs.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// From now on, a key file opens the repository.
    pub fn use_key_file(&mut self) {
        let path = self.key_file("key");
        self.env.remove("VAULT_PASSWORD");
        self.set("VAULT_KEY_FILE", &path);
    }

    /// A home with a repository that a key file opens.
    pub fn with_repository() -> Self {
        let mut home = Self::new();
        home.use_key_file();
        home.run(&["init"]).ok();
        home
    }

    /// A home with a repository that [`PASSWORD`] opens.
    pub fn with_password() -> Self {
        let home = Self::new();
        home.run(&["init"]).ok();
        home
    }

    /// Makes a key file that only we can read.
    pub fn key_file(&self, name: &str) -> String {
        let path = self.file(name, [name.len() as u8; 32]);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).expect("it is ours");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it is in the home")).expect("the home can be written");
        std::fs::write(&path, bytes).expect("the home can be written");
        path.to_str().expect("temporary names are plain").to_owned()
    }

    /// The program, with nothing in its environment that this home did not put there.
    pub fn vault(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vault"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("TZ", "UTC")
            .env("VAULT_HOST", "testhost")
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        Done::of(&mut self.vault(args))
    }

    /// Runs it with one more variable in its environment.
    pub fn run_with(&self, name: &str, value: &str, args: &[&str]) -> Done {
        Done::of(self.vault(args).env(name, value))
    }

    /// Takes a snapshot of `bytes` as stream `name`; returns its id.
    pub fn snapshot(&self, name: &str, bytes: &[u8]) -> String {
        let input = self.file("input", bytes);
        let mut command = self.vault(&["snapshot", "stdin", "--name", name, "-q"]);
        command.stdin(std::fs::File::open(input).expect("it was just written"));
        Done::of(&mut command).ok().trim_end().to_owned()
    }
}

impl Done {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let output = command.output().expect("the program can be started");
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0));
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// What it printed, if it went well.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "it should have gone well: {}{}", self.out, self.err);
        &self.out
    }

    /// Checks that it failed with `code` and said every one of `texts`.
    #[track_caller]
    pub fn fails(&self, code: i32, texts: &[&str]) -> &Self {
        assert_eq!(self.code, code, "the exit code of: {}{}", self.out, self.err);
        for text in texts {
            assert!(self.err.contains(text), "the error should say {text:?}: {}", self.err);
        }
        self
    }

    /// Its lines as JSON.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        self.ok().lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
    }
}

/// Every file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// Names a test that cannot run here, past the capture of the test harness.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stdout().lock(), "SKIPPED cli::{test}: {why}");
}
