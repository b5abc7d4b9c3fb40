#!/usr/bin/env python3
"""Measures what the order of a table's rows costs: as they lie (heap) against by primary key, without and with deltas.

Makes tables that live through some days, one kind of change each, vacuumed and analyzed every night as autovacuum would:
  scattered       bigint key; 1 % of the rows, anywhere, are updated
  recent          bigint key; of the newest 5 % a fifth is updated, 1 % are added
  queue           bigint key; the oldest fifth leaves, as many come, a twentieth is updated
  reloaded        bigint key; all rows are loaded anew in another order, 1 % of them changed
  uuid-recent     random uuids as key; of the newest 5 % a fifth is updated, 1 % are added
  uuid-scattered  random uuids as key; 1 % of the rows, anywhere, are updated
Each day every table is read by COPY in either order, as `vault snapshot postgres` would read it (with the server told to
sort if the key is not in order), into a repository of its own for each order with and without deltas. Prints Markdown: what a
day adds, the seconds of COPY alone and of the whole snapshot, each as the median of the days, and pg_stats.correlation of
the key on each day. With --sorts, how long the server takes to bring tables of random keys into order, by size.

The server is that of PGHOST, PGPORT, PGUSER and PGPASSWORD if they are set, else a throwaway one (tests/servers/postgres.sh).
1 MB is 1,000,000 bytes.
"""

import argparse
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from measure import Command, bytes_in, run

TREE = pathlib.Path(__file__).resolve().parent.parent
DATABASE = "vault_bench_row_order"
COLUMNS = "state text not null, amount numeric not null, at timestamptz not null, note text not null"
# Values of a row from a number: words for a note, digits for the rest. About 200 bytes a row.
VALUES = """(array['new','paid','sent','done'])[1 + {n} % 4], (abs(hashint8({n})) % 1000000) / 100.0,
    timestamptz '2024-01-01' + {n} * interval '37 seconds', (select string_agg((array['order','of','a','customer','was',
    'delivered','late','because','the','warehouse','had','no','stock','left','and','address','changed'])[1 +
    abs(hashint8extended({n}, w)) % 17], ' ') || ' ' || md5({n}::text) from generate_series(1, 12) w)"""
UPDATE = "amount = amount + {day}, state = 'done', note = 'day {day}: ' || md5((hashtext(key::text) + {day})::text) || substr(note, 20)"
ANY_1_PERCENT = "abs(hashint8extended(hashtext(key::text), {day})) % 100 = 0"
ANY_5TH = "abs(hashint8extended(hashtext(key::text), {day})) % 5 = 0"

# What a day does, as SQL: {rows} rows at first, {day} from 1 on.
SERIAL, RANDOM = "key bigint", "key uuid"
KINDS = {
    "scattered": (SERIAL, ["update {table} set " + UPDATE + " where " + ANY_1_PERCENT]),
    "recent": (
        SERIAL,
        [
            "update {table} set " + UPDATE + " where key > {rows} * (0.95 + {day} * 0.01) and " + ANY_5TH,
            "insert into {table} select n, {values} from generate_series({rows} * (100 + {day} - 1) / 100 + 1, "
            "{rows} * (100 + {day}) / 100) n",
        ],
    ),
    "queue": (
        SERIAL,
        [
            "delete from {table} where key <= {rows} * {day} / 5",
            "update {table} set " + UPDATE + " where abs(hashint8extended(key, {day})) % 20 = 0",
            "insert into {table} select n, {values} from generate_series({rows} * ({day} + 4) / 5 + 1, "
            "{rows} * ({day} + 5) / 5) n",
        ],
    ),
    "reloaded": (
        SERIAL,
        [
            "create table fresh as select * from {table} order by hashint8extended(key, {day})",
            "truncate {table}",
            "insert into {table} select * from fresh",
            "drop table fresh",
            "update {table} set " + UPDATE + " where " + ANY_1_PERCENT,
        ],
    ),
    "uuid-recent": (
        RANDOM,
        [
            "update {table} set " + UPDATE + " where at > timestamptz '2024-01-01' + {rows} * (0.95 + {day} * 0.01) "
            "* interval '37 seconds' and " + ANY_5TH,
            "insert into {table} select md5(n || 'key')::uuid, {values} from generate_series({rows} * (100 + {day} - 1) "
            "/ 100 + 1, {rows} * (100 + {day}) / 100) n",
        ],
    ),
    "uuid-scattered": (RANDOM, ["update {table} set " + UPDATE + " where " + ANY_1_PERCENT]),
}
ORDERS = {"heap": "", "key": " order by key"}
SORT = "set enable_indexscan = off"
CORRELATION_MIN = 0.8
DELTAS = ("off", "auto")


