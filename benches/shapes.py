#!/usr/bin/env python3
"""Measures what deltas save, or cost, on data of other kinds than dumps of tables whose rows change here and there.

Makes two days of each kind, as files of about --mb:
  sqlite       an SQLite file with an index: 1 % of the rows, anywhere, are updated, 0.5 % deleted, 1 % added; no VACUUM
  pages        a base backup of a PostgreSQL server, as tar: 1 % of a table's rows, anywhere, are updated, then it is vacuumed
  vectors      float32 vectors of Gaussian noise, laid out as a flat index of FAISS: 1 % are computed anew, 1 % appended
  wide         a dump with JSON documents of 20 kB of words as rows: one field of 2 % of them is written anew
  reencrypted  a dump of which one column, of 64 hexadecimal digits, is new in every row; the others stay
  stamped      a dump of rows of 130 bytes: the time at which a nightly job looked at them is new in every one
  grown        a dump of rows of 90 bytes, to which a column is added that is empty in all of them
  emptied      a dump of a queue: every day all rows are others, of the same form
  noise        random bytes, every day others: nothing can be saved
Both days are taken by `vault snapshot stdin` into two repositories, one with deltas and one with `--delta off`. These are
copies of one that was empty: the same keys, so the same cut points, and what differs is due to deltas alone. The second day
is restored from both and compared. Prints Markdown. What is to be reached: deltas add at most 2 % more than no deltas.

The server of `pages` is a throwaway one (tests/servers/postgres.sh). 1 MB is 1,000,000 bytes.
"""

import argparse
import array
import datetime
import itertools
import json
import os
import pathlib
import shutil
import sqlite3
import statistics
import struct
import subprocess
import tempfile
from random import Random

import row_order
from measure import Command, bytes_in, run, same_bytes
from row_order import DELTAS, TREE, say

RATIO_MAX = 1.02
LETTERS = Random("words")
WORDS = ["".join(LETTERS.choices("eeetaaoinshrdlucmfwypvbgk", k=LETTERS.randint(2, 10))) for _ in range(5_000)]
WORDS_UP_TO = list(itertools.accumulate(1 / rank for rank in range(10, 10 + len(WORDS))))  # common ones and rare ones
VECTOR_NUMBERS = 768
FIELDS, FIELD_WORDS = 20, 155
# The catalogs of an empty server, and what a row of row_order.py takes on pages, its part of the index included.
CATALOG_BYTES, PAGED_ROW_BYTES = 23_000_000, 240


def words(random, count):
    return " ".join(random.choices(WORDS, cum_weights=WORDS_UP_TO, k=count))


def order(number):
    """The columns of a row of some 200 bytes; a number has always the same."""
    random = Random(number)
    at = datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=37 * number)
    amount = random.randrange(10**8) / 100
    return [str(number), random.choice(["new", "paid", "sent", "done"]), f"{amount:.2f}", str(at), words(random, 25)]


def line(columns):
    return "\t".join(columns) + "\n"


def rows_in(size, row):
    return int(size / statistics.mean(len(row(number)) for number in range(1_000)))


def some(rows, share, what):
    """A share of the numbers below `rows`: others for everything that is done to them."""
    return Random(what).sample(range(rows), int(rows * share))


def written(folder, rows_of):
    """Writes the lines that `rows_of` gives for each day."""
    days = [folder / "day0", folder / "day1"]
    for day, path in enumerate(days):
        with open(path, "w") as file:
            file.writelines(rows_of(day))
    return days


# What each kind makes: two files in a folder, of about `size` bytes.


