"""The programs compared, each as the commands a user of it would type, with encryption on and zstd at about level 3.

Every tool keeps its settings, caches and repository below one folder of its own, so that no run sees another's.
"""

import json
import os
import pathlib
import shutil
import subprocess

from measure import Command, Failed, run

PASSWORD = "correct horse battery staple"
FILE = "dump.sql"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "vault-tests"


def find(program):
    """The program's path, those that benches/peers built first, or None."""
    path = f"{CACHE / 'peers' / 'bin'}:{os.environ.get('PATH', '')}"
    return shutil.which(program, path=path)


class Tool:
    """One repository of one tool. A snapshot is named by a label; the tool maps it to what it needs itself."""

    program = ""
    version_arguments = ["--version"]

    def __init__(self, folder, program=None):
        self.folder = pathlib.Path(folder)
        self.repository = self.folder / "repository"
        self.program_path = program or find(self.program)
        self.ids = {}
        keep = ("PATH", "LANG", "TMPDIR", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD")
        self.env = {name: os.environ[name] for name in keep if name in os.environ}
        self.env |= {"HOME": str(self.folder / "home")} | self.settings()

    def version(self):
        argv = [self.program_path, *self.version_arguments]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()

    def command(self, *arguments, **options):
        return Command([self.program_path, *map(str, arguments)], env=self.env, **options)

    def begin(self):
        """Makes the folder and an empty repository in it; not measured."""
        self.end()
        (self.folder / "home").mkdir(parents=True)
        for command in self.init():
            run(command)

    def end(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def snapshot(self, label, stdin=None, source=None):
        """Stores the file `stdin`, or what the command `source` prints."""
        measured = run(*([source] if source else []), self.snapshot_command(label, stdin))
        self.note(label, measured.output)
        return measured

    def restore(self, label, folder):
        """Brings a snapshot back into an empty folder; returns the measurement and the restored file."""
        command, path = self.restore_command(label, pathlib.Path(folder))
        return run(command), path

    def check(self):
        return run(self.check_command())

    def keep_last(self, count):
        """Drops all snapshots but the newest so many, and gives back what they alone held."""
        measured = None
        for command in self.keep_last_commands(count):
            part = run(command)
            if measured:
                part.seconds += measured.seconds
                part.cpu_seconds += measured.cpu_seconds
                part.rss_bytes_each = [max(part.rss_bytes, measured.rss_bytes)]
            measured = part
        return measured

    def note(self, label, output):
        """Remembers the id a snapshot printed, for the tools that have no labels."""

    def id_of(self, label):
        if label not in self.ids:
            raise Failed(f"there is no snapshot {label}")
        return self.ids[label]


class Vault(Tool):
    program = "vault"

    def settings(self):
        return {"VAULT_REPO": str(self.repository), "VAULT_PASSWORD": PASSWORD}

    def init(self):
        return [self.command("init")]

    def snapshot_command(self, label, stdin):
        return self.command("snapshot", "stdin", "--name", FILE, "-q", stdin=stdin)

    def note(self, label, output):
        self.ids[label] = output.split()[0]

    def restore_command(self, label, folder):
        path = folder / FILE
        return self.command("restore", self.id_of(label), "--stdout", stdout=path), path

    def check_command(self):
        return self.command("check", "--read-data")

    def keep_last_commands(self, count):
        return [self.command("prune", "--keep-last", count, "--grace", "0s")]

    def snapshot_live(self, label, database):
        measured = run(self.command("snapshot", "postgres", "--database", database, "-q"))
        self.note(label, measured.output)
        return measured

    def restore_live(self, label, database):
        return run(self.command("restore", self.id_of(label), "--into", database))

    def restore_stream(self, label, sink):
        return run(self.command("restore", self.id_of(label), "--stdout"), sink)


class Restic(Tool):
    program = "restic"
    version_arguments = ["version"]

    def settings(self):
        return {"RESTIC_REPOSITORY": str(self.repository), "RESTIC_PASSWORD": PASSWORD}

    def init(self):
        return [self.command("init")]

    def snapshot_command(self, label, stdin):
        return self.command("backup", "-q", "--stdin", "--stdin-filename", FILE, "--tag", label, stdin=stdin)

    def restore_command(self, label, folder):
        return self.command("restore", "-q", "latest", "--tag", label, "--target", folder), folder / FILE

    def check_command(self):
        return self.command("check", "--read-data")

    def keep_last_commands(self, count):
        # Each day has a tag of its own, which would be a group of its own.
        return [self.command("forget", "-q", "--group-by", "", "--keep-last", count, "--prune", "--max-unused", "0")]


class Rustic(Tool):
    program = "rustic"

    def settings(self):
        return {"RUSTIC_REPOSITORY": str(self.repository), "RUSTIC_PASSWORD": PASSWORD, "RUSTIC_NO_PROGRESS": "true"}

    def init(self):
        return [self.command("init")]

    def snapshot_command(self, label, stdin):
        # Without --force rustic 0.11.4 takes a stream under a known name for unchanged and does not read it.
        return self.command(
            "backup", "--json", "--force", "--stdin-filename", FILE, "--tag", label, "-", stdin=stdin
        )

    def note(self, label, output):
        self.ids[label] = json.loads(output[output.index("{") : output.rindex("}") + 1])["id"]

    def restore_command(self, label, folder):
        return self.command("restore", self.id_of(label), folder), folder / FILE

    def check_command(self):
        return self.command("check", "--read-data")

    def keep_last_commands(self, count):
        return [self.command("forget", "--group-by", "", "--keep-last", count),
                self.command("prune", "--instant-delete", "--keep-delete", "0s", "--keep-pack", "0s", "--max-unused", "0%")]


class Borg(Tool):
    program = "borg"

    def settings(self):
        return {"BORG_REPO": str(self.repository), "BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(self.folder / "home")}

    def init(self):
        return [self.command("init", "-e", "repokey-blake2")]

    def snapshot_command(self, label, stdin):
        return self.command("create", "-C", "zstd,3", "--stdin-name", FILE, f"::{label}", "-", stdin=stdin)

    def restore_command(self, label, folder):
        return self.command("extract", f"::{label}", cwd=folder), folder / FILE

    def check_command(self):
        return self.command("check", "--verify-data")

    def keep_last_commands(self, count):
        return [self.command("prune", "--keep-last", count), self.command("compact", "--threshold", "0")]


class Kopia(Tool):
    program = "kopia"

    def settings(self):
        home = self.folder / "home"
        return {
            "KOPIA_PASSWORD": PASSWORD,
            "KOPIA_CONFIG_PATH": str(home / "kopia.config"),
            "KOPIA_CACHE_DIRECTORY": str(home / "cache"),
            "KOPIA_LOG_DIR": str(home / "logs"),
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }

    def init(self):
        return [
            self.command("repository", "create", "filesystem", "--path", self.repository),
            self.command("policy", "set", "--global", "--compression=zstd"),
        ]

    def snapshot_command(self, label, stdin):
        return self.command(
            "snapshot", "create", "--json", "--no-progress", "--stdin-file", FILE, f"/{FILE}", stdin=stdin
        )

    def note(self, label, output):
        self.ids[label] = json.loads(output[output.index("{") : output.rindex("}") + 1])["id"]

    def restore_command(self, label, folder):
        return self.command("snapshot", "restore", "--no-progress", self.id_of(label), folder), folder / FILE

    def check_command(self):
        return self.command("snapshot", "verify", "--verify-files-percent=100", "--no-progress")

    def keep_last_commands(self, count):
        gone = list(self.ids.values())[:-count]
        self.ids = dict(list(self.ids.items())[-count:])
        # Without --safety=none it keeps what is younger than a day.
        return [self.command("snapshot", "delete", "--delete", *gone),
                self.command("maintenance", "run", "--full", "--safety=none")]


PEERS = {tool.program: tool for tool in (Restic, Rustic, Borg, Kopia)}
