#!/usr/bin/env python3
"""Reads a vault repository in a local folder: an independent reader, written from the pages beside it.

Needs Python 3.9 and the packages blake3, zstandard, argon2-cffi and pynacl. Never writes to the repository. The secret
comes from --password-file, --key-file, VAULT_PASSWORD or VAULT_PASSWORD_FILE. Exit codes: 0 ok, 1 other, 2 usage,
4 damaged, 6 restore target, 10 no repository, 12 wrong key, 13 rollback or another repository.
"""
import argparse, base64, collections, contextlib, hmac, json, os, re, runpy, struct, sys
import argon2.low_level, blake3, nacl.exceptions, zstandard
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt

MIB = 1 << 20
CHUNK_MAX, PLAIN_MAX, PACK_MAX, WINDOW_MAX, BASES_MAX = MIB, 8 * MIB, 80 * MIB, 8 * MIB, 4 * MIB
MANIFEST_MAX, LINE_MAX, INLINE_MAX, DEPTH_MAX, CACHE_MAX, BOX_MIN = 4 * MIB, MIB, 4096, 8, 64 * MIB, 56
TIME = r"(?a)\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3])(:[0-5]\d){2}(\.\d+)?Z"
KINDS = dict(enumerate("data-blob meta-blob pack-directory index manifest mark lease removal".split(), 1))

class Fault(Exception):
    """What went wrong: a class of outcome, which the vectors name and which gives the exit code, and a message."""
    CODES = {"usage": 2, "damaged": 4, "target": 6, "no-repository": 10, "wrong-key": 12, "mismatch": 13}
    def __init__(self, outcome, message):
        super().__init__(message)
        self.outcome, self.code = outcome, self.CODES.get(outcome, 1)

def need(truth, message, outcome="damaged"):
    if not truth:
        raise Fault(outcome, message)

