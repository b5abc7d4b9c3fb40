#!/usr/bin/env python3
"""A long stream made from one file, for measuring memory without a large file on disk.

make FILE COUNT   prints the file COUNT times, each time with its letters and digits exchanged for others, so that it
                  compresses as the file does and no two copies have anything in common
hash              reads a stream and prints its SHA-256
"""

import hashlib
import string
import sys

BLOCK_BYTES = 1 << 20


def rotated(text, by):
    by %= len(text)
    return text[by:] + text[:by]


def exchange(copy):
    """The table of `bytes.translate` for one copy; copies up to 130 differ."""
    plain = string.ascii_lowercase + string.ascii_uppercase + string.digits
    other = rotated(string.ascii_lowercase, copy) + rotated(string.ascii_uppercase, copy) + rotated(string.digits, copy)
    return bytes.maketrans(plain.encode(), other.encode())


def make(path, count):
    out = sys.stdout.buffer
    for copy in range(count):
        table = exchange(copy)
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                out.write(block.translate(table))


def hash_stdin():
    digest = hashlib.sha256()
    while block := sys.stdin.buffer.read(BLOCK_BYTES):
        digest.update(block)
    print(digest.hexdigest())


def main():
    match sys.argv[1:]:
        case ["make", path, count] if count.isdigit():
            make(path, int(count))
        case ["hash"]:
            hash_stdin()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
