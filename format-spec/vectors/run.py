#!/usr/bin/env python3
"""Puts the vectors of a folder to ../reader.py. Layout of the files: README.md."""
import json, os, sys, tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.dont_write_bytecode = True
import blake3
import reader
from reader import Cursor, Fault, Keys, need

MASKS = {7: 0x18035100, 8: 0x1800035300, 9: 0x19000353000, 10: 0x590003530000, 11: 0xd90003530000,
         12: 0xd90103530000, 13: 0xd90303530000, 14: 0xd90313530000, 15: 0xd90f03530000, 16: 0xd90303537000,
         17: 0xd90703537000, 18: 0xd90707537000, 19: 0xd91707537000, 20: 0xd91747537000, 21: 0xd91767537000}

def expand(value):
    if type(value) is str:
        return bytes.fromhex(value)
    if type(value) is list:
        return b"".join(map(expand, value))
    if "text" in value:
        return value["text"].encode()
    if "repeat" in value:
        return bytes.fromhex(value["repeat"]) * value["times"]
    return blake3.blake3(value["noise"].encode()).digest(length=value["bytes"])

def fact(data):
    return data.hex() if len(data) <= 64 else f"{len(data)} bytes, BLAKE3 {blake3.blake3(data).hexdigest()}"

class Given(dict):
    def bytes(self, name):
        return expand(self[name]) if name in self else None

    def keys(self):
        return Keys(self.bytes("master"), self.bytes("repository"), self["epoch"])

def keys(given):
    keys, data = given.keys(), given.bytes("data")
    names = ("chunk-id", "list-id", "blob-list", "config-mac")
    header = b"VLT1" + bytes([4, 1, 1, 0]) + keys.epoch.to_bytes(4, "little") + len(data).to_bytes(4, "little")
    associated = b"vault/obj/1" + keys.repository + header + bytes(32)
    return {"subkeys": {purpose: keys.sub(purpose).hex() for purpose in (*reader.KINDS.values(), "nonce", *names)},
            **{purpose: keys.name(purpose, data).hex() for purpose in names},
            "cdc-table": fact(keys.sub("cdc-table", 2048)),
            "nonce": keys.name("nonce", bytes(32) + associated + data)[:24].hex()}

def config(given):
    unlock = lambda repository: Keys(given.bytes("master"), repository, given["epoch"])
    return {"repository": reader.parse_config(given.bytes("bytes"), unlock)[0]["repository"]}

def slot(given):
    secrets = given.bytes("password"), given.bytes("key_file")
    opened = reader.open_slot(given.bytes("bytes"), given.bytes("repository"), given.bytes("slot"), *secrets)
    return {"master": opened[0].hex(), "epoch": opened[1], "label": opened[2]}

def box(given):
    plain = reader.open_box(given.bytes("bytes"), given.keys(), given["kind"], given.bytes("object_id"))
    return {"plaintext": fact(plain)}

def contents(given):
    cursor = Cursor(given.bytes("bytes"), "contents")
    blob = reader.parse_contents(cursor)
    need(cursor.at == len(cursor.data), "contents: bytes after their end")
    return {"kind": blob.kind, "depth": blob.depth, "chunks": len(blob.chunks), "bases": len(blob.bases),
            "bytes": sum(size for _id, size in blob.chunks)}

def blob(given):
    listed, bases = reader.parse_contents(Cursor(given.bytes("contents"), "contents")), map(expand, given["bases"])

    def read_base(chunk_id, size):
        found = next(bases, None)
        need(found is not None and len(found) == size, f"base {chunk_id.hex()}: not found")
        return found
    opened = reader.open_blob(given.bytes("bytes"), given.keys(), listed, read_base)
    return {"plaintext": fact(b"".join(opened[chunk_id] for chunk_id, _size in listed.chunks))}

def counts(blobs):
    return {"blobs": len(blobs), "chunks": sum(len(blob.chunks) for blob in blobs)}

def directory(given):
    return counts(reader.parse_directory(given.bytes("bytes"), given["end"]))

def pack(given):
    data = given.bytes("bytes")
    return counts(reader.read_directory(len(data), lambda at, size: data[at:at + size], given.keys())[1])

