"""Runs commands and measures them: wall time, processor time, and the peak resident memory of each process.

Peak memory is what the kernel's accounting gives when a process is waited for: that of the process itself or, where
greater, of one of its children. It starts from this Python's own few megabytes, as the counter survives exec.
"""

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field


@dataclass
class Command:
    """A program to run: `stdin` and `stdout` are files; without them nothing is read, and the output is kept."""

    argv: list
    env: dict = field(default_factory=dict)
    stdin: str = None
    stdout: str = None
    cwd: str = None


@dataclass
class Measured:
    seconds: float
    cpu_seconds: float
    rss_bytes_each: list  # of each process of the pipeline
    output: str

    @property
    def rss_bytes(self):
        return sum(self.rss_bytes_each)


class Failed(Exception):
    """A measured command that did not succeed."""


def run(*pipeline):
    """Runs commands joined by pipes; raises Failed unless every one of them succeeds."""
    os.sync()  # what the last command left to be written is not to be paid by this one
    began, running, previous = time.monotonic(), [], None
    output, logs = tempfile.TemporaryFile(), []
    for at, command in enumerate(pipeline):
        last = at == len(pipeline) - 1
        log = tempfile.TemporaryFile()
        logs.append(log)
        stdin = previous or (open(command.stdin, "rb") if command.stdin else subprocess.DEVNULL)
        stdout = subprocess.PIPE if not last else (open(command.stdout, "wb") if command.stdout else output)
        process = subprocess.Popen(command.argv, env=command.env, stdin=stdin, stdout=stdout, stderr=log, cwd=command.cwd)
        for file in (stdin, stdout):
            if hasattr(file, "close") and file is not output:
                file.close()
        previous = process.stdout
        running.append(process)
    cpu_seconds, rss_bytes_each, failures = 0.0, [], []
    for process, command, log in zip(running, pipeline, logs):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_seconds += usage.ru_utime + usage.ru_stime
        rss_bytes_each.append(usage.ru_maxrss * 1024)
        if process.returncode:
            failures.append(f"{' '.join(command.argv)}: exit {process.returncode}\n{_text(log)[-2000:]}")
    seconds = time.monotonic() - began
    if failures:
        raise Failed("\n".join(failures))
    return Measured(seconds, cpu_seconds, rss_bytes_each, _text(output))


def _text(log):
    log.seek(0)
    return log.read().decode(errors="replace")


def bytes_in(folder):
    """The sum of the sizes of the files below a folder."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(folder) for name in names
    )


def same_bytes(a, b):
    """Compares two files through buffers of a megabyte."""
    if os.path.getsize(a) != os.path.getsize(b):
        return False
    with open(a, "rb") as left, open(b, "rb") as right:
        while block := left.read(1 << 20):
            if block != right.read(1 << 20):
                return False
    return True
