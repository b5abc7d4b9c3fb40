#!/usr/bin/env python3
"""Measures vault on a MinIO of the same machine beside vault on a folder, and beside fetching the same objects raw.

Starts a throwaway MinIO (tests/servers/minio.sh) and takes the given files, one after the other, as the days of one stream:
the first snapshot, the next day, the first day restored, all further days, the last day restored, a check of all data. Each
step runs on the folder and on MinIO in turn; what was restored is compared with the original. Then all objects are fetched by
so many plain HTTP connections at once that keep nothing of them: a restore that waits for nothing but the store takes that long.

With --delay-ms or --mbit MinIO is reached through a proxy that passes bytes on so much later each way, and so many a second in all
connections together: a store that is far away. Prints Markdown: seconds as medians, peak memory of vault.

What is to be reached on the same machine: 1.15 times the folder or, where that is more, the raw time over 0.8.
"""

import argparse
import asyncio
import http.client
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import xml.etree.ElementTree

from measure import Command, run, same_bytes
from tools import Vault

TREE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE / "tests/servers"))

import sigv4

SLOWER_TARGET, RAW_TARGET = 1.15, 0.8
RAW_CONNECTIONS = 8


def say(text):
    print(text, file=sys.stderr, flush=True)


def start_minio():
    """A MinIO that ends with this process; returns what its script exports."""
    script = [str(TREE / "tests/servers/minio.sh"), "start", "--owner", str(os.getpid())]
    lines = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    pairs = (line.removeprefix("export ").partition("=") for line in lines)
    return {name: shlex.split(value)[0] for name, _, value in pairs}