def index(given):
    superseded, packs = reader.parse_index(given.bytes("bytes"))
    return {"supersedes": len(superseded), "packs": len(packs), "blobs": sum(len(blobs) for *_, blobs in packs.values())}

def manifest(given):
    value = reader.parse_manifest(given.bytes("bytes"))
    depth, entries = value["stream"]
    return {"source": value["source"], "items": value["items"], "depth": depth, "entries": len(entries)}

def item(given):
    value = reader.parse_item(given.bytes("bytes"))
    depth, entries = value["entries"]
    return {"path": value["path"], "bytes": value["bytes"], "depth": depth, "entries": len(entries)}

def record(given):
    value = reader.parse_record(given.bytes("bytes"), given["kind"])
    if given["kind"] == 8:
        return {"backups": [gone["id"] for gone in value["backups"]]}
    return {name: value[name] for name in ({6: "packs", 7: "host_id"}[given["kind"]],)}

def cut(given):
    """FastCDC as chunking.md has it: a reader of backups needs none of this, a writer does."""
    low, mean, high = (given["geometry"][name] for name in ("min", "avg", "max"))
    known = given["geometry"]["chunker"] == 1 and all(size % 2 == 0 for size in (low, mean, high))
    need(known and 64 <= low < mean < high <= 1 << 20 and mean >= 256, "geometry: not one to cut by", "unsupported")
    words = given.keys().sub("cdc-table", 2048)
    table = [int.from_bytes(words[at:at + 8], "little") for at in range(0, 2048, 8)]
    bits = mean.bit_length() - 1
    bits += mean * mean >= 1 << (2 * bits + 1)  # the nearest power of two
    data, lengths, start = given.bytes("bytes"), [], 0
    while start < len(data):
        left = min(len(data) - start, high)
        length, h = left, 0
        for at in range(low, left - 1, 2):
            mask = MASKS[bits + 1 if at < mean else bits - 1]
            h = (h << 2) + (table[data[start + at]] << 1) & 2 ** 64 - 1
            if h & mask << 1 == 0:
                length = at
                break
            h = h + table[data[start + at + 1]] & 2 ** 64 - 1
            if h & mask == 0:
                length = at + 1
                break
        lengths.append(length)
        start += length
    return {"lengths": lengths}

def escape(given):
    name = given["name"]
    text = "".join(f"%{ord(c):02X}" if c in "%/\x7f" or c < " " else c for c in name)
    return {"component": {"": "%", ".": "%2E", "..": "%2E."}.get(name, text)}

def repository(given):
    with tempfile.TemporaryDirectory() as folder:
        for name, data in {**given["objects"], **given["put"]}.items():
            if name not in given["remove"]:
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(expand(data))
        repo = reader.Repository(folder, None, given.bytes("key_file"))
        backups = [{"id": manifest["id"], "items": [
            {"path": item["path"], "data": fact(b"".join(reader.walk_item(item, repo.read_chunk)))}
            for item in reader.walk_items(manifest, repo.read_chunk)]} for manifest in repo.manifests()]
        for fault in repo.faults:
            raise fault  # the reader gets along without an index, and says what is wrong with it
        return {"backups": backups}

OBJECTS = {"keys": keys, "config": config, "slot": slot, "box": box, "frame": box, "contents": contents, "blob": blob,
           "directory": directory, "pack": pack, "index": index, "manifest": manifest, "item": item, "record": record,
           "cut": cut, "escape": escape, "repository": repository}

def run(folder=os.path.dirname(os.path.abspath(__file__))):
    total = wrong = 0
    for name in sorted(name for name in os.listdir(folder) if name.endswith(".json")):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            group = json.load(file)
        for case in group["cases"]:
            try:
                outcome, facts = "ok", OBJECTS[group["object"]](Given({**group["given"], **case["given"]}))
            except Fault as fault:
                outcome, facts = fault.outcome, str(fault)
            total += 1
            if outcome != case["expect"] or outcome == "ok" and facts != case["facts"]:
                wrong += 1
                print(f"{group['object']}, {case['name']!r}: {case['expect']} expected, {outcome}: {facts}")
    print(f"{total} cases, {wrong} wrong")
    return 1 if wrong or not total else 0

if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
