#!/usr/bin/env python3
"""Times how long commands take to begin on a repository of millions of chunks.

Makes a repository with `vault init` and a few snapshots, then adds index objects that list as many chunks as are wanted,
written from the pages of format-spec/ (their packs are not there: nothing that is timed looks for them). The first
command loads them into the local index; the others find it warm. What is to be reached: a warm repository opens in under
half a second whatever its size. Prints a Markdown table.

Needs the Python that `tests/servers/python.sh` prints, and some 700 MB for five million chunks.
"""

import argparse
import os
import pathlib
import runpy
import statistics
import struct
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
OPENING_SECONDS_TARGET = 0.5


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=5_000_000, help="chunks in the index (5,000,000)")
    parser.add_argument("--runs", type=int, default=5, help="times that each command is run warm (5)")
    parser.add_argument("--vault", default=str(TREE / "target/release/vault"), help="the program")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vault-opening-") as folder:
        measure(args, folder)


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


def measure(args, folder):
    key = os.urandom(32)
    files = {name: os.path.join(folder, name) for name in ("key", "data", "repo")}
    pathlib.Path(files["key"]).write_bytes(key)
    os.chmod(files["key"], 0o600)
    env = {"HOME": folder, "PATH": os.environ["PATH"], "VAULT_REPO": files["repo"]}

    def vault(*argv, secret={"VAULT_KEY_FILE": files["key"]}):
        # Other data each time, which must be looked up and is not found.
        pathlib.Path(files["data"]).write_bytes(os.urandom(1_000_000))
        return run(Command([args.vault, *argv], env=env | secret, stdin=files["data"], stdout=os.devnull))

    vault("init", "-q")
    for _ in range(3):
        vault("snapshot", "stdin", "--name", "small", "-q")
    objects = -(-args.chunks // CHUNKS_AN_OBJECT)
    in_a_child(lambda: fill(files["repo"], key, objects))
    password = {"VAULT_PASSWORD": "opening", "VAULT_NEW_PASSWORD": "opening"}
    vault("key", "add", "-q", secret={"VAULT_KEY_FILE": files["key"], **password} | {"VAULT_PASSWORD": ""})

    cold = vault("show", "latest")
    stored, local = (bytes_in(os.path.join(folder, name)) / 1e6 for name in ("repo/index", ".cache"))
    print(f"{objects * CHUNKS_AN_OBJECT:,} chunks: {objects} index objects of {stored:.0f} MB, as local index {local:.0f} MB.\n")
    print("| command | seconds, median (least) | peak memory |\n|---|---|---|")
    print(f"| the first one: loads the index | {cold.seconds:.2f} | {cold.rss_bytes / 1e6:.0f} MB |")
    snapshot = ("snapshot", "stdin", "--name", "small", "-q")
    # Argon2id takes its time on purpose, and `stats` reads all of the index: they are not held to the target.
    steps = [
        ("`snapshots`", ("snapshots",), {}, True),
        ("`show latest`", ("show", "latest"), {}, True),
        ("`restore latest --stdout`, 1 MB", ("restore", "latest", "--stdout", "-q"), {}, True),
        ("`snapshot stdin`, 1 MB", snapshot, {}, True),
        ("the same, with a password", snapshot, {"secret": password}, False),
        ("`stats`", ("stats",), {}, False),
    ]
    missed = []
    for name, argv, how, counts in steps:
        runs = [vault(*argv, **how) for _ in range(args.runs)]
        seconds = [one.seconds for one in runs]
        median, rss_bytes = statistics.median(seconds), max(one.rss_bytes for one in runs)
        print(f"| {name} | {median:.2f} ({min(seconds):.2f}) | {rss_bytes / 1e6:.0f} MB |")
        if counts and median > OPENING_SECONDS_TARGET:
            missed.append(name)
    print(f"\nTarget: {OPENING_SECONDS_TARGET} s, {'missed by ' + ', '.join(missed) if missed else 'reached'}.")


if __name__ == "__main__":
    main()
