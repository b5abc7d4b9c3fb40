#!/usr/bin/env python3
"""Measures what the commands over a whole repository cost when it holds millions of chunks.

Makes a repository with `vault init`, then 200 backups of four databases over fifty days, written from the pages of
format-spec/: index objects, chunk lists, item lines and manifests are real, so that every command can follow them. The
packs with the data are files of the right length without content, which nothing reads that is measured here. Each day
replaces a part of every database; half of the chunks are of the first day. A quarter of the blobs rest on others.

Prints a Markdown table of cost against size. Half of the backups are forgotten and pruned: the first run marks, the
second deletes. Every command is run by a key file, so that Argon2id takes no part in it.

Needs the Python that `tests/servers/python.sh` prints, and 4 GB of disk for twenty million chunks.
"""

import argparse
import base64
import datetime
import json
import os
import pathlib
import struct
import tempfile

import blake3
from measure import Command, bytes_in, run
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt
from opening import Filler, in_a_child

TREE = pathlib.Path(__file__).resolve().parent.parent

# As vault writes them: 64 KiB a chunk, 2 MiB a blob that compresses to half, 16 MiB a pack, 48 Ki chunks an index object.
CHUNK_BYTES, CHUNKS_A_BLOB, STORED_BYTES_A_BLOB = 64 << 10, 32, 1 << 20
BLOBS_A_PACK, PACKS_AN_OBJECT = 16, 96
CHUNKS_A_PACK = CHUNKS_A_BLOB * BLOBS_A_PACK
# What a day replaces, it replaces in runs of so many packs; each run has lists of its own.
PACKS_A_RUN, ENTRIES_A_LIST = 4, 1024
CHUNKS_A_RUN = PACKS_A_RUN * CHUNKS_A_PACK
META_CHUNKS_A_BLOB, META_BLOBS_A_PACK = 50, 8
SOURCES, DAYS = 4, 50
DATA_BLOB, META_BLOB, DIRECTORY, INDEX, MANIFEST = 1, 2, 3, 4, 5
PURPOSES = {META_BLOB: "meta-blob", DIRECTORY: "pack-directory", INDEX: "index", MANIFEST: "manifest"}
RSS_MB_TARGET = 200


