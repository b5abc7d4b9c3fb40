#!/usr/bin/env python3
"""Makes two PostgreSQL databases, lives some days in them, and writes one plain dump a day.

shop   pgbench accounts (about 1 % of them updated a day, scattered, by pgbench itself), documents of real text
       (Rust and Go sources: 0.5 % edited a day, a few added), JSON events (appended to, a few old ones deleted).
depot  customers under random uuids (1 % changed), a job queue (a sliding window: finished jobs leave, new ones come),
       prices reloaded whole every night in another order with 2 % of them changed, and float vectors (1 % recomputed).

The server is the one of PGHOST, PGPORT, PGUSER and PGPASSWORD. The database is vault_bench_shop or
vault_bench_depot; one that exists is dropped first.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys

# The database of a workload.
DATABASE = "vault_bench_{}"

# Documents of one unit of scale, and what a day adds to them.
DOCUMENT_BYTES = 16_500_000
DOCUMENT_BYTES_A_DAY = 130_000
DOCUMENT_BYTES_MAX = 1_000_000


class Database:
    """A workload's database on the server in the environment, through psql and its relatives."""

    def __init__(self, workload):
        self.name = DATABASE.format(workload)
        self.env = dict(os.environ, PGDATABASE=self.name, PGOPTIONS="-c client_min_messages=warning")

    def run(self, *argv, **options):
        subprocess.run(argv, check=True, env=self.env, **options)

    def create(self):
        admin = ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
        self.run(*admin, "-c", f"drop database if exists {self.name}", "-c", f"create database {self.name}")

    def sql(self, text):
        self.run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", input=text.encode(), stdout=subprocess.DEVNULL)

    def copy(self, table, rows):
        """Streams rows, tuples of text, into `table(columns)` by COPY."""
        argv = ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-c", f"copy {table} from stdin"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, env=self.env) as psql:
            for row in rows:
                psql.stdin.write(("\t".join(map(escape, row)) + "\n").encode())
        if psql.returncode:
            sys.exit(f"copy into {table} failed")

    def dump(self, path):
        self.run("pg_dump", "-Fp", "-f", str(path))


def escape(value):
    """A value in COPY's text format. PostgreSQL text cannot hold NUL."""
    text = str(value)
    for plain, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"), ("\0", "")):
        if plain in text:
            text = text.replace(plain, escaped)
    return text


def corpus(bytes_wanted):
    """At least so many bytes of real text, as (name, file) in an order that is the same every time: the sources that a
    machine with Rust and Go has lying about anyway."""
    home = pathlib.Path.home()
    roots = [
        (pathlib.Path(os.environ.get("CARGO_HOME", home / ".cargo")) / "registry" / "src", "*.rs"),
        (pathlib.Path(os.environ.get("GOMODCACHE", home / "go" / "pkg" / "mod")), "*.go"),
        (pathlib.Path("/usr/local/go/src"), "*.go"),
        (pathlib.Path("/usr/lib/go/src"), "*.go"),
        (pathlib.Path("/usr/include"), "*.h"),
        (pathlib.Path(os.__file__).parent, "*.py"),
    ]
    found, bytes_found = [], 0
    for root, pattern in roots:
        if bytes_found >= bytes_wanted:
            break
        for file in sorted(root.rglob(pattern)):
            if file.is_file() and 0 < file.stat().st_size <= DOCUMENT_BYTES_MAX:
                found.append((str(file.relative_to(root)), file))
                bytes_found += file.stat().st_size
    if bytes_found < bytes_wanted:
        print(f"only {bytes_found} bytes of text on this machine to serve as documents, {bytes_wanted} wanted", file=sys.stderr)
    random.Random(1).shuffle(found)
    return found