class OnS3(Vault):
    """vault with its repository in a bucket."""

    def __init__(self, folder, program, minio, prefix):
        self.minio, self.prefix = minio, prefix
        super().__init__(folder, program)

    def settings(self):
        keep = {name: self.minio[name] for name in ("MINIO_ENDPOINT", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")}
        return super().settings() | keep | {"VAULT_REPO": f"s3://{self.minio['MINIO_BUCKET']}/{self.prefix}"}


# ---- raw requests ----------------------------------------------------------------------------------------------------


class Raw:
    """Plain signed requests on one connection."""

    def __init__(self, minio):
        self.bucket, self.keys = minio["MINIO_BUCKET"], (minio["MINIO_ACCESS_KEY"], minio["MINIO_SECRET_KEY"])
        self.endpoint = minio["MINIO_ENDPOINT"]
        host = urllib.parse.urlsplit(self.endpoint).netloc
        self.connection = http.client.HTTPConnection(host, blocksize=1 << 20)

    def get(self, key="", query=""):
        path = f"/{self.bucket}/{key}" + (f"?{query}" if query else "")
        headers = sigv4.signed_headers("GET", self.endpoint + path, *self.keys, "s3")
        self.connection.request("GET", path, headers=headers)
        answer = self.connection.getresponse()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status} {answer.read()[:300]}")
        return answer

    def list(self, prefix):
        """The keys below a prefix: at most a thousand, all that this needs."""
        query = f"list-type=2&prefix={urllib.parse.quote(prefix, safe='')}"
        root = xml.etree.ElementTree.fromstring(self.get("", query).read())
        space = root.tag[: root.tag.index("}") + 1]
        if root.findtext(f"{space}IsTruncated") != "false":
            raise ValueError("more than a page of objects")
        return [item.findtext(f"{space}Key") for item in root.iter(f"{space}Contents")]


def fetch_raw(minio, prefix):
    """Fetches all packs below a prefix, keeps nothing, and prints the seconds and bytes it took."""
    keys = iter(Raw(minio).list(f"{prefix}/packs/"))
    lock, bytes_each = threading.Lock(), [0] * RAW_CONNECTIONS

    def fetch(number):
        raw, buffer = Raw(minio), memoryview(bytearray(1 << 20))
        while True:
            with lock:
                key = next(keys, None)
            if key is None:
                return
            answer = raw.get(key)
            while length := answer.readinto(buffer):
                bytes_each[number] += length

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(RAW_CONNECTIONS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.monotonic() - began, sum(bytes_each))


def raw_seconds(minio, prefix):
    """In a process of its own: its memory would count as that of the commands measured later."""
    argv = [sys.executable, __file__, "--raw", prefix]
    output = run(Command(argv, env=os.environ | minio)).output
    seconds, fetched = output.split()
    return float(seconds), int(fetched)


# ---- a store that is far away ----------------------------------------------------------------------------------------


class Lane:
    """One direction of the line: when the next byte may leave, and how long it then takes."""

    def __init__(self, delay_seconds, bytes_a_second):
        self.delay_seconds, self.bytes_a_second, self.free_at = delay_seconds, bytes_a_second, 0.0

    def arrives(self, count):
        now = time.monotonic()
        if not self.bytes_a_second:
            return now + self.delay_seconds
        self.free_at = max(self.free_at, now) + count / self.bytes_a_second
        return self.free_at + self.delay_seconds


async def pass_on(lane, reader, writer):
    # What is on the way is bounded, as it is on a line.
    under_way = asyncio.Queue(maxsize=64)

    async def deliver():
        while item := await under_way.get():
            at, data = item
            await asyncio.sleep(at - time.monotonic())
            writer.write(data)
            await writer.drain()
        writer.close()

    task = asyncio.create_task(deliver())
    try:
        while data := await reader.read(64 << 10):
            await under_way.put((lane.arrives(len(data)), data))
    except ConnectionError:
        pass
    await under_way.put(None)
    await asyncio.gather(task, return_exceptions=True)


async def serve_proxy(host, port, delay_seconds, bytes_a_second):
    up, down = Lane(delay_seconds, bytes_a_second), Lane(delay_seconds, bytes_a_second)

    async def connected(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pass_on(up, reader, far_writer), pass_on(down, far_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def start_proxy(minio, args):
    """Returns the proxy and the settings that lead through it."""
    argv = [sys.executable, __file__, "--proxy", "--delay-ms", str(args.delay_ms), "--mbit", str(args.mbit)]
    proxy = subprocess.Popen(argv, env=os.environ | minio, stdout=subprocess.PIPE, text=True)
    return proxy, minio | {"MINIO_ENDPOINT": f"http://127.0.0.1:{int(proxy.stdout.readline())}"}


# ---- the measurement -------------------------------------------------------------------------------------------------


class Results:
    def __init__(self):
        self.measured, self.raw = {}, {}

    def add(self, step, place, measured):
        self.measured.setdefault(step, {}).setdefault(place, []).append(measured)
        say(f"{step}: {place}: {measured.seconds:.2f} s, {measured.cpu_seconds:.2f} s of processor, "
            f"{measured.rss_bytes / 1e6:.0f} MB")

    def seconds(self, step, place):
        return statistics.median(one.seconds for one in self.measured[step][place])

    def rss_bytes(self, step, place):
        return max(one.rss_bytes for one in self.measured[step][place])

    def report(self, far):
        out, missed = [], []
        out.append("| | folder | MinIO | MinIO / folder | raw | memory, folder | memory, MinIO |\n" + "|---" * 7 + "|")
        for step in self.measured:
            folder, s3 = self.seconds(step, "folder"), self.seconds(step, "MinIO")
            raw = f"{statistics.median(self.raw[step]):.2f} s" if step in self.raw else ""
            memory = " | ".join(f"{self.rss_bytes(step, place) / 1e6:.0f} MB" for place in ("folder", "MinIO"))
            out.append(f"| {step} | {folder:.2f} s | {s3:.2f} s | {s3 / folder:.2f} | {raw} | {memory} |")
            allowed = folder * SLOWER_TARGET
            if step in self.raw:
                allowed = max(allowed, statistics.median(self.raw[step]) / RAW_TARGET)
            if s3 > allowed and not far:
                missed.append(f"{step}: {s3:.2f} s, {allowed:.2f} wanted")
        if not far:
            out.append(f"\nMissed: {'; '.join(missed) or 'nothing'}.")
        return "\n".join(out)


def measure(results, places, minio, days, turn, folder):
    """One round of all steps; the places in another order each round."""
    order = list(places.items())
    order = order[turn % 2 :] + order[: turn % 2]
    last = len(days) - 1

    def each(step, action):
        for place, vault in order:
            results.add(step, place, action(vault))

    def snapshot(day):
        return lambda vault: vault.snapshot(str(day), str(days[day]))

    def restore(day):
        def back(vault):
            out = pathlib.Path(folder, "out")
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            measured, path = vault.restore(str(day), out)
            if not same_bytes(path, days[day]):
                raise SystemExit(f"day {day} was not restored as it was")
            return measured

        return back

    def raw(step):
        seconds, fetched = raw_seconds(minio, places["MinIO"].prefix)
        results.raw.setdefault(step, []).append(seconds)
        say(f"{step}: raw: {seconds:.2f} s, {fetched / 1e6:.0f} MB")

    for _, vault in order:
        vault.begin()
    each("first snapshot", snapshot(0))
    each("restore of the first day", restore(0))
    raw("restore of the first day")
    each("check of all data, one day", lambda vault: vault.check())
    raw("check of all data, one day")
    if last >= 1:
        each("the next day", snapshot(1))
    for day in range(2, last + 1):
        each("days after it", snapshot(day))
    if last >= 1:
        each("restore of the last day", restore(last))
        raw("restore of the last day")
        each("check of all data", lambda vault: vault.check())
        raw("check of all data")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("days", nargs="*", help="files: the stream on each day")
    parser.add_argument("--runs", type=int, default=3, help="rounds of all steps (3)")
    parser.add_argument("--delay-ms", type=float, default=0, help="how long a byte to or from MinIO takes, one way (0)")
    parser.add_argument("--mbit", type=float, default=0, help="megabits a second in each direction (0: no bound)")
    parser.add_argument("--vault", default=str(TREE / "target/release/vault"), help="the program")
    parser.add_argument("--raw", help=argparse.SUPPRESS)
    parser.add_argument("--proxy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.raw:
        return fetch_raw(os.environ, args.raw)
    if args.proxy:
        where = urllib.parse.urlsplit(os.environ["MINIO_ENDPOINT"])
        return asyncio.run(serve_proxy(where.hostname, where.port, args.delay_ms / 1000, args.mbit * 1e6 / 8))
    if not args.days:
        parser.error("no files were given")
    minio, far, proxy = start_minio(), bool(args.delay_ms or args.mbit), None
    results = Results()
    try:
        if far:
            proxy, minio = start_proxy(minio, args)
        for turn in range(args.runs):
            with tempfile.TemporaryDirectory(prefix="vault-s3-") as folder:
                places = {
                    "folder": Vault(pathlib.Path(folder, "local"), args.vault),
                    "MinIO": OnS3(pathlib.Path(folder, "s3"), args.vault, minio, f"turn{turn}"),
                }
                measure(results, places, minio, args.days, turn, folder)
    finally:
        if proxy:
            proxy.kill()
    print(results.report(far))


if __name__ == "__main__":
    main()