class Writer:
    """Writes the objects of a repository: format-spec/."""

    def __init__(self, folder, keys):
        self.folder, self.keys = pathlib.Path(folder), keys
        self.packs, self.blobs, self.chunks = [], [], []
        for name in range(256):
            (self.folder / "packs" / f"{name:02x}").mkdir(parents=True, exist_ok=True)

    def box(self, kind, plain, object_id=bytes(32)):
        header = b"VLT1" + bytes([kind, 1, 1, 0]) + struct.pack("<II", self.keys.epoch, len(plain))
        nonce = os.urandom(24)
        associated = b"vault/obj/1" + self.keys.repository + header + object_id
        return header + nonce + encrypt(plain, associated, nonce, self.keys.sub(PURPOSES[kind]))

    def put(self, folder, data):
        name = blake3.blake3(data).hexdigest()
        (self.folder / folder / name).write_bytes(data)
        return name

    def data_packs(self):
        """A run of packs that hold chunks which nobody has; returns the chunk entries."""
        run, before = [], None
        for number in range(PACKS_A_RUN):
            # The ids are random and the lengths written over every ninth word: nothing is done chunk by chunk.
            entries = bytearray(os.urandom(36 * CHUNKS_A_PACK))
            for at, byte in enumerate(struct.pack("<I", CHUNK_BYTES)):
                entries[32 + at :: 36] = bytes([byte]) * CHUNKS_A_PACK
            rests = number == PACKS_A_RUN - 1
            directory = []
            for blob in range(BLOBS_A_PACK):
                part = slice(blob * 36 * CHUNKS_A_BLOB, (blob + 1) * 36 * CHUNKS_A_BLOB)
                directory.append(struct.pack("<II", blob * STORED_BYTES_A_BLOB, STORED_BYTES_A_BLOB))
                directory.append(struct.pack("<BBHH", DATA_BLOB, rests, CHUNKS_A_BLOB, CHUNKS_A_BLOB if rests else 0))
                directory.append(entries[part])
                directory.append(before[part] if rests else b"")
            directory = b"".join(directory)
            pack, size = os.urandom(32), BLOBS_A_PACK * STORED_BYTES_A_BLOB + 56 + len(directory) + 12
            with open(self.folder / "packs" / pack.hex()[:2] / pack.hex(), "wb") as file:
                file.truncate(size)
            self.list_pack(pack, size, directory)
            run.append(entries)
            before = entries
        return b"".join(run)

    def meta_chunk(self, plain):
        """A chunk of lists or item lines; returns its entry."""
        entry = self.keys.name("list-id", plain) + struct.pack("<I", len(plain))
        self.chunks.append((entry, plain))
        if len(self.chunks) == META_CHUNKS_A_BLOB:
            self.end_blob()
        return entry

    def end_blob(self):
        if self.chunks:
            contents = struct.pack("<BBHH", META_BLOB, 0, len(self.chunks), 0) + b"".join(entry for entry, _ in self.chunks)
            plain = b"".join(plain for _, plain in self.chunks)
            self.blobs.append((contents, self.box(META_BLOB, plain, self.keys.name("blob-list", contents))))
            self.chunks = []
        if len(self.blobs) == META_BLOBS_A_PACK:
            self.end_pack()

    def end_pack(self):
        if not self.blobs:
            return
        directory, offset = [], 0
        for contents, sealed in self.blobs:
            directory.append(struct.pack("<II", offset, len(sealed)) + contents)
            offset += len(sealed)
        directory = b"".join(directory)
        sealed = self.box(DIRECTORY, directory)
        data = b"".join(sealed for _, sealed in self.blobs) + sealed + struct.pack("<I", len(sealed)) + b"VLTPACK1"
        pack = blake3.blake3(data).digest()
        (self.folder / "packs" / pack.hex()[:2] / pack.hex()).write_bytes(data)
        self.list_pack(pack, len(data), directory)
        self.blobs = []

    def list_pack(self, pack, size, directory):
        self.packs.append(pack + struct.pack("<II", size, len(directory)) + directory)
        if len(self.packs) == PACKS_AN_OBJECT:
            self.end_index()

    def end_index(self):
        if self.packs:
            self.put("index", self.box(INDEX, struct.pack("<II", 0, len(self.packs)) + b"".join(self.packs)))
            self.packs = []

    def end(self):
        self.end_blob()
        self.end_pack()
        self.end_index()


def stream(depth, entries):
    return {"depth": depth, "list": base64.b64encode(entries).decode()}