def say(text):
    print(text, file=sys.stderr, flush=True)


def use_server():
    """Makes sure that the environment names a server; a throwaway one ends with this process."""
    if "PGHOST" not in os.environ:
        script = [str(TREE / "tests/servers/postgres.sh"), "start", "--owner", str(os.getpid())]
        for line in subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = shlex.split(value)[0]
    # As the sessions of vault; a scan that begins somewhere would be another order.
    os.environ["PGOPTIONS"] = "-c synchronize_seqscans=off -c client_min_messages=warning"


def psql(*statements, database=DATABASE):
    argv = ["psql", "-XqtA", "-v", "ON_ERROR_STOP=1", "-d", database]
    for statement in statements:
        argv += ["-c", statement]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def make(kind, rows):
    table, key = quoted(kind), KINDS[kind][0]
    value = "n" if key == SERIAL else "md5(n || 'key')::uuid"
    psql(
        f"create table {table} ({key} primary key, {COLUMNS}) with (autovacuum_enabled = off)",
        f"insert into {table} select {value}, {VALUES.format(n='n')} from generate_series(1, {rows}) n",
    )


def live(kind, rows, day):
    facts = {"table": quoted(kind), "rows": rows, "day": day, "values": VALUES.format(n="n")}
    psql(*(statement.format(**facts) for statement in KINDS[kind][1]))


def quoted(kind):
    return f'"{kind}"'


