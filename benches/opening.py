#!/usr/bin/env python3
"""Times how long commands take to begin on a repository of millions of chunks.

Makes a repository with `vault init` and a few snapshots, then adds index objects that list as many chunks as are wanted,
written from the pages of format-spec/ (their packs are not there: nothing that is timed looks for them). The first
command loads them into the local index; the others find it warm, and are timed with the memory they took at most. At the
end one index object is added, then half of all are removed. What is to be reached at any size: 500,000 chunks loaded a
second; a warm repository opens in under half a second; a stream that has not changed takes at most 1.3 times as long as
without the chunks; 200 MB of memory. Prints a Markdown table.

Needs the Python that `tests/servers/python.sh` prints, and some 600 MB for five million chunks.
"""

import argparse
import os
import pathlib
import runpy
import statistics
import struct
import sys
import tempfile

import blake3
from measure import Command, bytes_in, run
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt

TREE = pathlib.Path(__file__).resolve().parent.parent
READER = runpy.run_path(str(TREE / "format-spec/reader.py"))

# As vault writes them: 64 KiB a chunk, 2 MiB a blob that compresses to half, 16 MiB a pack, 48 Ki chunks an index object.
CHUNK_BYTES, CHUNKS_A_BLOB, STORED_BYTES_A_BLOB = 64 << 10, 32, 1 << 20
BLOBS_A_PACK, PACKS_AN_OBJECT = 16, 96
CHUNKS_AN_OBJECT = CHUNKS_A_BLOB * BLOBS_A_PACK * PACKS_AN_OBJECT
KIND_INDEX, VERSION, SUITE, NOT_COMPRESSED = 4, 1, 1, 0
CHUNKS_A_SECOND_TARGET, OPENING_SECONDS_TARGET, SLOWER_TARGET, RSS_BYTES_TARGET = 500_000, 0.5, 1.3, 200e6


class Filler:
    """Writes index objects that list chunks which nobody has."""

    def __init__(self, folder, key):
        self.index = pathlib.Path(folder, "index")
        self.a_place = next(path for path in self.index.rglob("*") if path.is_file())
        (slot,) = pathlib.Path(folder, "keys").iterdir()
        config = pathlib.Path(folder, "config").read_bytes()

        def unlock(repository):
            master, epoch, _ = READER["open_slot"](slot.read_bytes(), repository, bytes.fromhex(slot.name), key_file=key)
            return READER["Keys"](master, repository, epoch)

        _, self.keys = READER["parse_config"](config, unlock)

    def add(self):
        """Adds one object of CHUNKS_AN_OBJECT chunks: format-spec/index.md, pack.md, blob.md."""
        parts = [struct.pack("<II", 0, PACKS_AN_OBJECT)]
        length = struct.pack("<I", CHUNK_BYTES)
        for _ in range(PACKS_AN_OBJECT):
            blobs = []
            for blob in range(BLOBS_A_PACK):
                blobs.append(struct.pack("<II", blob * STORED_BYTES_A_BLOB, STORED_BYTES_A_BLOB))
                blobs.append(struct.pack("<BBHH", 1, 0, CHUNKS_A_BLOB, 0))
                ids = os.urandom(32 * CHUNKS_A_BLOB)
                blobs.extend(ids[at : at + 32] + length for at in range(0, len(ids), 32))
            directory = b"".join(blobs)
            pack_bytes = BLOBS_A_PACK * STORED_BYTES_A_BLOB + 68 + len(directory)
            parts += [os.urandom(32), struct.pack("<II", pack_bytes, len(directory)), directory]
        self.put(self.seal(b"".join(parts)))

    def seal(self, plain):
        """format-spec/box.md"""
        header = b"VLT1" + bytes([KIND_INDEX, VERSION, SUITE, NOT_COMPRESSED])
        header += struct.pack("<II", self.keys.epoch, len(plain))
        associated = b"vault/obj/1" + self.keys.repository + header + bytes(32)
        nonce = os.urandom(24)
        return header + nonce + encrypt(plain, associated, nonce, self.keys.sub("index"))

    def put(self, sealed):
        name = blake3.blake3(sealed).hexdigest()
        folder = self.index
        if self.a_place.parent != self.index:
            folder = self.index / name[: len(self.a_place.parent.name)]
            folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(sealed)


def fill(folder, key, objects):
    filler = Filler(folder, key)
    for _ in range(objects):
        filler.add()