def sqlite(folder, size):
    days, rows = [folder / "day0", folder / "day1"], rows_in(size, lambda number: line(order(number)) + " " * 40)
    insert = "insert into orders values (?, ?, ?, ?, ?)"
    with sqlite3.connect(days[0]) as db:
        db.execute("create table orders (key integer primary key, state text, amount real, at text, note text)")
        db.executemany(insert, map(order, range(rows)))
        db.execute("create index orders_at on orders (at)")
    db.close()
    shutil.copy(*days)
    with sqlite3.connect(days[1]) as db:
        update = "update orders set state = ?, amount = ?, note = ? where key = ?"
        others = (order(rows * 2 + number) for number in range(rows))
        changed = ((state, amount, note, key) for (_, state, amount, _, note), key in zip(others, some(rows, 0.01, "update")))
        db.executemany(update, changed)
        db.executemany("delete from orders where key = ?", ((key,) for key in some(rows, 0.005, "delete")))
        db.executemany(insert, map(order, range(rows, rows + rows // 100)))
    db.close()
    return days


def pages(folder, size):
    days, rows = [folder / "day0", folder / "day1"], int((size - CATALOG_BYTES) / PAGED_ROW_BYTES)
    os.environ.pop("PGHOST", None)  # a base backup has all databases of a server: not of one that is there for others
    row_order.use_server()
    try:
        row_order.psql(f"create database {row_order.DATABASE}", database="postgres")
        row_order.make("scattered", rows)
        for day, path in enumerate(days):
            if day:
                row_order.live("scattered", rows, day)
            row_order.psql("vacuum analyze scattered")
            # The log is not in it: vault would have it from elsewhere. What is backed up lies on the pages.
            run(Command(["pg_basebackup", "-D", "-", "-Ft", "-X", "none", "-c", "fast"], env=dict(os.environ), stdout=path))
    finally:
        script = str(TREE / "tests/servers/postgres.sh")
        subprocess.run([script, "stop", os.environ["VAULT_SERVER_DIR"]], check=True)
        del os.environ["PGHOST"]
    return days


def vectors(folder, size):
    days, count = [folder / "day0", folder / "day1"], int(size / (VECTOR_NUMBERS * 4))
    random = Random("vectors")

    def vector(_):
        return array.array("f", (random.gauss(0, 1) for _ in range(VECTOR_NUMBERS))).tobytes()

    def header(count):
        return struct.pack("<4siqqq?iQ", b"IxF2", VECTOR_NUMBERS, count, 1 << 20, 1 << 20, True, 1, count * VECTOR_NUMBERS)

    with open(days[0], "wb") as file:
        file.write(header(count))
        file.writelines(map(vector, range(count)))
    shutil.copy(*days)
    with open(days[1], "r+b") as file:
        file.write(header(count + count // 100))
        for at in some(count, 0.01, "anew"):
            file.seek(len(header(0)) + at * VECTOR_NUMBERS * 4)
            file.write(vector(at))
        file.seek(0, os.SEEK_END)
        file.writelines(map(vector, range(count // 100)))
    return days


def wide(folder, size):
    def document(number, edited=False):
        random = Random(number)
        fields = {f"part{each}": words(random, FIELD_WORDS) for each in range(FIELDS)}
        if edited:
            fields[f"part{random.randrange(FIELDS)}"] = words(random, FIELD_WORDS)
        return line([str(number), json.dumps(fields)])

    rows = rows_in(size, document)
    edited = set(some(rows, 0.02, "edit"))
    return written(folder, lambda day: (document(number, day and number in edited) for number in range(rows)))


def reencrypted(folder, size):
    def secret(number, random):
        columns = order(number)
        return line([*columns[:2], random.randbytes(32).hex(), *columns[2:]])

    rows = rows_in(size, lambda number: secret(number, Random(0)))

    def day_of(day):
        random = Random(f"day {day}")
        return (secret(number, random) for number in range(rows))

    return written(folder, day_of)


def stamped(folder, size):
    def looked_at(number, day, random):
        microseconds = number * 10_000 + random.randrange(10_000)
        at = datetime.datetime(2026, 11, 20 + day, 2) + datetime.timedelta(microseconds=microseconds)
        columns = order(number)
        return line([*columns[:4], words(Random(number), 8), str(at), columns[1]])

    rows = rows_in(size, lambda number: looked_at(number, 0, Random(0)))

    def day_of(day):
        random = Random(f"day {day}")
        return (looked_at(number, day, random) for number in range(rows))

    return written(folder, day_of)


def grown(folder, size):
    def row(number, added):
        return line([*order(number)[:4], words(Random(number), 6), *added])

    rows = rows_in(size, lambda number: row(number, []))
    return written(folder, lambda day: (row(number, ["\\N"] * day) for number in range(rows)))


def emptied(folder, size):
    rows = rows_in(size, lambda number: line(order(number)))
    return written(folder, lambda day: (line(order(number)) for number in range(rows * day, rows * (day + 1))))


def noise(folder, size):
    days = [folder / "day0", folder / "day1"]
    for path in days:
        with open(path, "wb") as file:
            file.writelines(os.urandom(1_000_000) for _ in range(size // 1_000_000))
    return days


KINDS = {each.__name__: each for each in (sqlite, pages, vectors, wide, reencrypted, stamped, grown, emptied, noise)}


class Store:
    """A repository, and what each snapshot in it took."""

    def __init__(self, vault, folder, delta):
        self.vault, self.delta, self.folder = vault, delta, folder
        self.repository, self.added, self.taken = folder / "repository", [], []
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "VAULT_REPO": str(self.repository)}
        self.env["VAULT_KEY_FILE"] = str(folder.parent / "key")  # Argon2id would be half of a short snapshot

    def snapshot(self, path):
        before = bytes_in(self.repository)
        argv = [self.vault, "snapshot", "-q", "--delta", self.delta, "stdin", "--name", "stream"]
        self.taken.append(run(Command(argv, env=self.env, stdin=path)))
        self.added.append(bytes_in(self.repository) - before)

    def compare(self, path):
        """Ends the program unless the last snapshot gives back what is in this file."""
        restored = self.folder / "restored"
        argv = [self.vault, "restore", "-q", self.taken[-1].output.strip(), "--stdout"]
        run(Command(argv, env=self.env, stdout=restored))
        if not same_bytes(path, restored):
            raise SystemExit(f"{restored.parent}: what was restored is not what went in")


def measure(vault, make, size):
    """Returns the sizes of both days, and the stores without deltas and with, which are gone by then."""
    with tempfile.TemporaryDirectory(prefix="vault-shapes-") as folder:
        folder = pathlib.Path(folder)
        (folder / "key").write_bytes(os.urandom(32))
        (folder / "key").chmod(0o600)
        stores = [Store(vault, folder / delta, delta) for delta in DELTAS]
        run(Command([vault, "init", "-q"], env=stores[0].env))
        shutil.copytree(stores[0].repository, stores[1].repository)
        days = make(folder, size)
        for path in days:
            for store in stores:
                store.snapshot(path)
        for store in stores:
            store.compare(days[1])
        return [path.stat().st_size for path in days], stores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vault", default=str(TREE / "target/release/vault"), help="program to measure")
    parser.add_argument("--mb", type=int, default=100, help="MB of a day, about (100)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be given more than once")
    arguments = parser.parse_args()
    mb, missed = lambda count: f"{count / 1e6:.2f}", []
    print("| | MB of a day | MB added on the second, without deltas | with | ratio "
          "| first snapshot without, s | with | second without, s | with | peak memory without, MB | with |")
    print("|---" * 11 + "|")
    for kind in arguments.kind or KINDS:
        sizes, (off, auto) = measure(arguments.vault, KINDS[kind], arguments.mb * 1_000_000)
        ratio = auto.added[1] / off.added[1]
        cells = [kind, f"{sizes[1] / 1e6:.0f}", *(mb(store.added[1]) for store in (off, auto))]
        cells += [f"{ratio:.3f}", *(f"{store.taken[day].seconds:.2f}" for day in (0, 1) for store in (off, auto))]
        cells += [f"{max(taken.rss_bytes for taken in store.taken) / 1e6:.0f}" for store in (off, auto)]
        print("| " + " | ".join(cells) + " |", flush=True)
        if ratio > RATIO_MAX:
            missed.append(f"{kind}: {ratio:.3f}")
        cpu = "; with: ".join(f"{store.taken[1].cpu_seconds:.2f}" for store in (off, auto))
        say(f"{kind}: restored as it was. Processor seconds of the second snapshot, without deltas: {cpu}")
    print(f"\nMissed: {'; '.join(missed) or 'nothing'}.")


if __name__ == "__main__":
    main()