def fill(folder, key, chunks, names):
    """Writes the backups and, into the file `names`, their ids in order."""
    writer = Writer(folder, Filler(folder, key).keys)
    runs = max(DAYS, chunks // SOURCES // CHUNKS_A_RUN)
    first_day = runs - runs // 2
    databases = [[] for _ in range(SOURCES)]
    host, now, ids = os.urandom(16).hex(), datetime.datetime.now(datetime.UTC), []
    for day in range(DAYS):
        for source, lists in enumerate(databases):
            until = first_day + (runs - first_day) * day // (DAYS - 1)
            since = 0 if day == 0 else first_day + (runs - first_day) * (day - 1) // (DAYS - 1)
            for number in range(since, until):
                entries = writer.data_packs()
                parts = [entries[at : at + 36 * ENTRIES_A_LIST] for at in range(0, len(entries), 36 * ENTRIES_A_LIST)]
                lists[number % first_day : number % first_day + 1] = [b"".join(map(writer.meta_chunk, parts))]
            upper = b"".join(lists)
            parts = [upper[at : at + 36 * ENTRIES_A_LIST] for at in range(0, len(upper), 36 * ENTRIES_A_LIST)]
            sums = {"bytes": len(lists) * CHUNKS_A_RUN * CHUNK_BYTES, "bytes_new": (until - since) * CHUNKS_A_RUN * CHUNK_BYTES}
            item = {"path": f"db{source}.sql", "kind": "stream", "hash": os.urandom(32).hex(), **sums}
            item["stream"] = stream(2, b"".join(map(writer.meta_chunk, parts)))
            lines = writer.meta_chunk(json.dumps(item).encode() + b"\n")
            manifest = {
                "vault": 1,
                "time": (now - datetime.timedelta(days=DAYS - day, minutes=-source)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "source": "stdin",
                "name": f"db{source}.sql",
                "host": "bench",
                "host_id": host,
                "seq": len(ids) + 1,
                "previous": ids[-1] if ids else None,
                "parent": None,
                **{name: [] for name in ("tags", "warnings")},
                "tool": "bench",
                **{name: {} for name in ("engine", "consistency", "options")},
                **{"items": 1, "rows": 0, **sums, "bytes_stored": sums["bytes_new"] // 2, "seconds": 1.0},
                "chunkers": [{"chunker": 1, "min": 16384, "avg": 65536, "max": 262144}],
                "item_lines": stream(0, lines),
            }
            ids.append(writer.put("snapshots", writer.box(MANIFEST, json.dumps(manifest).encode())))
    writer.end()
    pathlib.Path(names).write_text("\n".join(ids))


def measure(vault_path, chunks, folder):
    """Makes a repository of so many chunks and runs the commands; returns what each took, by name."""
    key = os.urandom(32)
    files = {name: os.path.join(folder, name) for name in ("key", "data", "repo", "names")}
    pathlib.Path(files["key"]).write_bytes(key)
    os.chmod(files["key"], 0o600)
    pathlib.Path(files["data"]).write_bytes(os.urandom(1_000_000))
    env = {"HOME": folder, "PATH": os.environ["PATH"], "VAULT_REPO": files["repo"], "VAULT_KEY_FILE": files["key"]}

    def vault(*argv):
        return run(Command([vault_path, *argv], env=env, stdin=files["data"], stdout=os.devnull))

    vault("init", "-q")
    vault("snapshot", "stdin", "--name", "small", "-q")
    in_a_child(lambda: fill(files["repo"], key, chunks, files["names"]))
    ids = pathlib.Path(files["names"]).read_text().split()
    half = ids[: len(ids) // 2]
    steps = {
        "the first one of a host: loads the index": ("show", "latest"),
        "`snapshots`": ("snapshots",),
        "`stats`": ("stats",),
        "`diff`, the first and the last of a database": ("diff", ids[0], ids[-SOURCES]),
        "`check`": ("check",),
        f"`forget` of {len(half)} backups": ("forget", *half),
        "`prune`: marks what they alone held": ("prune", "--keep-last", str(len(ids))),
        "`prune --grace 1s`: deletes it": ("prune", "--keep-last", str(len(ids)), "--grace", "1s"),
        "`prune` with nothing to do": ("prune", "--keep-last", str(len(ids))),
        "`check` after that": ("check",),
    }
    taken = {}
    for name, argv in steps.items():
        taken[name] = vault(*argv)
        print(f"{chunks:,}: {name}: {taken[name].seconds:.2f} s, {taken[name].rss_bytes / 1e6:.0f} MB", flush=True)
    print(f"{chunks:,}: local index {bytes_in(os.path.join(folder, '.cache')) / 1e6:.0f} MB\n", flush=True)
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = "1000000,5000000,20000000"
    parser.add_argument("--chunks", default=sizes, help=f"numbers of chunks, with commas between ({sizes})")
    parser.add_argument("--vault", default=str(TREE / "target/release/vault"), help="the program")
    args = parser.parse_args()
    sizes, columns = [int(size) for size in args.chunks.split(",")], []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="vault-scale-") as folder:
            columns.append(measure(args.vault, size, folder))
    print("| | " + " | ".join(f"{size:,} chunks" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for name in columns[0]:
        cells = (f"{column[name].seconds:.2f} s, {column[name].rss_bytes / 1e6:.0f} MB" for column in columns)
        print(f"| {name} | {' | '.join(cells)} |")
    most = max(one.rss_bytes for column in columns for one in column.values()) / 1e6
    print(f"\nTarget: {RSS_MB_TARGET} MB, {'reached' if most < RSS_MB_TARGET else 'missed'}: at most {most:.0f} MB.")


if __name__ == "__main__":
    main()