class Cursor:
    """Takes fields off the front of a buffer and never reads past its end."""
    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what
    def take(self, size):
        need(size <= len(self.data) - self.at, f"{self.what}: ends too early")
        self.at += size
        return self.data[self.at - size:self.at]
    def ints(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

@contextlib.contextmanager
def damaged(message):
    try:
        yield
    except (ValueError, RecursionError, OSError, zstandard.ZstdError, nacl.exceptions.CryptoError) as error:
        raise Fault("damaged", f"{message}: {error}")

# JSON, parsed strictly and compared with a shape such as "name=text tags=text* parent=hash?"
def is_hex(value, size):
    return type(value) is str and re.fullmatch("[0-9a-f]{%d}" % (2 * size), value) is not None

SHAPES = {"uint": lambda v: type(v) is int and 0 <= v < 2 ** 64, "text": lambda v: type(v) is str,
          "number": lambda v: type(v) in (int, float) and v >= 0, "object": lambda v: type(v) is dict,
          "id": lambda v: is_hex(v, 16), "hash": lambda v: is_hex(v, 32),
          "time": lambda v: type(v) is str and re.fullmatch(TIME, v)}

def parse_json(data, what):
    def once(pairs):
        need(len(dict(pairs)) == len(pairs), f"{what}: a field is there twice")
        return dict(pairs)
    with damaged(f"{what}: not JSON"):
        value = json.loads(data.decode(), object_pairs_hook=once, parse_constant=bytes.fromhex)
        json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    need(type(value) is dict, f"{what}: not a JSON object")
    return value

def fields(value, what, shape):
    """Refuses an object whose fields do not have `shape`; returns them in its order."""
    names = [part.split("=") for part in shape.split()]
    for name, test in names:
        found, fits = value.get(name), SHAPES[test.rstrip("?*")]
        good = type(found) is list and all(map(fits, found)) if test[-1] == "*" else fits(found)
        need(good or test[-1] == "?" and found is None, f"{what}: field {name} is missing, or is not a {test}")
    return [value.get(name) for name, _test in names]

# Keys and config: keys.md, config.md
class Keys:
    def __init__(self, master, repository, epoch):
        self.secret, self.repository, self.epoch = master + repository + struct.pack("<I", epoch), repository, epoch
    def sub(self, purpose, size=32):
        context = "vault 2026-11 v1 " + purpose
        return blake3.blake3(self.secret, derive_key_context=context).digest(length=size)
    def name(self, purpose, data):
        return blake3.blake3(data, key=self.sub(purpose)).digest()

def open_slot(data, repository, slot_id, password=None, key_file=None):
    """Returns (master, epoch, label)."""
    what = f"key slot {slot_id.hex()}"
    cursor = Cursor(data, what)
    need(len(data) <= 4096 and cursor.take(4) == b"VLTK", f"{what}: too long, or does not begin with VLTK")
    version, derivation, label_size, of_repository, of_slot = cursor.ints("BBH16s16s")
    need(version == 1, f"{what}: of version {version}", "unsupported")
    memory, passes, lanes, _created, salt, nonce = cursor.ints("IIIQ32s24s")
    costs = 19456 <= memory <= 4194304 and 1 <= passes <= 16 and 1 <= lanes <= 16
    fits = {1: costs, 2: memory == passes == lanes == 0}.get(derivation)
    need(fits, f"{what}: unknown key derivation, or costs out of range")
    with damaged(f"{what}: label"):
        need(label_size <= 255, f"{what}: label too long")
        label = cursor.take(label_size).decode()
    header, commitment, wrapped = data[:cursor.at], cursor.take(32), cursor.take(52)
    need(cursor.at == len(data), f"{what}: bytes after its end")
    need((of_repository, of_slot) == (repository, slot_id), f"{what}: of another repository, or another's name")
    need((password if derivation == 1 else key_file) is not None, f"{what}: wants another sort of secret", "wrong-key")
    if derivation == 1:
        prk = argon2.low_level.hash_secret_raw(password, salt, passes, memory, lanes, 32, argon2.low_level.Type.ID, 19)
    else:
        prk = blake3.blake3(key_file + salt, derive_key_context="vault 2026-11 v1 slot key-file").digest()
    kek, commit = (blake3.blake3(prk + blake3.blake3(header).digest(), derive_key_context=context).digest()
                   for context in ("vault 2026-11 v1 slot kek", "vault 2026-11 v1 slot commit"))
    need(hmac.compare_digest(commit, commitment), f"{what}: the secret does not fit", "wrong-key")
    with damaged(f"{what}: the wrapped key was changed"):
        plain = decrypt(wrapped, header, nonce, kek)
    return plain[:32], struct.unpack("<I", plain[32:])[0], label

def parse_key_file(data):
    text = re.fullmatch(rb"([0-9a-fA-F]{64})\n?", data)
    need(text or len(data) == 32, "key file: neither 32 bytes nor 64 hex digits", "wrong-key")
    return bytes.fromhex(text[1].decode()) if text else data

def parse_config(data, unlock):
    """Returns (fields, keys). `unlock` is given the repository id and finds the keys."""
    line, _newline, mac = data.partition(b"\n")
    need(len(data) <= 65536 and re.fullmatch(rb"[0-9a-f]{64}\n", mac), "config: not a line and its MAC")
    config = parse_json(line, "config")
    version, = fields(config, "config", "vault=uint")
    need(version == 1, f"config: version {version}, needs vault {config.get('needs')}", "unsupported")
    repository, = fields(config, "config", "repository=id")
    keys = unlock(bytes.fromhex(repository))
    need(hmac.compare_digest(keys.name("config-mac", line), bytes.fromhex(mac[:64].decode())), "config: was changed")
    features, = fields(config, "config", "features=object created=time needs=text chunker=object")[:1]
    for feature in sum(fields(features, "config: features", "read=object* write=object* delete=object*"), []):
        fields(feature, "config: feature", "name=text since=text")
    for feature in features["read"]:
        raise Fault("unsupported", f"config: needs vault {feature['since']} for {feature['name']!r}")
    return config, keys

# The box and the blob: box.md, blob.md
def open_box(data, keys, kind, object_id=bytes(32), prefix=lambda: b"", what="box"):
    """Returns the plaintext. `prefix` gives what stands before it in the window of its frame."""
    cursor = Cursor(data, what)
    need(cursor.take(4) == b"VLT1", f"{what}: does not begin with VLT1")
    of_kind, version, suite, compression, epoch, size, nonce = cursor.ints("BBBBII24s")
    need((of_kind, epoch) == (kind, keys.epoch), f"{what}: of kind {of_kind} and key epoch {epoch}")
    need((version, suite) == (1, 1) and compression < 2, f"{what}: unknown version, suite, compression", "unsupported")
    need(size <= PLAIN_MAX and BOX_MIN <= len(data) <= PLAIN_MAX + BOX_MIN, f"{what}: lengths out of range")
    associated = b"vault/obj/1" + keys.repository + data[:16] + object_id
    with damaged(f"{what}: the stored bytes were changed, or belong elsewhere"):
        plain = decrypt(data[40:], associated, nonce, keys.sub(KINDS[kind]))
    plain = inflate(plain, size, prefix(), what) if compression else plain
    need(len(plain) == size, f"{what}: {len(plain)} bytes of plaintext where {size} should be")
    return plain

def inflate(payload, size, prefix, what):
    need(payload[:4] == b"\x28\xb5\x2f\xfd" and size > 0, f"{what}: no zstd frame")
    with damaged(f"{what}: does not inflate"):
        frame = zstandard.get_frame_parameters(payload)
        need(frame.content_size == size, f"{what}: the frame does not state {size} bytes")
        need(frame.dict_id == 0 and frame.window_size <= WINDOW_MAX, f"{what}: a dictionary, or too large a window")
        before = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
        decoder = zstandard.ZstdDecompressor(dict_data=before, max_window_size=WINDOW_MAX)
        return decoder.decompress(payload, max_output_size=size, allow_extra_data=False)

Blob = collections.namedtuple("Blob", "pack offset stored raw kind depth chunks bases")

def parse_entries(data, what):
    need(len(data) % 36 == 0, f"{what}: not a whole number of chunk entries")
    entries = list(struct.iter_unpack("<32sI", data))
    need(all(1 <= size <= CHUNK_MAX for _id, size in entries), f"{what}: a chunk's length is out of range")
    return entries

def parse_contents(cursor, pack=None, offset=0, stored=0):
    start, what = cursor.at, cursor.what
    kind, depth, chunk_count, base_count = cursor.ints("BBHH")
    need(kind in (1, 2) and 1 <= chunk_count <= 4096, f"{what}: blob of kind {kind} with {chunk_count} chunks")
    allowed = base_count <= 256 and depth <= DEPTH_MAX and (depth == 0) == (base_count == 0)
    need(allowed, f"{what}: blob with {base_count} bases at depth {depth}")
    chunks, bases = (parse_entries(cursor.take(36 * count), what) for count in (chunk_count, base_count))
    need(sum(size for _id, size in chunks) <= PLAIN_MAX, f"{what}: blob larger than 8 MiB")
    need(sum(size for _id, size in bases) <= BASES_MAX, f"{what}: bases larger than 4 MiB")
    return Blob(pack, offset, stored, bytes(cursor.data[start:cursor.at]), kind, depth, chunks, bases)

def open_blob(data, keys, blob, read_base, what="blob"):
    """Returns {chunk id: plaintext}, every name recomputed."""
    plain = open_box(data, keys, blob.kind, keys.name("blob-list", blob.raw),
                     lambda: b"".join(read_base(*base) for base in blob.bases), what)
    need(len(plain) == sum(size for _id, size in blob.chunks), f"{what}: plaintext does not have its chunks' length")
    found, at, purpose = {}, 0, ("chunk-id", "list-id")[blob.kind - 1]
    for chunk_id, size in blob.chunks:
        found[chunk_id] = plain[at:at + size]
        at += size
        need(keys.name(purpose, found[chunk_id]) == chunk_id, f"{what}: chunk {chunk_id.hex()} does not have its name")
    return found

# Packs and the index: pack.md, index.md
def parse_directory(data, end, pack=None, exact=True):
    """Returns the blobs of a pack whose directory begins at `end`, or not before `end` if not `exact`."""
    cursor, blobs, at = Cursor(data, f"directory of pack {pack.hex() if pack else ''}"), [], 0
    while cursor.at < len(data):
        offset, stored = cursor.ints("II")
        need(offset == at and BOX_MIN <= stored <= end - at, f"{cursor.what}: blob out of place")
        at += stored
        blobs.append(parse_contents(cursor, pack, offset, stored))
    need(end <= PACK_MAX and (at == end or not exact), f"{cursor.what}: the blobs do not fill the pack")
    return blobs

def read_directory(size, read_at, keys, pack=None):
    """Returns (plaintext of the directory, blobs) of a pack of `size` bytes by two reads from its end."""
    what = f"pack {pack.hex() if pack else ''}"
    need(12 + BOX_MIN <= size <= PACK_MAX, f"{what}: {size} bytes long")
    length, magic = struct.unpack("<I8s", read_at(size - 12, 12))
    need(magic == b"VLTPACK1", f"{what}: does not end with VLTPACK1")
    need(BOX_MIN <= length <= min(size - 12, PLAIN_MAX + BOX_MIN), f"{what}: directory of {length} bytes")
    directory = open_box(read_at(size - 12 - length, length), keys, 3, what=what)
    return directory, parse_directory(directory, size - 12 - length, pack)

def parse_index(data):
    """Returns (ids superseded, {pack: (size, directory, blobs)})."""
    cursor, packs = Cursor(data, "index"), {}
    superseded = [index for index, in struct.iter_unpack("32s", cursor.take(32 * cursor.ints("I")[0]))]
    count, = cursor.ints("I")
    for _ in range(count):
        pack, size, length = cursor.ints("32sII")
        need(size <= PACK_MAX, f"index: pack {pack.hex()} of {size} bytes")
        directory = cursor.take(length)
        packs[pack] = size, directory, parse_directory(directory, size - 12 - BOX_MIN, pack, exact=False)
    need(cursor.at == len(data), "index: bytes after its end")
    return superseded, packs

# Manifests, items, streams, records: manifest.md, records.md
def parse_reference(value, what):
    """Returns (depth, entries) of a stream reference."""
    depth, text = fields(value, what + ": stream", "depth=uint list=text")
    need(depth <= 4 and len(text) <= INLINE_MAX * 48, f"{what}: stream too deep, or of too many entries")
    with damaged(f"{what}: stream"):
        return depth, parse_entries(base64.b64decode(text, validate=True), what)

def parse_manifest(data, what="manifest"):
    need(len(data) <= MANIFEST_MAX, f"{what}: longer than 4 MiB")
    value = parse_json(data, what)
    need(fields(value, what, "vault=uint") == [1], f"{what}: of another version", "unsupported")
    fields(value, what, "time=time source=text name=text host=text host_id=id seq=uint previous=hash? parent=hash? "
           "tags=text* warnings=text* tool=text engine=object consistency=object options=object items=uint rows=uint "
           "bytes=uint bytes_new=uint bytes_stored=uint seconds=number chunkers=object* item_lines=object")
    return {**value, "stream": parse_reference(value["item_lines"], what)}

def parse_item(line):
    need(len(line) <= LINE_MAX and line.find(b"\n") == len(line) - 1, "item: not a line of at most 1 MiB")
    value = parse_json(line, "item")
    path, = fields(value, "item", "path=text")
    need(len(path.encode()) <= 4096 and "\0" not in path, f"item: path {path!r}")
    need(not {"", ".", ".."} & set(path.split("/")), f"item: path {path!r}")
    shape = "kind=text bytes=uint hash=hash rows=uint? bytes_new=uint? chunker=uint? meta=object? stream=object"
    fields(value, f"item {path}", shape)
    return {**value, "entries": parse_reference(value["stream"], f"item {path}")}

def parse_record(data, kind):
    value = parse_json(data, KINDS[kind])
    shapes = {6: "packs=hash*", 7: "host_id=id pid=uint pid_start=uint boot_id=text nonce=id",
              8: "backups=object* supersedes=hash*"}
    fields(value, KINDS[kind], "time=time host=text " + shapes[kind])
    for gone in value["backups"] if kind == 8 else ():
        fields(gone, "removal", "id=hash host_id=id seq=uint")
    return value

def walk_entries(reference, read_chunk):
    """Yields the entries of a stream in order, from any depth, holding no more than a chunk a level."""
    def below(upper):
        rest = b""
        for chunk_id, size in upper:
            rest += read_chunk(2, chunk_id, size)
            whole = len(rest) - len(rest) % 36
            yield from parse_entries(rest[:whole], "chunk list")
            rest = rest[whole:]
        need(not rest, "chunk list: not a whole number of chunk entries")
    depth, entries = reference
    for _ in range(depth):
        entries = below(entries)
    return iter(entries)

def walk_items(manifest, read_chunk):
    rest, seen = b"", set()
    for chunk_id, size in walk_entries(manifest["stream"], read_chunk):
        *lines, rest = (rest + read_chunk(2, chunk_id, size)).split(b"\n")
        need(len(rest) < LINE_MAX, "item: line longer than 1 MiB")
        for line in lines:
            item = parse_item(line + b"\n")
            need(item["path"] not in seen, f"item {item['path']}: there twice")
            seen.add(item["path"])
            need(len(seen) <= manifest["items"], "manifest: more item lines than it states")
            yield item
    need(not rest and len(seen) == manifest["items"], "manifest: fewer item lines than it states")

def walk_item(item, read_chunk):
    """Yields the bytes of an item; the last thing it does is to compare length and hash."""
    hasher, size = blake3.blake3(), 0
    for chunk_id, length in walk_entries(item["entries"], read_chunk):
        size += length
        need(size <= item["bytes"], f"item {item['path']}: longer than it states")
        hasher.update(data := read_chunk(1, chunk_id, length))
        yield data
    need((size, hasher.hexdigest()) == (item["bytes"], item["hash"]), f"item {item['path']}: not what was backed up")

# The repository in a folder
def pack_name(pack):
    return f"packs/{pack.hex()[:2]}/{pack.hex()}"

class Repository:
    def __init__(self, folder, password, key_file):
        self.folder, self.cache, self.cached, self.scanned = folder, collections.OrderedDict(), 0, False
        need(os.path.isfile(os.path.join(folder, "config")), f"{folder}: no repository here", "no-repository")
        self.faults, unlock = [], lambda repository: self.unlock(repository, password, key_file)
        self.keys = parse_config(self.load("config", 65536), unlock)[1]
        self.snapshots = self.names("snapshots", 32)  # before the index: README.md, Order
        self.packs, self.places = {}, collections.defaultdict(list)
        loaded = {name: self.attempt(lambda: parse_index(self.load_box("index", name, 4)))
                  for name in self.names("index", 32)}
        superseded = {index.hex() for gone, _packs in filter(None, loaded.values()) for index in gone}
        for name in filter(loaded.get, loaded.keys() - superseded):
            for pack, listed in loaded[name][1].items():
                self.add(pack, listed)

    def attempt(self, work, *given):
        """Does a piece of work and keeps what was wrong with it for the report at the end."""
        try:
            return work(*given)
        except Fault as fault:
            self.faults.append(fault)

    def unlock(self, repository, password, key_file):
        for name in self.names("keys", 16)[:64]:
            data = self.load("keys/" + name, 4096)
            slot = self.attempt(open_slot, data, repository, bytes.fromhex(name), password, key_file)
            if slot:
                self.faults = [fault for fault in self.faults if fault.outcome != "wrong-key"]
                return Keys(slot[0], repository, slot[1])
        raise max(self.faults, key=lambda f: f.outcome == "wrong-key", default=Fault("damaged", "no key slot is left"))

    def add(self, pack, listed):
        self.packs[pack] = listed
        for blob in listed[2]:
            for chunk_id, size in blob.chunks:
                self.places[blob.kind, chunk_id, size].append(blob)

    def names(self, kind, size):
        """Lists the objects of a kind. Only a folder that is not there counts as empty."""
        top = os.path.join(self.folder, kind)
        found = os.listdir(top) if os.path.isdir(top) else []
        if kind == "packs":
            found = [n for two in found if is_hex(two, 1) for n in os.listdir(os.path.join(top, two)) if n[:2] == two]
        return sorted(name for name in found if is_hex(name, size))

    def load(self, name, limit, at=0, exact=None):
        with damaged(f"object {name}"), open(os.path.join(self.folder, name), "rb") as file:
            file.seek(at)
            data = file.read(limit + 1 if exact is None else exact)
        need(len(data) <= limit if exact is None else len(data) == exact, f"{name}: longer or shorter than it may be")
        return data

    def load_box(self, folder, name, kind):
        data = self.load(f"{folder}/{name}", PLAIN_MAX + BOX_MIN)
        need(blake3.blake3(data).hexdigest() == name, f"{folder}/{name}: other bytes than its name says")
        return open_box(data, self.keys, kind, what=f"{folder}/{name}")

    def scan(self):
        """Reads the directories of the packs that no index object lists, as after the loss of an index."""
        for pack in map(bytes.fromhex, self.names("packs", 32)) if not self.scanned else ():
            if pack not in self.packs:
                size = os.path.getsize(os.path.join(self.folder, pack_name(pack)))
                read_at = lambda at, part: self.load(pack_name(pack), PACK_MAX, at, part)
                found = self.attempt(read_directory, size, read_at, self.keys, pack)
                self.add(pack, (size, *found) if found else (size, b"", []))
        self.scanned = True

    def read_chunk(self, kind, chunk_id, size, depth=DEPTH_MAX + 1):
        """Returns a chunk from any blob of less than `depth` that holds it and opens: so chains of bases end."""
        fault = Fault("damaged", f"chunk {chunk_id.hex()}: in no pack")
        for _attempt in range(2):
            for blob in sorted(self.places.get((kind, chunk_id, size), ()), key=lambda blob: blob.depth):
                try:
                    if blob.depth < depth:
                        return self.open(blob)[chunk_id]
                except Fault as other:
                    fault = other
            self.scan()
        raise fault

    def open(self, blob):
        key, what = (blob.pack, blob.offset), f"blob at {blob.offset} of pack {blob.pack.hex()}"
        if key not in self.cache:
            data = self.load(pack_name(blob.pack), PACK_MAX, blob.offset, blob.stored)
            base = lambda *entry: self.read_chunk(1, *entry, depth=blob.depth)
            chunks = self.cache[key] = open_blob(data, self.keys, blob, base, what)
            self.cached += sum(map(len, chunks.values()))
            while self.cached > CACHE_MAX and len(self.cache) > 1:
                self.cached -= sum(map(len, self.cache.popitem(last=False)[1].values()))
        self.cache.move_to_end(key)
        return self.cache[key]

    def manifest(self, name):
        return {**parse_manifest(self.load_box("snapshots", name, 5), f"snapshot {name}"), "id": name}

    def manifests(self):
        return sorted(map(self.manifest, self.snapshots), key=lambda manifest: (manifest["time"], manifest["id"]))

    def find(self, wanted):
        found = [name for name in self.snapshots if name.startswith(wanted)]
        if wanted.partition(":")[0] == "latest":
            found = [m["id"] for m in self.manifests() if wanted in ("latest", "latest:" + m["source"])][-1:]
        need(len(found) == 1, f"backup {wanted}: {'may be any of ' + ', '.join(found) if found else 'not found'}", "id")
        return self.manifest(found[0])

# Commands
def save(path, parts):
    """Writes a new file; it has its name only once everything in it was compared."""
    need(not os.path.lexists(path), f"{path}: exists", "target")
    with open(path + ".partial", "xb") as file:
        collections.deque(map(file.write, parts), 0)
    os.rename(path + ".partial", path)

def restore(repo, manifest, wanted, out):
    items = [item for item in walk_items(manifest, repo.read_chunk) if wanted in (None, item["path"])]
    need(items, f"backup {manifest['id']} has no item {wanted}", "id")
    for item in items:
        path, parts = os.path.join(out or "", item["path"]), walk_item(item, repo.read_chunk)
        if wanted:
            save(out, parts) if out else collections.deque(map(sys.stdout.buffer.write, parts), 0)
        elif item["kind"] in ("symlink", "hardlink", "missing"):
            print(f"left out: {item['kind']} {path} {item.get('meta')}", file=sys.stderr)
        else:
            os.makedirs(path if item["kind"] == "folder" else os.path.dirname(path), exist_ok=True)
            item["kind"] == "folder" or save(path, parts)

def check(repo):
    """Reads every byte of the repository; what is wrong with it is in `repo.faults` then."""
    def pack(name):
        data = repo.load(pack_name(name), PACK_MAX)
        need(blake3.blake3(data).digest() == name, f"pack {name.hex()}: other bytes than its name says")
        directory, blobs = read_directory(len(data), lambda at, size: data[at:at + size], repo.keys, name)
        need(repo.packs[name][:2] == (len(data), directory), f"pack {name.hex()}: not what the index says")
        for blob in blobs:
            repo.attempt(repo.open, blob)
    def backup(name, before):
        manifest, total = repo.manifest(name), collections.Counter(items=0, rows=0, bytes=0)
        for item in walk_items(manifest, repo.read_chunk):
            repo.attempt(collections.deque, walk_item(item, repo.read_chunk), 0)
            total.update(items=1, rows=item.get("rows") or 0, bytes=item["bytes"])
        need(total.items() <= manifest.items(), f"snapshot {name}: its sums are not those of its items")
        need(manifest["previous"] in before, f"snapshot {name}: {manifest['previous']} before it was lost", "mismatch")
    record = lambda name, kind: parse_record(repo.load_box(KINDS[kind] + "s", name, kind), kind)
    repo.scan()
    for name in sorted(repo.packs):
        repo.attempt(pack, name)
    records = [repo.attempt(record, name, kind) for kind in (6, 7, 8) for name in repo.names(KINDS[kind] + "s", 32)]
    before = {gone["id"] for found in filter(None, records) for gone in found.get("backups", ())}
    for name in repo.snapshots:
        repo.attempt(backup, name, before | {None, *repo.snapshots})
    return {str(fault): fault.code for fault in repo.faults}

def run(args):
    read = lambda name: need(os.path.isfile(name), f"{name}: no such file", "usage") or open(name, "rb").read(65536)
    file = args.password_file or "VAULT_PASSWORD" not in os.environ and os.environ.get("VAULT_PASSWORD_FILE")
    password = read(file) if file else os.environb.get(b"VAULT_PASSWORD")
    password = password and re.sub(rb"\r?\n\Z", b"", password)
    repo = Repository(args.repo, password, args.key_file and parse_key_file(read(args.key_file)))
    if args.command in ("list", "items"):
        found = repo.manifests() if args.command == "list" else walk_items(repo.find(args.backup), repo.read_chunk)
        names = "id time source name host parent path kind items rows bytes hash meta".split()
        for value in found:
            print(json.dumps({name: value[name] for name in names if name in value}))
    elif args.command == "check":
        findings = check(repo)
        print(*findings, "damaged" if findings else "clean", sep="\n")
        return min(findings.values(), default=0)
    elif args.command == "restore":
        restore(repo, repo.find(args.backup), need(args.item, "restore wants an item", "usage") or args.item, args.out)
    else:
        need(args.out, "restore-all wants --out", "usage")
        os.makedirs(args.out)
        restore(repo, repo.find(args.backup), None, args.out)
    for fault in repo.faults:
        print(f"warning: {fault}", file=sys.stderr)
    return 0

def main():
    if sys.argv[1:2] == ["vectors"]:
        return runpy.run_path(os.path.join(*sys.argv[2:3], "run.py"))["run"](*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="the folder")
    parser.add_argument("command", choices=["list", "items", "restore", "restore-all", "check"])
    parser.add_argument("backup", nargs="?", default="latest", help="an id, its beginning, latest or latest:SOURCE")
    parser.add_argument("item", nargs="?", help="of restore: a path as `items` shows it")
    collections.deque(map(parser.add_argument, ("--out", "--password-file", "--key-file")), 0)
    try:
        return run(parser.parse_args())
    except (Fault, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "code", 6)

if __name__ == "__main__":
    sys.exit(main())