class Shop:
    name = "shop"

    def __init__(self, scale):
        self.db, self.scale, self.rnd = Database(self.name), scale, random.Random(20)
        self.documents = corpus(scale * (DOCUMENT_BYTES + 10 * DOCUMENT_BYTES_A_DAY))
        self.documents_done = self.events_done = 0

    def documents_added(self, bytes_wanted):
        while bytes_wanted > 0 and self.documents_done < len(self.documents):
            path, file = self.documents[self.documents_done]
            text = file.read_text(encoding="utf-8", errors="replace")
            self.documents_done += 1
            bytes_wanted -= len(text)
            yield self.documents_done, path, text

    def events_added(self, count):
        rnd = self.rnd
        for _ in range(count):
            self.events_done += 1
            payload = {
                "user": rnd.randrange(200_000),
                "session": f"{rnd.getrandbits(128):032x}",
                "page": f"{rnd.choice(('home', 'item', 'cart', 'pay'))}/{rnd.randrange(5000)}",
                "ms": rnd.randrange(3000),
            }
            at = "2026-01-01 00:00:00+00"
            yield self.events_done, at, rnd.choice(("view", "click", "buy")), json.dumps(payload)

    def first_day(self):
        self.db.create()
        self.db.run("pgbench", "-i", "-q", "-s", str(self.scale), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.db.sql(
            """create table documents(id bigint primary key, path text, version int default 1,
                                      updated timestamptz default now(), body text);
               create table events(id bigint primary key, at timestamptz, kind text, payload jsonb);"""
        )
        self.db.copy("documents(id, path, body)", self.documents_added(DOCUMENT_BYTES * self.scale))
        self.db.copy("events", self.events_added(13_334 * self.scale))

    def next_day(self, day):
        """pgbench's own transaction, as often as 1 % of the accounts there are: 100,000 of them for each unit of scale."""
        self.db.run("pgbench", "-n", "-c", "2", "-t", str(500 * self.scale), f"--random-seed={day}",
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.db.copy("documents(id, path, body)", self.documents_added(DOCUMENT_BYTES_A_DAY * self.scale))
        self.db.copy("events", self.events_added(267 * self.scale))
        self.db.sql(
            f"""update documents set version = version + 1, updated = now(), body = body || E'\\n// edited on day {day}'
                 where id % 200 = {day % 200};
                delete from events where id % 997 = {day % 997};"""
        )


class Depot:
    name = "depot"
    dimensions = 384

    def __init__(self, scale):
        self.db, self.scale, self.rnd = Database(self.name), scale, random.Random(30)
        self.customers, self.vectors, self.prices, self.jobs_done = [], [], [], 0

    def uuid(self):
        digits = f"{self.rnd.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def words(self, count):
        syllables = ("ka", "lo", "mi", "ren", "su", "tar", "vo", "wil", "xe", "zan", "bor", "din")
        return " ".join("".join(self.rnd.choices(syllables, k=3)) for _ in range(count))

    def customers_added(self, count):
        for _ in range(count):
            key = self.uuid()
            self.customers.append(key)
            profile = {"language": self.rnd.choice(("en", "de", "fr", "ja")), "limit": self.rnd.randrange(10_000),
                       "note": self.words(6)}
            yield key, f"{key}@example.com", self.words(2), self.words(5), json.dumps(profile)

    def jobs_added(self, count):
        for _ in range(count):
            self.jobs_done += 1
            arguments = {"customer": self.rnd.choice(self.customers), "retries": self.rnd.randrange(4),
                         "token": f"{self.rnd.getrandbits(96):024x}"}
            yield self.jobs_done, self.rnd.choice(("mail", "invoice", "resize")), "done", json.dumps(arguments)

    def vector(self):
        return "{" + ",".join(f"{self.rnd.gauss(0, 0.05):.6f}" for _ in range(self.dimensions)) + "}"

    def vectors_added(self, count):
        for _ in range(count):
            key = self.uuid()
            self.vectors.append(key)
            yield key, self.rnd.choice(self.customers), self.vector()

    def reload_prices(self):
        self.rnd.shuffle(self.prices)
        self.db.sql("truncate prices")
        self.db.copy("prices", self.prices)

    def first_day(self):
        self.db.create()
        self.db.sql(
            """create table customers(id uuid primary key, email text unique, name text, address text, profile jsonb);
               create table jobs(id bigint primary key, kind text, state text, arguments jsonb);
               create table prices(article text, region text, price numeric(12,2), valid_from date);
               create table vectors(id uuid primary key, customer uuid references customers, embedding real[]);"""
        )
        self.db.copy("customers", self.customers_added(10_000 * self.scale))
        self.db.copy("jobs", self.jobs_added(10_000 * self.scale))
        self.db.copy("vectors", self.vectors_added(1_000 * self.scale))
        self.prices = [
            (f"A{article:07d}", region, f"{self.rnd.randrange(100, 1_000_000) / 100:.2f}", "2026-01-01")
            for article in range(3_000 * self.scale)
            for region in ("north", "south", "east", "west", "sea")
        ]
        self.reload_prices()

    def next_day(self, day):
        changed = self.rnd.sample(self.customers, len(self.customers) // 100)
        self.db.sql("create table changed(id uuid)")
        self.db.copy("changed", ((key,) for key in changed))
        self.db.sql(
            f"""update customers set address = address || ' {day}' where id in (select id from changed); drop table changed;
                delete from jobs where id <= {day * 1_000 * self.scale};"""
        )
        self.db.copy("jobs", self.jobs_added(1_000 * self.scale))
        recomputed = self.rnd.sample(self.vectors, len(self.vectors) // 100)
        self.db.sql("create table changed(id uuid, embedding real[])")
        self.db.copy("changed", ((key, self.vector()) for key in recomputed))
        self.db.sql(
            """update vectors set embedding = changed.embedding from changed where vectors.id = changed.id;
               drop table changed;"""
        )
        for at in self.rnd.sample(range(len(self.prices)), len(self.prices) // 50):
            article, region, _, _ = self.prices[at]
            self.prices[at] = (article, region, f"{self.rnd.randrange(100, 1_000_000) / 100:.2f}", f"2026-01-{day % 28 + 1:02d}")
        self.reload_prices()


WORKLOADS = {workload.name: workload for workload in (Shop, Depot)}


def make(name, scale, days, into):
    """Leaves the database as it is on the last day; returns the dumps, `day0.sql` first."""
    into = pathlib.Path(into)
    into.mkdir(parents=True, exist_ok=True)
    workload, dumps = WORKLOADS[name](scale), []
    for day in range(days):
        if day == 0:
            workload.first_day()
        else:
            workload.next_day(day)
        workload.db.sql("vacuum analyze")
        path = into / f"day{day}.sql"
        workload.db.dump(path)
        dumps.append(path)
        print(f"{name} day {day}: {path} {path.stat().st_size} bytes", file=sys.stderr, flush=True)
    return dumps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("folder", help="where the dumps go")
    parser.add_argument("--scale", type=int, default=30, help="size: shop 30 is about 860 MB a dump, depot 30 about 290 MB (default 30)")
    parser.add_argument("--days", type=int, default=3, help="how many days, one dump each (default 3)")
    args = parser.parse_args()
    make(args.workload, args.scale, args.days, args.folder)


if __name__ == "__main__":
    main()