class Store:
    """A repository for one table in one order."""

    def __init__(self, vault, folder, kind, order, delta):
        self.vault, self.kind, self.order, self.delta = vault, kind, order, delta
        self.repository = folder / f"{kind}-{order}-{delta}"
        # Argon2id would be half of a short snapshot.
        key = folder / "key"
        key.write_bytes(bytes(32))
        key.chmod(0o600)
        self.env = dict(os.environ, PGDATABASE=DATABASE, VAULT_REPO=str(self.repository), VAULT_KEY_FILE=str(key))
        self.env |= {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
        self.added, self.seconds, self.copy_seconds = [], [], []
        run(Command([vault, "init"], env=self.env))

    def snapshot(self, correlation):
        before = bytes_in(self.repository)
        copy = copying(self.kind, ORDERS[self.order], correlation < CORRELATION_MIN)
        argv = [self.vault, "snapshot", "-q", "--delta", self.delta, "stdin", "--name", self.kind, "--", *copy]
        self.seconds.append(run(Command(argv, env=self.env)).seconds)
        self.added.append(bytes_in(self.repository) - before)
        if self.delta == DELTAS[0]:
            self.copy_seconds.append(run(Command(copy, env=self.env, stdout="/dev/null")).seconds)


def copying(kind, order, sort):
    """The command that copies a table out."""
    statement = f"copy (select * from {quoted(kind)}{order}) to stdout"
    return ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", *(["-c", SORT] if sort and order else []), "-c", statement]


def sorts(rows_each):
    """Tables of random keys by size: copied as they lie, by the index as the server plans it, and sorted."""
    print("| rows | MB | as they lie, s | by key as planned, s | sorted, s | temporary files, MB |")
    print("|---|---|---|---|---|---|")
    env = dict(os.environ, PGDATABASE=DATABASE)
    written = "select temp_bytes from pg_stat_database where datname = current_database()"
    for rows in rows_each:
        make("uuid-scattered", rows)
        psql(f"vacuum analyze {quoted('uuid-scattered')}")
        seconds, temporary = {}, 0
        for order, sort in [("", False), (ORDERS["key"], False), (ORDERS["key"], True)]:
            before = int(psql("select pg_stat_force_next_flush()", written).split()[-1])
            command = Command(copying("uuid-scattered", order, sort), env=env, stdout="/dev/null")
            seconds[order, sort] = statistics.median(run(command).seconds for _ in range(3))
            time.sleep(2)  # the server's statistics come late
            temporary = (int(psql(written)) - before) / 3
        size = int(psql(f"select pg_table_size('{quoted('uuid-scattered')}')"))
        cells = [f"{rows:,}", f"{size / 1e6:.0f}", *(f"{each:.1f}" for each in seconds.values()), f"{temporary / 1e6:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        psql(f"drop table {quoted('uuid-scattered')}")


def report(kinds, stores, facts):
    mb = lambda count: f"{count / 1e6:.1f}"
    print("| table | correlation | order | MB added a day, without deltas | with | COPY, s | snapshot without deltas, s | with |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in kinds:
        for order in ORDERS:
            off, auto = (stores[kind, order, delta] for delta in DELTAS)
            later = [statistics.median(store.added[1:]) for store in (off, auto)]
            seconds = [statistics.median(store.seconds[1:]) for store in (off, auto)]
            cells = [kind, " ".join(f"{each:.2f}" for each in facts[kind]), order, mb(later[0]), mb(later[1])]
            cells += [f"{statistics.median(off.copy_seconds[1:]):.2f}", *(f"{each:.2f}" for each in seconds)]
            print("| " + " | ".join(cells) + " |")
    for kind in kinds:
        each = {f"{order}, {delta}": " ".join(map(mb, stores[kind, order, delta].added)) for order in ORDERS for delta in DELTAS}
        say(f"{kind}: " + "; ".join(f"{name}: {days}" for name, days in each.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vault", default=str(TREE / "target/release/vault"), help="program to measure")
    parser.add_argument("--rows", type=int, default=600_000, help="rows of each table at first, about 220 bytes each")
    parser.add_argument("--days", type=int, default=6)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind of table; may be given more than once")
    parser.add_argument("--sorts", type=int, action="append", metavar="ROWS", help="times sorting a table of so many rows; may be given more than once")
    arguments = parser.parse_args()
    use_server()
    kinds = arguments.kind or list(KINDS)
    psql(f"drop database if exists {DATABASE}", f"create database {DATABASE}", database="postgres")
    if arguments.sorts:
        sorts(arguments.sorts)
        psql(f"drop database {DATABASE}", database="postgres")
        return
    facts = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="vault-row-order-") as folder:
        folder = pathlib.Path(folder)
        stores = {
            (kind, order, delta): Store(arguments.vault, folder, kind, order, delta)
            for kind in kinds
            for order in ORDERS
            for delta in DELTAS
        }
        for kind in kinds:
            make(kind, arguments.rows)
        for day in range(arguments.days + 1):
            for kind in kinds:
                if day:
                    live(kind, arguments.rows, day)
                psql(f"vacuum analyze {quoted(kind)}")
                correlation = f"select correlation from pg_stats where tablename = '{kind}' and attname = 'key'"
                facts[kind].append(float(psql(correlation)))
                for order in ORDERS:
                    for delta in DELTAS:
                        stores[kind, order, delta].snapshot(facts[kind][-1])
            say(f"day {day} is stored")
        size = psql(*(f"select pg_size_pretty(pg_table_size('{quoted(kind)}'))" for kind in kinds))
        say("sizes: " + ", ".join(size.split("\n")))
        report(kinds, stores, facts)
    psql(f"drop database {DATABASE}", database="postgres")


if __name__ == "__main__":
    main()