def in_a_child(work):
    """The memory that this takes would count as that of the commands measured afterwards."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the index was not made")


class Repository:
    """One with a few snapshots, in a folder of its own, and the commands that are run on it."""

    def __init__(self, folder, vault):
        self.folder, self.program, self.key = pathlib.Path(folder), vault, os.urandom(32)
        self.path, self.small, key = (str(self.folder / name) for name in ("repo", "small", "key"))
        pathlib.Path(key).write_bytes(self.key)
        os.chmod(key, 0o600)
        self.env = {"HOME": folder, "PATH": os.environ["PATH"], "VAULT_REPO": self.path}
        self.by_key = {"VAULT_KEY_FILE": key}
        self.by_password = {"VAULT_PASSWORD": "opening"}
        self.vault("init", "-q")
        for _ in range(3):
            self.vault("snapshot", "stdin", "--name", "small", "-q")

    def vault(self, *argv, secret=None, stdin=None):
        # Other data each time, which must be looked up and is not found.
        pathlib.Path(self.small).write_bytes(os.urandom(1_000_000))
        env = self.env | (secret or self.by_key)
        return run(Command([self.program, *argv], env=env, stdin=stdin or self.small, stdout=os.devnull))

    def median(self, runs, *argv, **how):
        measured = [self.vault(*argv, **how) for _ in range(runs)]
        seconds = statistics.median(one.seconds for one in measured)
        return Shown(seconds, max(one.rss_bytes for one in measured))

    def fill(self, objects):
        in_a_child(lambda: fill(self.path, self.key, objects))

    def lose_half_of_the_index(self):
        """What is not listed any more goes from the local index too; so does what prune has replaced."""
        objects = sorted(path for path in pathlib.Path(self.path, "index").rglob("*") if path.is_file())
        # The small ones list what the snapshots need.
        for path in [path for path in objects if path.stat().st_size > 1_000_000][::2]:
            path.unlink()


class Shown:
    def __init__(self, seconds, rss_bytes):
        self.seconds, self.rss_bytes = seconds, rss_bytes

    def __str__(self):
        return f"{self.seconds:.2f} s, {self.rss_bytes / 1e6:.0f} MB"


def measure(args, folder, chunks):
    """Returns what was measured, in order, and which targets were missed."""
    repository = Repository(folder, args.vault)
    cells, missed = {}, []

    def target(name, shown, reached):
        cells[name] = str(shown)
        if not reached:
            missed.append(f"{name} at {chunks / 1e6:g} million: {shown}")

    def light(shown):
        return shown.rss_bytes <= RSS_BYTES_TARGET

    stream = ("snapshot", "stdin", "--name", "stream", "-q")
    before = None
    if args.stream:
        repository.vault(*stream, stdin=args.stream)
        before = repository.median(args.runs, *stream, stdin=args.stream)
        cells["unchanged stream, before"] = str(before)
    objects = -(-chunks // CHUNKS_AN_OBJECT)
    repository.fill(objects)
    load = repository.median(1, "show", "latest")
    rate = objects * CHUNKS_AN_OBJECT / load.seconds
    stored, local = (bytes_in(os.path.join(folder, name)) / 1e6 for name in ("repo/index", ".cache"))
    cells["index objects"] = f"{objects} of {stored:.0f} MB"
    cells["local index"] = f"{local:.0f} MB"
    target("the first command, which loads the index", load, rate >= CHUNKS_A_SECOND_TARGET and light(load))
    cells["chunks a second"] = f"{rate:,.0f}"
    snapshot = ("snapshot", "stdin", "--name", "small", "-q")
    for name, argv in [
        ("`snapshots`", ("snapshots",)),
        ("`show latest`", ("show", "latest")),
        ("`snapshot stdin`, 1 MB", snapshot),
        ("`restore latest --stdout`, 1 MB", ("restore", "latest", "--stdout", "-q")),
    ]:
        shown = repository.median(args.runs, *argv)
        target(name, shown, shown.seconds <= OPENING_SECONDS_TARGET and light(shown))
    if args.stream:
        shown = repository.median(args.runs, *stream, stdin=args.stream)
        slower = shown.seconds / before.seconds
        target("unchanged stream", f"{shown}: {slower:.2f} times", slower <= SLOWER_TARGET and light(shown))
    repository.fill(1)
    cells["one index object more"] = str(repository.median(1, "show", "latest"))
    # The filler knows but one slot. Argon2id takes its time on purpose: no target.
    repository.vault("key", "add", "-q", secret=repository.by_key | {"VAULT_NEW_PASSWORD": "opening"})
    shown = repository.median(args.runs, *snapshot, secret=repository.by_password)
    cells["`snapshot stdin`, 1 MB, by password"] = str(shown)
    repository.lose_half_of_the_index()
    cells["half of them gone"] = str(repository.median(1, "show", "latest"))
    return cells, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, action="append", help="chunks in the index; may be given several times (5,000,000)")
    parser.add_argument("--runs", type=int, default=5, help="times that each command is run warm (5)")
    parser.add_argument("--stream", help="a file that is backed up unchanged, without the chunks and with them")
    parser.add_argument("--vault", default=str(TREE / "target/release/vault"), help="the program")
    args = parser.parse_args()
    sizes, columns, missed = args.chunks or [5_000_000], [], []
    for chunks in sizes:
        with tempfile.TemporaryDirectory(prefix="vault-opening-") as folder:
            cells, short = measure(args, folder, chunks)
        columns.append(cells)
        missed += short
        print(f"{chunks:,} chunks: measured", file=sys.stderr)
    print("| | " + " | ".join(f"{chunks:,} chunks" for chunks in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(cells[name] for cells in columns) + " |")
    print(f"\nMissed: {'; '.join(missed) or 'nothing'}.")


if __name__ == "__main__":
    main()
