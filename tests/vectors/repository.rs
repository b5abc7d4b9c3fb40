//! Whole repositories of a few objects: what a reader makes of the parts together.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::build::*;
use crate::bytes::{Given, Group, fact, noise};

type Objects = BTreeMap<String, Vec<u8>>;

const HASH_OF_NOTHING: [u8; 32] = [0x77; 32];

/// A repository of two backups. The second rests on the first: a delta, and a list of its own.
struct World {
    objects: Objects,
    first_pack: [u8; 32],
    second_pack: [u8; 32],
    first_index: [u8; 32],
    second_index: [u8; 32],
    first: [u8; 32],
    second: [u8; 32],
    first_blobs: Vec<(Vec<u8>, Vec<u8>)>,
    second_blobs: Vec<(Vec<u8>, Vec<u8>)>,
    facts: Value,
}

fn name_of(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn pack_name(id: &[u8; 32]) -> String {
    format!("packs/{}/{}", &hex(id)[..2], hex(id))
}

fn put(objects: &mut Objects, folder: &str, bytes: Vec<u8>) -> [u8; 32] {
    let id = name_of(&bytes);
    let name = if folder == "packs" { pack_name(&id) } else { format!("{folder}/{}", hex(id)) };
    objects.insert(name, bytes);
    id
}

fn put_pack(objects: &mut Objects, blobs: &[(Vec<u8>, Vec<u8>)]) -> [u8; 32] {
    put(objects, "packs", pack(blobs))
}

type Listed<'a> = (&'a [u8; 32], &'a [(Vec<u8>, Vec<u8>)]);

fn put_index(objects: &mut Objects, supersedes: &[[u8; 32]], packs: &[Listed<'_>]) -> [u8; 32] {
    let packs: Vec<_> = packs.iter().map(|(id, blobs)| (**id, pack(blobs).len() as u32, directory(blobs))).collect();
    put(objects, "index", Sealed::new(4, &index(supersedes, &packs)).make())
}

fn put_manifest(objects: &mut Objects, fields: &Value) -> [u8; 32] {
    put(objects, "snapshots", Sealed::new(5, fields.to_string().as_bytes()).make())
}

/// A blob of chunks, uncompressed.
fn stored(kind: u8, chunks: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
    let name = if kind == 1 { chunk } else { list_chunk };
    let entries: Vec<_> = chunks.iter().map(|plaintext| name(plaintext)).collect();
    let listed = contents(kind, 0, &entries, &[]);
    let sealed = blob(&listed, &chunks.concat()).make();
    (listed, sealed)
}

fn lines(items: &[Value]) -> Vec<u8> {
    items.iter().flat_map(|item| format!("{item}\n").into_bytes()).collect()
}

/// Chunks of the first backup, and the one that the second adds.
fn halves() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let base = noise("base", 600);
    (base[..300].to_vec(), base[300..].to_vec(), [&base[100..400], b"between", &base[300..600]].concat())
}

fn delta_frame() -> Vec<u8> {
    let frame = "28b52ffd605f019d0000386265747765656e0200296244b5947b750101";
    data_encoding::HEXLOWER.decode(frame.as_bytes()).expect("hex")
}

fn with_slot(objects: &mut Objects, id: [u8; 16], bytes: Vec<u8>) {
    objects.insert(format!("keys/{}", hex(id)), bytes);
}

fn world() -> World {
    let mut objects = Objects::new();
    objects.insert("config".to_owned(), config(&KEYS, &config_fields().to_string()));
    with_slot(&mut objects, SLOT_ID, Slot::key_file().make());
    let (a, b, c) = halves();

    let items = [
        item_fields("empty", b"", reference(0, &[])),
        with(item_fields("db/orders", &[&a[..], &b].concat(), reference(0, &[chunk(&a), chunk(&b)])), "rows", 3),
    ];
    let first_lines = lines(&items);
    let first_blobs = vec![stored(1, &[&a, &b]), stored(2, &[&first_lines])];
    let first_pack = put_pack(&mut objects, &first_blobs);
    let first_index = put_index(&mut objects, &[], &[(&first_pack, &first_blobs)]);
    let sums = |mut fields: Value, items: u64, rows: u64, bytes: usize| {
        fields["items"] = items.into();
        fields["rows"] = rows.into();
        fields["bytes"] = bytes.into();
        fields
    };
    let manifest = sums(manifest_fields(reference(0, &[list_chunk(&first_lines)])), 2, 3, 600);
    let first = put_manifest(&mut objects, &manifest);

    // The delta, a list that is cut within an entry, and lines that are cut within a line.
    let delta = contents(1, 1, &[chunk(&c)], &[chunk(&a), chunk(&b)]);
    let sealed =
        Sealed { object_id: KEYS.name("blob-list", &delta), ..Sealed::frame(1, c.len() as u32, &delta_frame()) };
    let list = [chunk(&c), chunk(&a)].concat();
    let items = [
        with(item_fields("db/orders", &c, reference(0, &[chunk(&c)])), "rows", 4),
        item_fields(
            "db/Größe",
            &[&c[..], &a].concat(),
            reference(1, &[list_chunk(&list[..50]), list_chunk(&list[50..])]),
        ),
    ];
    let second_lines = lines(&items);
    let (head, tail) = second_lines.split_at(100);
    let second_blobs = vec![(delta, sealed.make()), stored(2, &[&list[..50], &list[50..]]), stored(2, &[head, tail])];
    let second_pack = put_pack(&mut objects, &second_blobs);
    let second_index = put_index(&mut objects, &[], &[(&second_pack, &second_blobs)]);
    let manifest =
        sums(manifest_fields(reference(0, &[list_chunk(head), list_chunk(tail)])), 2, 4, 2 * c.len() + a.len());
    let manifest = with(with(with(manifest, "time", "2026-11-22T12:00:00Z"), "seq", 2), "previous", hex(first));
    let second = put_manifest(&mut objects, &with(manifest, "parent", hex(first)));

    let item = |path: &str, data: &[u8]| json!({ "path": path, "data": fact(data) });
    let facts = json!({ "backups": [
        { "id": hex(first), "items": [item("empty", b""), item("db/orders", &[&a[..], &b].concat())] },
        { "id": hex(second), "items": [item("db/orders", &c), item("db/Größe", &[&c[..], &a].concat())] },
    ] });
    World {
        objects,
        first_pack,
        second_pack,
        first_index,
        second_index,
        first,
        second,
        first_blobs,
        second_blobs,
        facts,
    }
}

/// Objects that a case adds to the world, or takes from it.
#[derive(Default)]
struct Change {
    put: Objects,
    remove: Vec<String>,
}

impl Change {
    fn given(self) -> Given {
        let put: serde_json::Map<String, Value> =
            self.put.into_iter().map(|(name, bytes)| (name, hex(bytes).into())).collect();
        Given::default().value("put", put).value("remove", self.remove)
    }
}

/// A third backup of one item whose stream is `stream` and whose plaintext is `data`, changed at will.
struct Third {
    item: Value,
    /// Blobs of its pack beside that of the item lines.
    blobs: Vec<(Vec<u8>, Vec<u8>)>,
    count: u64,
    more: Vec<u8>,
}

impl Third {
    fn new(data: &[u8], stream: Value) -> Self {
        Self { item: item_fields("third", data, stream), blobs: Vec::new(), count: 1, more: Vec::new() }
    }

    fn given(self) -> Given {
        self.make().0
    }

    /// The change, and the backup's id.
    fn make(self) -> (Given, [u8; 32]) {
        let mut change = Change::default();
        let lines = [lines(&[self.item]), self.more].concat();
        let mut blobs = self.blobs;
        blobs.push(stored(2, &[&lines]));
        let pack = put_pack(&mut change.put, &blobs);
        put_index(&mut change.put, &[], &[(&pack, &blobs)]);
        let fields = with(manifest_fields(reference(0, &[list_chunk(&lines)])), "time", "2026-11-23T12:00:00Z");
        let fields = with(with(fields, "host_id", "ff".repeat(16)), "items", self.count);
        let id = put_manifest(&mut change.put, &with(fields, "bytes", 300));
        (change.given(), id)
    }
}

/// A blob of one chunk that has another chunk as base.
fn resting(on: &[u8], plain: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let listed = contents(1, 1, &[chunk(plain)], &[chunk(on)]);
    let frame = Sealed::frame(1, plain.len() as u32, &Frame::raw(plain).make());
    let sealed = Sealed { object_id: KEYS.name("blob-list", &listed), ..frame }.make();
    (listed, sealed)
}

pub fn group() -> Group {
    let world = world();
    let objects: serde_json::Map<String, Value> =
        world.objects.iter().map(|(name, bytes)| (name.clone(), hex(bytes).into())).collect();
    let mut group = Group::new(
        "repository",
        "README.md",
        "A repository whose objects are `objects`, without those in `remove` and with those in `put`. A reader opens it with \
         the key file, and reads every item of every backup, oldest first.",
        Given::default()
            .bytes("key_file", KEY_FILE)
            .value("objects", objects)
            .value("remove", json!([]))
            .value("put", json!({})),
    );
    healthy(&mut group, &world);
    damaged_objects(&mut group, &world);
    damaged_streams(&mut group);
    group
}

fn healthy(group: &mut Group, world: &World) {
    let facts = || world.facts.clone();
    let (index_1, index_2) =
        (format!("index/{}", hex(world.first_index)), format!("index/{}", hex(world.second_index)));
    group.ok("as it was written", Given::default(), facts());
    let mut merged = Change::default();
    let packs = [(&world.first_pack, &world.first_blobs[..]), (&world.second_pack, &world.second_blobs[..])];
    put_index(&mut merged.put, &[world.first_index, world.second_index], &packs);
    group.ok(
        "a merged index beside those it supersedes",
        Change { put: merged.put.clone(), ..Change::default() }.given(),
        facts(),
    );
    let remove = vec![index_1.clone(), index_2];
    group.ok("a merged index alone", Change { put: merged.put, remove }.given(), facts());

    let mut garbage = Change::default();
    put_pack(&mut garbage.put, &[stored(1, &[b"garbage"])]);
    group.ok("a pack that no index lists", garbage.given(), facts());
    let mut strange = Change::default();
    for name in ["tmp/half", "probe/x", "packs/zz/zz", "index/readme", "keys/readme", "snapshots/0"] {
        strange.put.insert(name.to_owned(), b"not ours".to_vec());
    }
    group.ok("names that are not ours", strange.given(), facts());
    let mut slots = Change::default();
    with_slot(&mut slots.put, [1; 16], Slot { id: [1; 16], secret: vec![5; 32], ..Slot::key_file() }.make());
    group.ok("a slot of somebody else", slots.given(), facts());

    // The first pack's blobs, unopened, once more; then the first copy goes.
    let mut copied = Change::default();
    let reversed: Vec<_> = world.first_blobs.iter().rev().cloned().collect();
    let copy = put_pack(&mut copied.put, &reversed);
    let index = put_index(&mut copied.put, &[world.first_index], &[(&copy, &reversed)]);
    group.ok("blobs copied to another pack", Change { put: copied.put.clone(), ..Change::default() }.given(), facts());
    copied.remove = vec![index_1, pack_name(&world.first_pack)];
    group.ok("blobs copied to another pack, and the first pack deleted", copied.given(), facts());
    assert_ne!(index, world.first_index);

    // Two hosts that did not know of each other stored each chunk against the other: a reader looks for bases below.
    let (one, two) = (b"first of two".to_vec(), b"second of two".to_vec());
    let whole = [&one[..], &two].concat();
    let third = Third::new(&whole, reference(0, &[chunk(&one), chunk(&two)]));
    let blobs = vec![resting(&two, &one), resting(&one, &two), stored(1, &[&one]), stored(1, &[&two])];
    let (given, id) = Third { blobs, ..third }.make();
    let mut facts = world.facts.clone();
    let item = json!({ "path": "third", "data": fact(&whole) });
    facts["backups"].as_array_mut().expect("a list").push(json!({ "id": hex(id), "items": [item] }));
    group.ok("two blobs that are each other's base, and copies that have none", given, facts);
}

fn damaged_objects(group: &mut Group, world: &World) {
    let put =
        |name: &str, bytes: Vec<u8>| Change { put: Objects::from([(name.to_owned(), bytes)]), remove: vec![] }.given();
    let names = [
        ("config", "config".to_owned()),
        ("first pack", pack_name(&world.first_pack)),
        ("second pack", pack_name(&world.second_pack)),
        ("first index", format!("index/{}", hex(world.first_index))),
        ("first manifest", format!("snapshots/{}", hex(world.first))),
        ("second manifest", format!("snapshots/{}", hex(world.second))),
        ("key slot", format!("keys/{}", hex(SLOT_ID))),
    ];
    for (what, name) in &names {
        let bytes = &world.objects[name];
        let title = |text: &str| -> &'static str { Box::leak(format!("{what}: {text}").into_boxed_str()) };
        // In a slot byte 60 is salt: the secret no longer fits, and nobody can tell why.
        if *what == "key slot" {
            group.wrong_key(title("one bit flipped"), put(name, flip(bytes.clone(), 60)));
        } else {
            group.damaged(title("one bit flipped"), put(name, flip(bytes.clone(), 60)));
        }
        group.damaged(title("cut in half"), put(name, bytes[..bytes.len() / 2].to_vec()));
        group.damaged(title("emptied"), put(name, vec![]));
    }
    for at in [1, 2] {
        let (what, name) = &names[at];
        let case = Box::leak(format!("{what}: missing").into_boxed_str());
        group.damaged(case, Change { remove: vec![name.clone()], ..Change::default() }.given());
    }
    let object = |at: usize| (names[at].1.as_str(), world.objects[&names[at].1].clone());
    group.damaged("the second pack under the first one's name", put(object(1).0, object(2).1));
    group.damaged("the second manifest under the first one's name", put(object(4).0, object(5).1));
    group.damaged("an index among the manifests", put(&format!("snapshots/{}", hex(world.first_index)), object(3).1));
    group.damaged("a manifest among the indexes", put(&format!("index/{}", hex(world.first)), object(4).1));
    group.wrong_key("only a slot of somebody else", {
        put(&names[6].1, Slot { secret: vec![5; 32], ..Slot::key_file() }.make())
    });
    group.damaged("a slot that holds another master key", {
        put(&names[6].1, Slot { keys: Keys { master: [5; 32], ..KEYS }, ..Slot::key_file() }.make())
    });
    group.damaged("a slot that holds another epoch", {
        put(&names[6].1, Slot { keys: Keys { epoch: 1, ..KEYS }, ..Slot::key_file() }.make())
    });
    group.unsupported("a feature to read", {
        let mut fields = config_fields();
        fields["features"]["read"] = json!([{ "name": "x", "since": "2.0.0" }]);
        put("config", config(&KEYS, &fields.to_string()))
    });
    group.damaged("two blobs of one pack changed places", {
        let (pack, name) = (&world.objects[&names[2].1], &names[2].1);
        let [first, second] = [world.second_blobs[0].1.len(), world.second_blobs[1].1.len()];
        let swapped = [&pack[first..first + second], &pack[..first], &pack[first + second..]].concat();
        put(name, swapped)
    });
}

fn damaged_streams(group: &mut Group) {
    let (a, b, _) = halves();
    let whole = || reference(0, &[chunk(&a)]);
    group.damaged("an item with another's hash", {
        let third = Third::new(&a, whole());
        Third { item: with(third.item.clone(), "hash", hex(HASH_OF_NOTHING)), ..third }.given()
    });
    group.damaged("an item longer than its stream", {
        let third = Third::new(&a, whole());
        Third { item: with(third.item.clone(), "bytes", 301), ..third }.given()
    });
    group.damaged("an item shorter than its stream", {
        let third = Third::new(&a, whole());
        Third { item: with(third.item.clone(), "bytes", 299), ..third }.given()
    });
    group.damaged("a chunk too few", Third::new(&[&a[..], &b].concat(), whole()).given());
    group.damaged("chunks in another order", {
        Third::new(&[&a[..], &b].concat(), reference(0, &[chunk(&b), chunk(&a)])).given()
    });
    group.damaged("a chunk that no pack holds", Third::new(b"nowhere", reference(0, &[chunk(b"nowhere")])).given());
    group.damaged("a chunk listed with another length", {
        Third::new(&a, reference(0, &[entry(KEYS.name("chunk-id", &a), 299)])).given()
    });
    group.damaged("an item's stream out of a list's chunk", {
        let third = Third::new(b"a list", reference(0, &[list_chunk(b"a list")]));
        Third { blobs: vec![stored(2, &[b"a list"])], ..third }.given()
    });
    group.damaged("a list out of an item's chunk", {
        let list = chunk(&a);
        let third = Third::new(&a, reference(1, &[chunk(&list)]));
        Third { blobs: vec![stored(1, &[&list])], ..third }.given()
    });
    group.damaged("a list that ends within an entry", {
        let list = [chunk(&a), vec![0; 35]].concat();
        let third = Third::new(&a, reference(1, &[list_chunk(&list)]));
        Third { blobs: vec![stored(2, &[&list])], ..third }.given()
    });
    group.damaged("a list with an entry of no bytes", {
        let list = [chunk(&a), entry([1; 32], 0)].concat();
        let third = Third::new(&a, reference(1, &[list_chunk(&list)]));
        Third { blobs: vec![stored(2, &[&list])], ..third }.given()
    });
    group.damaged("a list that no pack holds", Third::new(&a, reference(1, &[list_chunk(&chunk(&a))])).given());
    group.damaged("a list one level deeper than it is", {
        let list = chunk(&a);
        let third = Third::new(&a, reference(2, &[list_chunk(&list)]));
        Third { blobs: vec![stored(2, &[&list])], ..third }.given()
    });
    group.damaged("an item more than stated", {
        let more = lines(&[item_fields("fourth", &a, whole())]);
        Third { more, ..Third::new(&a, whole()) }.given()
    });
    group.damaged("two items of one path", {
        let more = lines(&[item_fields("third", b"", reference(0, &[]))]);
        Third { more, count: 2, ..Third::new(&a, whole()) }.given()
    });
    group.damaged("an item fewer than stated", Third { count: 2, ..Third::new(&a, whole()) }.given());
    group.damaged("no newline after the last item", Third { more: b"{".to_vec(), ..Third::new(&a, whole()) }.given());
    group.damaged("an item outside the target", {
        let third = Third::new(&a, whole());
        Third { item: with(third.item.clone(), "path", "../third"), ..third }.given()
    });
    group.damaged("a base that no pack holds", {
        let third = Third::new(b"resting", reference(0, &[chunk(b"resting")]));
        Third { blobs: vec![resting(b"nowhere", b"resting")], ..third }.given()
    });
    group.damaged("two blobs that are each other's base", {
        let (one, two) = (b"first of two".to_vec(), b"second of two".to_vec());
        let third = Third::new(&one, reference(0, &[chunk(&one)]));
        Third { blobs: vec![resting(&two, &one), resting(&one, &two)], ..third }.given()
    });
}
