//! The cases of every kind of object but whole repositories. Outcomes come from the pages, not from a parser.
// A list of one reads as lists of two do.
#![allow(clippy::cloned_ref_to_slice_refs)]

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::build::*;
use crate::bytes::{Bytes, Given, Group, bytes, fact, noise, repeat, text};

pub fn all() -> Vec<Group> {
    vec![
        keys(),
        config(),
        slot(),
        sealed(),
        frame(),
        contents_of(),
        blob_of(),
        directory_of(),
        pack_of(),
        index_of(),
        manifest(),
        item(),
        record(),
        cut(),
        escape(),
    ]
}

fn keys() -> Group {
    let mut group = Group::new(
        "keys",
        "keys.md",
        "Subkeys from master key, repository id and epoch. The names are those of `data`, the table is given by its \
         hash; `nonce` is that of a box of kind 4 that holds `data` uncompressed, its 32 random bytes all zero.",
        Given::default().bytes("data", text("some bytes to name")),
    );
    let facts = |keys: &Keys| {
        let data = b"some bytes to name";
        let mut subkeys = serde_json::Map::new();
        for purpose in PURPOSES.into_iter().chain(["nonce", "chunk-id", "list-id", "blob-list", "config-mac"]) {
            subkeys.insert(purpose.to_owned(), hex(keys.sub(purpose)).into());
        }
        let table: Vec<u8> = keys.table().iter().flat_map(|word| word.to_le_bytes()).collect();
        let nonce = &Sealed { keys: *keys, ..Sealed::new(4, data) }.make()[16..40];
        json!({
            "subkeys": subkeys,
            "chunk-id": hex(keys.name("chunk-id", data)),
            "list-id": hex(keys.name("list-id", data)),
            "blob-list": hex(keys.name("blob-list", data)),
            "config-mac": hex(keys.name("config-mac", data)),
            "cdc-table": fact(&table),
            "nonce": hex(nonce),
        })
    };
    let zero = Keys { master: [0; 32], repository: [0; 16], epoch: 0 };
    group.ok("a master key of zeros", zero.given(), facts(&zero));
    group.ok("another master key", KEYS.given(), facts(&KEYS));
    let later = Keys { epoch: 1, ..KEYS };
    group.ok("the same in the next epoch", later.given(), facts(&later));
    let elsewhere = Keys { repository: *b"0123456789abcdeg", ..KEYS };
    group.ok("the same in another repository", elsewhere.given(), facts(&elsewhere));
    group
}

fn config() -> Group {
    let mut group = Group::new(
        "config",
        "config.md",
        "The object `config`, opened with the master key given.",
        Given::default().bytes("master", KEYS.master).value("epoch", 0),
    );
    let line = |fields: &Value| bytes(crate::build::config(&KEYS, &fields.to_string()));
    let base = config_fields();
    let good = crate::build::config(&KEYS, &base.to_string());
    let feature = json!([{ "name": "frozen-packs", "since": "0.9.0" }]);
    let with_feature = |class: &str| {
        let mut fields = base.clone();
        fields["features"][class] = feature.clone();
        fields
    };
    let facts = json!({ "repository": hex(KEYS.repository) });

    group.ok("as vault writes it", bytes(&good), facts.clone());
    group.ok("a field that nobody knows", line(&with(base.clone(), "colour", json!({ "a": [1] }))), facts.clone());
    group.ok("an unknown feature to write", line(&with_feature("write")), facts.clone());
    group.ok("an unknown feature to delete", line(&with_feature("delete")), facts.clone());
    group.unsupported("an unknown feature to read", line(&with_feature("read")));
    group.unsupported("version 2", line(&with(base.clone(), "vault", 2)));
    group.unsupported("version 2 with other fields", line(&json!({ "vault": 2, "needs": "1.0.0", "id": "x" })));
    group.damaged("no version", line(&without(base.clone(), "vault")));
    group.damaged("version as text", line(&with(base.clone(), "vault", "1")));
    group.damaged("no repository id", line(&without(base.clone(), "repository")));
    group.damaged("repository id of 15 bytes", line(&with(base.clone(), "repository", hex([0; 15]))));
    group.damaged(
        "repository id in capitals",
        line(&with(base.clone(), "repository", "ABCDEF0123456789ABCDEF0123456789")),
    );
    group.damaged("no features", line(&without(base.clone(), "features")));
    group
        .damaged("features without a class", line(&with(base.clone(), "features", json!({ "read": [], "write": [] }))));
    group.damaged("a feature that is text", {
        line(&with(base.clone(), "features", json!({ "read": [], "write": ["x"], "delete": [] })))
    });
    group.damaged("created at no time", line(&with(base.clone(), "created", "yesterday")));
    group.damaged("a field twice", {
        bytes(crate::build::config(&KEYS, &base.to_string().replacen('{', "{\"vault\":1,", 1)))
    });
    group.damaged("a list, not an object", bytes(crate::build::config(&KEYS, "[1]")));
    group.damaged("bytes after the JSON", bytes(crate::build::config(&KEYS, &format!("{base} x"))));
    group.damaged("one bit of the line flipped", {
        let at = good.windows(5).position(|w| w == b"0.1.0").expect("it is there") as isize;
        bytes(flip(good.clone(), at))
    });
    group.damaged("one bit of the MAC flipped", bytes(flip(good.clone(), -2)));
    group.damaged("MAC of another key", {
        bytes(crate::build::config(&Keys { master: [9; 32], ..KEYS }, &base.to_string()))
    });
    let mac_at = good.len() - 65;
    group.damaged("MAC in capitals", bytes([&good[..mac_at], &good[mac_at..].to_ascii_uppercase()].concat()));
    group.damaged("MAC cut short", bytes([&good[..good.len() - 3], b"\n"].concat()));
    group.damaged("no newline at the end", bytes(&good[..good.len() - 1]));
    group.damaged("bytes after the end", bytes([&good[..], b"\n"].concat()));
    group.damaged("cut within the line", bytes(&good[..40]));
    group.damaged("empty", bytes(b""));
    let padded = |length: usize| {
        let empty = with(base.clone(), "pad", "").to_string();
        let pad = length - empty.len() - 66;
        let line = with(base.clone(), "pad", "x".repeat(pad)).to_string();
        let (head, tail) = empty.split_at(empty.len() - 2);
        let mac = format!("{tail}\n{}\n", hex(KEYS.name("config-mac", line.as_bytes())));
        Given::default().bytes("bytes", Bytes::Parts(vec![text(head), repeat("x", pad), text(mac)]))
    };
    group.ok("65,536 bytes", padded(65_536), facts);
    group.damaged("65,537 bytes", padded(65_537));
    group
}

fn slot() -> Group {
    let mut group = Group::new(
        "slot",
        "keys.md",
        "A key slot under its name, in a repository, opened with a password or with the 32 bytes of a key file. Where costs \
         are the fault the rest does not fit them: a reader stops before.",
        Given::default().bytes("slot", SLOT_ID).bytes("repository", KEYS.repository),
    );
    let by_password = |slot: &Slot| bytes(slot.make()).bytes("password", PASSWORD);
    let by_file = |slot: &Slot| bytes(slot.make()).bytes("key_file", KEY_FILE);
    let (password, file) = (Slot::password(), Slot::key_file());
    let facts = |label: &str, epoch| json!({ "master": hex(KEYS.master), "epoch": epoch, "label": label });
    let raw = |stored: Vec<u8>| bytes(stored).bytes("key_file", KEY_FILE);
    let good = file.make();

    group.ok("by password", by_password(&password), facts("laptop", 0));
    group.ok(
        "by password, 2 passes, 2 lanes",
        by_password(&Slot { costs: [19_456, 2, 2], ..password.clone() }),
        facts("laptop", 0),
    );
    group.ok(
        "by a password that is not text",
        {
            let slot = Slot { secret: vec![0, 255, 10, 13], ..password.clone() };
            bytes(slot.make()).bytes("password", [0, 255, 10, 13])
        },
        facts("laptop", 0),
    );
    group.ok("by key file", by_file(&file), facts("laptop", 0));
    group.ok("epoch 7", by_file(&Slot { keys: Keys { epoch: 7, ..KEYS }, ..file.clone() }), facts("laptop", 7));
    group.ok("no label", by_file(&Slot { label: vec![], ..file.clone() }), facts("", 0));
    group.ok(
        "a label that is not ASCII",
        by_file(&Slot { label: "Büro ☂".into(), ..file.clone() }),
        facts("Büro ☂", 0),
    );
    group.ok(
        "a label of 255 bytes",
        by_file(&Slot { label: vec![b'x'; 255], ..file.clone() }),
        facts(&"x".repeat(255), 0),
    );

    group.wrong_key("another password", bytes(password.make()).bytes("password", b"correct horse"));
    group.wrong_key("the password and a newline", bytes(password.make()).bytes("password", [PASSWORD, b"\n"].concat()));
    group.wrong_key("another key file", bytes(file.make()).bytes("key_file", [7; 32]));
    group.wrong_key("a password for a key file's slot", bytes(file.make()).bytes("password", PASSWORD));
    group.wrong_key("a key file for a password's slot", bytes(password.make()).bytes("key_file", KEY_FILE));
    group.wrong_key("one bit of the creation time flipped", raw(flip(good.clone(), 52)));
    group.wrong_key("one bit of the salt flipped", raw(flip(good.clone(), 60)));
    group.wrong_key("one bit of the nonce flipped", raw(flip(good.clone(), 92)));
    group.wrong_key("one bit of the label flipped", raw(flip(good.clone(), 116)));
    group.wrong_key("one bit of the commitment flipped", raw(flip(good.clone(), -84)));
    group.damaged("one bit of the wrapped key flipped", raw(flip(good.clone(), -52)));
    group.damaged("one bit of the tag flipped", raw(flip(good.clone(), -1)));

    group.damaged("another magic", by_file(&Slot { magic: *b"VLT1", ..file.clone() }));
    group.unsupported("version 0", by_file(&Slot { version: 0, ..file.clone() }));
    group.unsupported("version 2", by_file(&Slot { version: 2, ..file.clone() }));
    group.damaged("derivation 0", by_file(&Slot { derivation: 0, ..file.clone() }));
    group.damaged("derivation 3", by_file(&Slot { derivation: 3, ..file.clone() }));
    for (name, costs) in [
        ("memory below the least", [19_455, 1, 1]),
        ("memory past the most", [4_194_305, 1, 1]),
        ("memory of 4 TiB", [u32::MAX, 1, 1]),
        ("no passes", [19_456, 0, 1]),
        ("17 passes", [19_456, 17, 1]),
        ("no lanes", [19_456, 1, 0]),
        ("17 lanes", [19_456, 1, 17]),
    ] {
        group.damaged(name, by_password(&Slot { costs, ..password.clone() }));
    }
    group.damaged("a key file that costs memory", by_file(&Slot { costs: [19_456, 0, 0], ..file.clone() }));
    group.damaged("a key file that costs lanes", by_file(&Slot { costs: [0, 0, 1], ..file.clone() }));
    group.damaged("a label of 256 bytes", by_file(&Slot { label: vec![b'x'; 256], ..file.clone() }));
    group.damaged("a label longer than the slot", by_file(&Slot { label_length: Some(200), ..file.clone() }));
    group.damaged("a label shorter than stated", by_file(&Slot { label_length: Some(7), ..file.clone() }));
    group.damaged("a label longer than stated", by_file(&Slot { label_length: Some(5), ..file.clone() }));
    group.damaged("a label that is not UTF-8", by_file(&Slot { label: vec![0xc3], ..file.clone() }));
    group.damaged("of another repository", by_file(&Slot { repository: [1; 16], ..file.clone() }));
    group.damaged("under another name", by_file(&Slot { id: [1; 16], ..file.clone() }));
    group.damaged("empty", raw(vec![]));
    group.damaged("cut within the header", raw(good[..60].to_vec()));
    group.damaged("cut before the label", raw(good[..116].to_vec()));
    group.damaged("the last byte missing", raw(good[..good.len() - 1].to_vec()));
    group.damaged("a byte too many", raw([&good[..], &[0]].concat()));
    group.damaged("longer than 4,096 bytes", {
        Given::default()
            .bytes("bytes", Bytes::Parts(vec![good.clone().into(), repeat([0], 4096)]))
            .bytes("key_file", KEY_FILE)
    });
    group
}

fn sealed() -> Group {
    let mut group = Group::new(
        "box",
        "box.md",
        "A box, opened as one of a kind and with an object id in its associated data.",
        KEYS.given().value("kind", 4).bytes("object_id", NO_ID),
    );
    let base = Sealed::new(4, b"plaintext");
    let good = base.make();
    let plain = |plaintext: &[u8]| json!({ "plaintext": fact(plaintext) });
    for (name, kind) in [
        ("a data blob", 1),
        ("a meta blob", 2),
        ("a directory", 3),
        ("an index", 4),
        ("a manifest", 5),
        ("a mark", 6),
        ("a lease", 7),
        ("a removal", 8),
    ] {
        group.ok(name, bytes(Sealed::new(kind, b"plaintext").make()).value("kind", kind), plain(b"plaintext"));
    }
    group.ok(
        "with an object id",
        {
            let sealed = Sealed { object_id: [5; 32], ..Sealed::new(1, b"plaintext") };
            bytes(sealed.make()).value("kind", 1).bytes("object_id", [5; 32])
        },
        plain(b"plaintext"),
    );
    group.ok(
        "in epoch 3",
        {
            let sealed = Sealed { keys: Keys { epoch: 3, ..KEYS }, ..base.clone() };
            bytes(sealed.make()).value("epoch", 3)
        },
        plain(b"plaintext"),
    );
    group.ok("empty plaintext", bytes(Sealed::new(4, b"").make()), plain(b""));

    let other = |change: &dyn Fn(&mut Sealed)| {
        let mut sealed = base.clone();
        change(&mut sealed);
        bytes(sealed.make())
    };
    group.damaged("another magic", bytes(flip(good.clone(), 3)));
    group.damaged("of another kind", other(&|b| b.kind = 5));
    group.damaged("of kind 0", bytes([&good[..4], &[0], &good[5..]].concat()));
    group.damaged("of another kind, and says it is ours", other(&|b| b.key_of = Some(5)));
    group.damaged("kind changed after sealing", bytes([&other_kind()[..4], &[4], &other_kind()[5..]].concat()));
    group.unsupported("version 0", other(&|b| b.version = 0));
    group.unsupported("version 2", other(&|b| b.version = 2));
    group.unsupported("suite 0", other(&|b| b.suite = 0));
    group.unsupported("suite 2", other(&|b| b.suite = 2));
    group.unsupported("compression 2", other(&|b| b.compression = 2));
    group.damaged("of another epoch", other(&|b| b.keys.epoch = 1));
    group.damaged("of another repository", other(&|b| b.keys.repository = [1; 16]));
    group.damaged("of another master key", other(&|b| b.keys.master = [1; 32]));
    group.damaged("of another object", other(&|b| b.object_id = [1; 32]));
    group.damaged("opened as another object", bytes(&good).bytes("object_id", [1; 32]));
    group.damaged("longer than it states", other(&|b| b.length = Some(8)));
    group.damaged("shorter than it states", other(&|b| b.length = Some(10)));
    group.damaged("states a byte past the limit", other(&|b| b.length = Some(8_388_609)));
    group.damaged("states 4 GiB", other(&|b| b.length = Some(u32::MAX)));
    group.damaged("length changed after sealing", bytes(flip(good.clone(), 12)));
    group.damaged("one bit of the nonce flipped", bytes(flip(good.clone(), 16)));
    group.damaged("one bit of the payload flipped", bytes(flip(good.clone(), 40)));
    group.damaged("one bit of the tag flipped", bytes(flip(good.clone(), -1)));
    group.damaged("nothing", bytes(b""));
    group.damaged("cut within the header", bytes(&good[..39]));
    group.damaged("cut within the tag", bytes(&good[..55]));
    group.damaged("the last byte missing", bytes(&good[..good.len() - 1]));
    group.damaged("a byte too many", bytes([&good[..], &[0]].concat()));
    group.damaged("nothing but zeros", bytes(repeat([0], 100)));
    group
}

fn other_kind() -> Vec<u8> {
    Sealed::new(5, b"plaintext").make()
}

fn frame() -> Group {
    let mut group = Group::new(
        "frame",
        "box.md",
        "Boxes of kind 4 that open and hold a zstd frame. The field is still called `bytes`, and is the whole box.",
        KEYS.given().value("kind", 4).bytes("object_id", NO_ID),
    );
    let boxed = |length: usize, frame: &[u8]| bytes(Sealed::frame(4, length as u32, frame).make());
    let plain = |plaintext: &[u8]| json!({ "plaintext": fact(plaintext) });
    let data = noise("frame", 300);
    let good = Frame::raw(&data).make();

    group.ok("a raw block", boxed(300, &good), plain(&data));
    group.ok("a run", boxed(5000, &Frame::of(5000, vec![Block::Run(7, 5000)]).make()), plain(&[7; 5000]));
    group.ok(
        "two blocks",
        boxed(301, &Frame::of(301, vec![Block::Raw(data.clone()), Block::Run(b'x', 1)]).make()),
        plain(&[&data[..], b"x"].concat()),
    );
    group.ok(
        "a compressed block",
        {
            // Made by zstd 1.5.7; a decoder of any version inflates it.
            let frame = "28b52ffd608402b50100d40274686520717569636b2062726f776e20666f78206a756d7073206f76657220746865\
                     206c617a7920646f672e200100a50a2b5506";
            boxed(900, &unhex(frame))
        },
        plain("the quick brown fox jumps over the lazy dog. ".repeat(20).as_bytes()),
    );
    for (name, size) in
        [("content size in 1 byte", 200), ("content size in 2 bytes", 300), ("content size in 4 bytes", 300)]
    {
        let data = noise("frame", size);
        let width = name.as_bytes()[16] - b'0';
        let frame = Frame { size: Some((size as u64, width)), ..Frame::raw(&data) };
        group.ok(name, boxed(size, &frame.make()), plain(&data));
    }
    group.ok(
        "a window of 8 MiB",
        boxed(300, &Frame { window: Some(13 << 3), ..Frame::raw(&data) }.make()),
        plain(&data),
    );
    group.ok(
        "8 MiB out of 64 runs",
        {
            let runs = (0..64).map(|_| Block::Run(0, 128 << 10)).collect();
            boxed(8 << 20, &Frame::of(8 << 20, runs).make())
        },
        plain(&vec![0; 8 << 20]),
    );
    let checksummed = "28b52ffd2410810000f1b2efb6f5ef4c8907d14cdecdc5776883ffc122";
    group.ok("with a checksum", boxed(16, &unhex(checksummed)), plain(&noise("checksum", 16)));
    group.damaged("with a wrong checksum", boxed(16, &flip(unhex(checksummed), -1)));

    group.damaged("states one byte less than the box", boxed(301, &good));
    group.damaged("states one byte more than the box", boxed(299, &good));
    group.damaged("states no size", boxed(300, &Frame { size: None, window: Some(0), ..Frame::raw(&data) }.make()));
    group.damaged("inflates to more than both state", {
        boxed(300, &Frame::of(300, vec![Block::Raw(data.clone()), Block::Run(0, 1)]).make())
    });
    group.damaged("inflates to 128 KiB where both state 10 bytes", {
        boxed(10, &Frame::of(10, vec![Block::Run(0, 128 << 10)]).make())
    });
    group.damaged("inflates to less than both state", {
        boxed(301, &Frame::of(301, vec![Block::Raw(data.clone())]).make())
    });
    group.damaged("states 2^63 bytes", boxed(300, &Frame { size: Some((1 << 63, 8)), ..Frame::raw(&data) }.make()));
    group.damaged("two frames", boxed(300, &[&good[..], &good[..]].concat()));
    group.damaged(
        "an empty frame behind it",
        boxed(300, &[&good[..], &Frame::of(0, vec![Block::Raw(vec![])]).make()].concat()),
    );
    group.damaged("a byte behind it", boxed(300, &[&good[..], &[0]].concat()));
    group.damaged("the last byte missing", boxed(300, &good[..good.len() - 1]));
    group.damaged(
        "no last block",
        boxed(300, &{
            let mut frame = good.clone();
            frame[13] &= !1;
            frame
        }),
    );
    group.damaged("cut within the header", boxed(300, &good[..5]));
    group.damaged("nothing", boxed(300, b""));
    group.damaged(
        "a frame to skip",
        boxed(300, &[&0x184d_2a50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &[0; 4]].concat()),
    );
    group.damaged("a frame to skip before it", {
        boxed(300, &[&0x184d_2a50_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &good].concat())
    });
    group.damaged("magic of an older zstd", boxed(300, &Frame { magic: 0xfd2f_b527, ..Frame::raw(&data) }.make()));
    group.damaged("no magic", boxed(300, &good[4..]));
    group.damaged("a dictionary", boxed(300, &Frame { dictionary: Some(5), ..Frame::raw(&data) }.make()));
    group.damaged("the reserved bit", boxed(300, &Frame { reserved: true, ..Frame::raw(&data) }.make()));
    group.damaged(
        "a block of the reserved type",
        boxed(300, &{
            let mut frame = good.clone();
            frame[13] |= 6;
            frame
        }),
    );
    group.damaged("a window of 9 MiB", boxed(300, &Frame { window: Some(13 << 3 | 1), ..Frame::raw(&data) }.make()));
    group.damaged("a window of 2 TiB", boxed(300, &Frame { window: Some(31 << 3), ..Frame::raw(&data) }.make()));
    group.damaged("an empty plaintext", boxed(0, &Frame::of(0, vec![Block::Raw(vec![])]).make()));
    group
}

fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hex")
}

fn contents_of() -> Group {
    let mut group =
        Group::new("contents", "blob.md", "The contents of a blob, as they stand in directories.", Given::default());
    let (one, two) = (chunk(b"one"), chunk(b"two"));
    let facts = |kind: u8, depth: u8, chunks: usize, bases: usize, length: usize| json!({ "kind": kind, "depth": depth, "chunks": chunks, "bases": bases, "bytes": length });
    let big = entry([1; 32], 1 << 20);
    group.ok("one chunk", bytes(contents(1, 0, &[one.clone()], &[])), facts(1, 0, 1, 0, 3));
    group.ok("of lists", bytes(contents(2, 0, &[one.clone(), two.clone()], &[])), facts(2, 0, 2, 0, 6));
    group.ok("two bases", bytes(contents(1, 1, &[one.clone()], &[two.clone(), one.clone()])), facts(1, 1, 1, 2, 3));
    group.ok("depth 8", bytes(contents(1, 8, &[one.clone()], &[two.clone()])), facts(1, 8, 1, 1, 3));
    group.ok(
        "4,096 chunks",
        bytes(Bytes::Parts(vec![[1, 0, 0, 16, 0, 0].into(), repeat(&one, 4096)])),
        facts(1, 0, 4096, 0, 3 * 4096),
    );
    group.ok(
        "256 bases",
        bytes(Bytes::Parts(vec![[1, 1, 1, 0, 0, 1].into(), repeat(&one, 257)])),
        facts(1, 1, 1, 256, 3),
    );
    group.ok("8 MiB", bytes(contents(1, 0, &vec![big.clone(); 8], &[])), facts(1, 0, 8, 0, 8 << 20));
    group.ok("bases of 4 MiB", bytes(contents(1, 1, &[one.clone()], &vec![big.clone(); 4])), facts(1, 1, 1, 4, 3));

    group.damaged("kind 0", bytes(contents(0, 0, &[one.clone()], &[])));
    group.damaged("kind 3", bytes(contents(3, 0, &[one.clone()], &[])));
    group.damaged("depth 9", bytes(contents(1, 9, &[one.clone()], &[two.clone()])));
    group.damaged("depth 1 without bases", bytes(contents(1, 1, &[one.clone()], &[])));
    group.damaged("bases at depth 0", bytes(contents(1, 0, &[one.clone()], &[two.clone()])));
    group.damaged("no chunks", bytes(contents(1, 0, &[], &[])));
    group.damaged("4,097 chunks", bytes(Bytes::Parts(vec![[1, 0, 1, 16, 0, 0].into(), repeat(&one, 4097)])));
    group.damaged("257 bases", bytes(Bytes::Parts(vec![[1, 1, 1, 0, 1, 1].into(), repeat(&one, 258)])));
    group.damaged("a chunk of no bytes", bytes(contents(1, 0, &[entry([1; 32], 0)], &[])));
    group.damaged("a chunk past 1 MiB", bytes(contents(1, 0, &[entry([1; 32], (1 << 20) + 1)], &[])));
    group.damaged("a chunk of 4 GiB", bytes(contents(1, 0, &[entry([1; 32], u32::MAX)], &[])));
    group.damaged("a base of no bytes", bytes(contents(1, 1, &[one.clone()], &[entry([1; 32], 0)])));
    group.damaged("a base past 1 MiB", bytes(contents(1, 1, &[one.clone()], &[entry([1; 32], (1 << 20) + 1)])));
    group.damaged("one byte past 8 MiB", {
        bytes(contents(1, 0, &[vec![big.clone(); 8], vec![entry([1; 32], 1)]].concat(), &[]))
    });
    group.damaged("bases of one byte past 4 MiB", {
        bytes(contents(1, 1, &[one.clone()], &[vec![big.clone(); 4], vec![entry([1; 32], 1)]].concat()))
    });
    group.damaged("nothing", bytes(b""));
    group.damaged("cut within the counts", bytes([1, 0, 1, 0, 0]));
    group.damaged("a chunk fewer than stated", bytes([&[1, 0, 2, 0, 0, 0], &one[..]].concat()));
    group.damaged("a base fewer than stated", bytes([&[1, 1, 1, 0, 1, 0], &one[..]].concat()));
    group.damaged("65,535 chunks stated", bytes([1, 0, 255, 255, 0, 0]));
    group.damaged("a byte too many", bytes([&contents(1, 0, &[one.clone()], &[])[..], &[0]].concat()));
    group
}

fn blob_of() -> Group {
    let mut group = Group::new(
        "blob",
        "blob.md",
        "A blob opened by its contents. `bases` are the plaintexts of its bases, in order, as a reader would find them.",
        KEYS.given().value("bases", json!([])),
    );
    let both = contents(1, 0, &[chunk(b"first "), chunk(b"second")], &[]);
    let good = blob(&both, b"first second");
    let given = |contents: &[u8], sealed: &Sealed| bytes(sealed.make()).bytes("contents", contents);
    let plain = |plaintext: &[u8]| json!({ "plaintext": fact(plaintext) });
    group.ok("two chunks", given(&both, &good), plain(b"first second"));
    let lists = contents(2, 0, &[list_chunk(b"a list")], &[]);
    group.ok("of lists", given(&lists, &blob(&lists, b"a list")), plain(b"a list"));
    group.ok(
        "the same chunk twice",
        {
            let twice = contents(1, 0, &[chunk(b"again"), chunk(b"again")], &[]);
            given(&twice, &blob(&twice, b"againagain"))
        },
        plain(b"againagain"),
    );
    let compressed = |contents: &[u8], length: usize, frame: &[u8]| Sealed {
        object_id: KEYS.name("blob-list", contents),
        ..Sealed::frame(contents[0], length as u32, frame)
    };
    group.ok(
        "compressed",
        given(&both, &compressed(&both, 12, &Frame::raw(b"first second").make())),
        plain(b"first second"),
    );

    // 600 bytes of noise as bases; the plaintext repeats most of them. Made by zstd 1.5.7 with the bases as prefix.
    let base = noise("base", 600);
    let delta_plain = [&base[100..400], b"between", &base[300..600]].concat();
    let delta_frame = unhex("28b52ffd605f019d0000386265747765656e0200296244b5947b750101");
    let delta = contents(1, 1, &[chunk(&delta_plain)], &[chunk(&base[..300]), chunk(&base[300..])]);
    let sealed = compressed(&delta, delta_plain.len(), &delta_frame);
    let halves = |a: &[u8], b: &[u8]| given(&delta, &sealed).list("bases", &[a.to_vec(), b.to_vec()]);
    group.ok("against two bases", halves(&base[..300], &base[300..]), plain(&delta_plain));
    group.damaged("bases in another order", halves(&base[300..], &base[..300]));
    group.damaged("one bit of a base flipped", halves(&base[..300], &flip(base[300..].to_vec(), 0)));
    group.damaged("bases not found", given(&delta, &sealed));
    group.damaged("against bases, and lists none", {
        let none = contents(1, 0, &[chunk(&delta_plain)], &[]);
        given(&none, &compressed(&none, delta_plain.len(), &delta_frame))
    });
    group.ok(
        "bases and no compression: they are not read",
        given(&delta, &blob(&delta, &delta_plain)),
        plain(&delta_plain),
    );

    group.damaged("chunks listed in another order", {
        given(&contents(1, 0, &[chunk(b"second"), chunk(b"first ")], &[]), &good)
    });
    group.damaged("listed at another depth", {
        given(&contents(1, 2, &[chunk(&delta_plain)], &[chunk(&base[..300]), chunk(&base[300..])]), &sealed)
            .list("bases", &[base[..300].to_vec(), base[300..].to_vec()])
    });
    group.damaged("listed with another base", {
        given(&contents(1, 1, &[chunk(&delta_plain)], &[chunk(&base[..300]), chunk(b"x")]), &sealed)
            .list("bases", &[base[..300].to_vec(), base[300..].to_vec()])
    });
    group.damaged("listed with another length", {
        given(&contents(1, 0, &[chunk(b"first "), entry(KEYS.name("chunk-id", b"second"), 7)], &[]), &good)
    });
    group.damaged("a chunk with another's name", {
        let lying = contents(1, 0, &[chunk(b"first "), entry(KEYS.name("chunk-id", b"other."), 6)], &[]);
        given(&lying, &blob(&lying, b"first second"))
    });
    group.damaged("a chunk with the name of a list's", {
        let lying = contents(1, 0, &[list_chunk(b"first ")], &[]);
        given(&lying, &blob(&lying, b"first "))
    });
    group.damaged("a list's chunk with the name of an item's", {
        let lying = contents(2, 0, &[chunk(b"first ")], &[]);
        given(&lying, &blob(&lying, b"first "))
    });
    group.damaged("plaintext longer than its chunks", given(&both, &blob(&both, b"first second.")));
    group.damaged("plaintext shorter than its chunks", given(&both, &blob(&both, b"first secon")));
    group.damaged("sealed as the other kind", {
        let sealed = Sealed { kind: 2, ..blob(&both, b"first second") };
        given(&both, &sealed)
    });
    group.damaged("sealed without its contents", given(&both, &Sealed { object_id: NO_ID, ..good.clone() }));
    group.damaged("one bit flipped", bytes(flip(good.make(), 45)).bytes("contents", &both));
    group
}

fn directory_of() -> Group {
    let mut group = Group::new(
        "directory",
        "pack.md",
        "The plaintext of a pack's directory, and where the directory begins in the pack.",
        Given::default(),
    );
    let one = contents(1, 0, &[chunk(b"one")], &[]);
    let two = contents(2, 0, &[chunk(b"two"), chunk(b"three")], &[]);
    let given = |lines: &[Vec<u8>], end: u32| bytes(lines.concat()).value("end", end);
    let facts = |blobs: usize, chunks: usize| json!({ "blobs": blobs, "chunks": chunks });
    group.ok("no blobs", given(&[], 0), facts(0, 0));
    group.ok("one blob", given(&[placed(0, 59, &one)], 59), facts(1, 1));
    group.ok("two blobs", given(&[placed(0, 59, &one), placed(59, 70, &two)], 129), facts(2, 3));
    group.damaged("the first not at 0", given(&[placed(1, 59, &one)], 60));
    group.damaged("a gap", given(&[placed(0, 59, &one), placed(60, 70, &two)], 130));
    group.damaged("an overlap", given(&[placed(0, 59, &one), placed(58, 70, &two)], 128));
    group.damaged("the same blob twice", given(&[placed(0, 59, &one), placed(0, 59, &one)], 59));
    group.damaged("ends before the directory", given(&[placed(0, 59, &one)], 60));
    group.damaged("ends within the directory", given(&[placed(0, 59, &one)], 58));
    group.damaged("no blobs in a pack that has some", given(&[], 59));
    group.damaged("a blob too short for a box", given(&[placed(0, 55, &one)], 55));
    group.damaged("a blob of no bytes", given(&[placed(0, 0, &one)], 0));
    group.damaged("a blob past the largest pack", given(&[placed(0, 83_886_081, &one)], 83_886_081));
    group.damaged("lengths that overflow", given(&[placed(0, u32::MAX, &one), placed(u32::MAX, u32::MAX, &two)], 0));
    group.damaged("cut within a line", bytes([&placed(0, 59, &one)[..], &[0; 4]].concat()).value("end", 59));
    group.damaged("cut within contents", bytes(&placed(0, 59, &one)[..20]).value("end", 59));
    group.damaged("a blob of kind 3", given(&[placed(0, 59, &contents(3, 0, &[chunk(b"one")], &[]))], 59));
    group
}

fn pack_of() -> Group {
    let mut group =
        Group::new("pack", "pack.md", "A whole pack, read from its end as for rebuilding an index.", KEYS.given());
    let make = |plaintext: &[u8]| {
        let listed = contents(1, 0, &[chunk(plaintext)], &[]);
        (listed.clone(), blob(&listed, plaintext).make())
    };
    let blobs = [make(b"one"), make(b"two")];
    let good = pack(&blobs);
    let bodies = blobs[0].1.len() + blobs[1].1.len();
    let facts = |blobs: usize, chunks: usize| json!({ "blobs": blobs, "chunks": chunks });
    let length = |n: u32| [&good[..good.len() - 12], &n.to_le_bytes(), b"VLTPACK1"].concat();
    let stated = (good.len() - 12 - bodies) as u32;
    group.ok("two blobs", bytes(&good), facts(2, 2));
    group.ok("no blobs", bytes(pack(&[])), facts(0, 0));
    group.ok(
        "a compressed directory",
        {
            let plain = directory(&blobs);
            let sealed = Sealed::frame(3, plain.len() as u32, &Frame::raw(&plain).make()).make();
            let end = (sealed.len() as u32).to_le_bytes();
            bytes([&good[..bodies], &sealed, &end, b"VLTPACK1"].concat())
        },
        facts(2, 2),
    );
    group.damaged("another magic", bytes(flip(good.clone(), -1)));
    group.damaged("a directory of no bytes", bytes(length(0)));
    group.damaged("a directory too short for a box", bytes(length(55)));
    group.damaged("a directory one byte shorter", bytes(length(stated - 1)));
    group.damaged("a directory one byte longer", bytes(length(stated + 1)));
    group.damaged("a directory longer than the pack", bytes(length(good.len() as u32)));
    group.damaged("a directory of 4 GiB", bytes(length(u32::MAX)));
    group.damaged("one bit of the directory flipped", bytes(flip(good.clone(), bodies as isize + 50)));
    group.damaged("bytes between blobs and directory", {
        bytes([&good[..bodies], b"between", &good[bodies..]].concat())
    });
    group.damaged("a blob missing", bytes(&good[blobs[0].1.len()..]));
    group.damaged("the last byte missing", bytes(&good[..good.len() - 1]));
    group.damaged("a byte too many", bytes([&good[..], &[0]].concat()));
    group.damaged("nothing", bytes(b""));
    group.damaged("only a trailer", bytes(&good[good.len() - 12..]));
    group.damaged("a directory sealed as an index", {
        let sealed = Sealed::new(4, &directory(&blobs)).make();
        let end = (sealed.len() as u32).to_le_bytes();
        bytes([&good[..bodies], &sealed, &end, b"VLTPACK1"].concat())
    });
    group
}

fn index_of() -> Group {
    let mut group = Group::new("index", "index.md", "The plaintext of an index object.", Given::default());
    let line = |offset| placed(offset, 59, &contents(1, 0, &[chunk(b"one")], &[]));
    let one = ([1; 32], 200, line(0));
    let two = ([2; 32], 259, [line(0), line(59)].concat());
    let facts = |supersedes: usize, packs: usize, blobs: usize| json!({ "supersedes": supersedes, "packs": packs, "blobs": blobs });
    group.ok("nothing in it", bytes(index(&[], &[])), facts(0, 0, 0));
    group.ok("a pack", bytes(index(&[], &[one.clone()])), facts(0, 1, 1));
    group.ok("two packs", bytes(index(&[], &[one.clone(), two.clone()])), facts(0, 2, 3));
    group.ok("supersedes two", bytes(index(&[[3; 32], [4; 32]], &[one.clone()])), facts(2, 1, 1));
    group.ok("a pack without blobs", bytes(index(&[], &[([1; 32], 68, vec![])])), facts(0, 1, 0));
    group.ok("a pack just long enough", bytes(index(&[], &[([1; 32], 59 + 68, line(0))])), facts(0, 1, 1));
    group.ok("the largest pack", bytes(index(&[], &[([1; 32], 83_886_080, line(0))])), facts(0, 1, 1));
    group.damaged("a pack one byte too short", bytes(index(&[], &[([1; 32], 59 + 67, line(0))])));
    group.damaged("a pack past the limit", bytes(index(&[], &[([1; 32], 83_886_081, line(0))])));
    group.damaged("a gap in a directory", bytes(index(&[], &[([1; 32], 300, [line(0), line(60)].concat())])));
    let count = |n: u32| n.to_le_bytes();
    group.damaged("4 billion superseded", bytes(count(u32::MAX)));
    group.damaged("4 billion packs", bytes([count(0), count(u32::MAX)].concat()));
    group.damaged("one superseded more than there are", bytes([&count(2)[..], &[3; 32], &count(0)].concat()));
    group.damaged("one pack more than there are", {
        let mut raw = index(&[], &[one.clone()]);
        raw[4] = 2;
        bytes(raw)
    });
    group.damaged("a directory longer than the index", {
        let mut raw = index(&[], &[one.clone()]);
        raw[44] += 1;
        bytes(raw)
    });
    group.damaged(
        "a directory of 4 GiB",
        bytes([&count(0)[..], &count(1), &[1; 32], &count(200), &count(u32::MAX)].concat()),
    );
    group.damaged("nothing", bytes(b""));
    group.damaged("cut within a count", bytes(b"\0\0\0\0\0\0"));
    group.damaged("the last byte missing", {
        let raw = index(&[], &[one.clone()]);
        bytes(&raw[..raw.len() - 1])
    });
    group.damaged("a byte too many", bytes([index(&[], &[one]), vec![0]].concat()));
    group
}

fn manifest() -> Group {
    let mut group = Group::new("manifest", "manifest.md", "The plaintext of a manifest.", Given::default());
    let lines = chunk(b"not looked at");
    let base = manifest_fields(reference(0, &[lines.clone()]));
    let given = |fields: &Value| bytes(text(fields.to_string()));
    let changed = |field: &str, new: Value| given(&with(base.clone(), field, new));
    let facts =
        |depth: u64, entries: usize| json!({ "source": "stdin", "items": 0, "depth": depth, "entries": entries });
    let list = |text: &str| json!({ "depth": 0, "list": text });
    group.ok("as vault writes it", given(&base), facts(0, 1));
    group.ok("no entries", changed("item_lines", reference(0, &[])), facts(0, 0));
    group.ok("a list of lists of lists of lists", changed("item_lines", reference(4, &[lines.clone()])), facts(4, 1));
    group.ok("a field that nobody knows", changed("colour", json!([{ "deep": {} }])), facts(0, 1));
    group.ok(
        "a previous one and a parent",
        given(&with(with(base.clone(), "previous", hex([1; 32])), "parent", hex([2; 32]))),
        facts(0, 1),
    );
    group.ok("whole seconds", changed("seconds", json!(3)), facts(0, 1));
    let inline = |entries: usize| {
        let whole = base.to_string();
        let encoded = BASE64.encode(&lines);
        let (head, tail) = whole.split_once(&encoded).expect("it is there");
        bytes(Bytes::Parts(vec![text(head), repeat(&encoded, entries), text(tail)]))
    };
    group.ok("4,096 entries", inline(4096), facts(0, 4096));
    group.damaged("4,097 entries", inline(4097));
    let padded = |length: usize| {
        let empty = with(base.clone(), "pad", "").to_string();
        let (head, tail) = empty.split_at(empty.len() - 2);
        bytes(Bytes::Parts(vec![text(head), repeat("x", length - empty.len()), text(tail)]))
    };
    group.ok("4 MiB", padded(4 << 20), facts(0, 1));
    group.damaged("one byte past 4 MiB", padded((4 << 20) + 1));

    group.unsupported("version 2", changed("vault", json!(2)));
    group.unsupported("version 2 with other fields", given(&json!({ "vault": 2, "when": "now" })));
    group.damaged("version as text", changed("vault", json!("1")));
    for (name, field) in [
        ("no version", "vault"),
        ("no time", "time"),
        ("no source", "source"),
        ("no host id", "host_id"),
        ("no sequence number", "seq"),
        ("no sum of items", "items"),
        ("no sum of bytes", "bytes"),
        ("no geometries", "chunkers"),
        ("no item lines", "item_lines"),
    ] {
        group.damaged(name, given(&without(base.clone(), field)));
    }
    group.damaged("a sequence number below 0", changed("seq", json!(-1)));
    group.damaged("half an item", changed("items", json!(1.5)));
    group.damaged("more bytes than 64 bits hold", {
        bytes(text(base.to_string().replace("\"bytes\":0", "\"bytes\":18446744073709551616")))
    });
    group.damaged("a time that is none", changed("time", json!("2026-13-41T25:00:00Z")));
    group.damaged("a time that is a number", changed("time", json!(1_790_000_000)));
    group.damaged("a host id in capitals", changed("host_id", json!(HOST_ID.to_uppercase())));
    group.damaged("a previous one of 31 bytes", changed("previous", json!(hex([1; 31]))));
    group.damaged("a tag that is a number", changed("tags", json!([1])));
    group.damaged("an engine that is text", changed("engine", json!("postgres")));
    group.damaged("a time twice", {
        bytes(text(base.to_string().replacen('{', "{\"time\":\"2026-11-21T12:00:00Z\",", 1)))
    });
    group.damaged("depth 5", changed("item_lines", reference(5, &[lines.clone()])));
    group.damaged("depth below 0", changed("item_lines", json!({ "depth": -1, "list": "" })));
    group.damaged("no depth", changed("item_lines", json!({ "list": "" })));
    group.damaged("a list that is not base64", changed("item_lines", list("####")));
    group.damaged("a list in the other base64", changed("item_lines", list(&"-_-_".repeat(12))));
    group.damaged("base64 cut short", {
        let encoded = BASE64.encode(&lines);
        changed("item_lines", list(&encoded[..encoded.len() - 1]))
    });
    group.damaged("base64 with a newline", changed("item_lines", list(&format!("{}\n", BASE64.encode(&lines)))));
    group.damaged("35 bytes of entries", changed("item_lines", reference(0, &[lines[..35].to_vec()])));
    group.damaged("39 bytes of entries", changed("item_lines", reference(0, &[lines.clone(), vec![0; 3]])));
    group.damaged("an entry of no bytes", changed("item_lines", reference(0, &[entry([1; 32], 0)])));
    group.damaged("an entry past 1 MiB", changed("item_lines", reference(0, &[entry([1; 32], (1 << 20) + 1)])));
    group.damaged("nothing", bytes(b""));
    group.damaged("a list, not an object", given(&json!([base])));
    group.damaged("cut short", bytes(text(&base.to_string()[..200])));
    group.damaged("bytes after it", bytes(text(format!("{base}}}"))));
    group.damaged("text that is not UTF-8", {
        let whole = base.to_string().replace("orders", "@");
        let (head, tail) = whole.split_once('@').expect("it is there");
        bytes([head.as_bytes(), &[0xff], tail.as_bytes()].concat())
    });
    group.damaged("half of a surrogate pair", bytes(text(base.to_string().replace("orders", "\\ud800"))));
    group.damaged("a number that is none", bytes(text(base.to_string().replace("0.25", "NaN"))));
    group.damaged("a million brackets", {
        let whole = with(base.clone(), "engine", json!({ "deep": "@" })).to_string();
        let (head, tail) = whole.split_once("\"@\"").expect("it is there");
        bytes(Bytes::Parts(vec![text(head), repeat("[", 1_000_000), repeat("]", 1_000_000), text(tail)]))
    });
    group
}

fn item() -> Group {
    let mut group = Group::new("item", "manifest.md", "A line of an item, with its newline.", Given::default());
    let stream = reference(0, &[chunk(b"data")]);
    let base = item_fields("db/orders", b"data", stream.clone());
    let line = |fields: &Value| bytes(text(format!("{fields}\n")));
    let path = |path: &str| line(&with(base.clone(), "path", path));
    let facts = |path: &str| json!({ "path": path, "bytes": 4, "depth": 0, "entries": 1 });
    group.ok("as short as can be", line(&base), facts("db/orders"));
    group.ok(
        "with everything",
        {
            let full = with(with(with(base.clone(), "rows", 3), "bytes_new", 4), "chunker", 0);
            line(&with(full, "meta", json!({ "any": ["thing", null] })))
        },
        facts("db/orders"),
    );
    group.ok("a field that nobody knows", line(&with(base.clone(), "colour", "red")), facts("db/orders"));
    for ok in ["a", "a/b/c", "...", "a/..b", ".a", "%2E%2E", "Größe/表", "a b\\c", "new\nline", "\u{7f}"] {
        group.ok(Box::leak(format!("path {ok:?}").into_boxed_str()), path(ok), facts(ok));
    }
    group.ok("path of 4,096 bytes", path(&"x".repeat(4096)), facts(&"x".repeat(4096)));
    group.damaged("path of 4,097 bytes", path(&"x".repeat(4097)));
    group.damaged("path of 4,098 bytes in 2,049 letters", path(&"ö".repeat(2049)));
    for bad in ["", "/", "/etc/passwd", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "a/./b", "./a", "a\0b", "\0"]
    {
        group.damaged(Box::leak(format!("path {bad:?}").into_boxed_str()), path(bad));
    }
    group.damaged("a path that is a number", line(&with(base.clone(), "path", 1)));
    for (name, field) in
        [("no path", "path"), ("no kind", "kind"), ("no bytes", "bytes"), ("no hash", "hash"), ("no stream", "stream")]
    {
        group.damaged(name, line(&without(base.clone(), field)));
    }
    group.damaged("a path twice", bytes(text(format!("{base}\n").replacen('{', "{\"path\":\"x\",", 1))));
    group.damaged("bytes below 0", line(&with(base.clone(), "bytes", -1)));
    group.damaged("bytes that are text", line(&with(base.clone(), "bytes", "4")));
    group.damaged("rows below 0", line(&with(base.clone(), "rows", -1)));
    group.damaged("a hash of 31 bytes", line(&with(base.clone(), "hash", hex([1; 31]))));
    group.damaged("a hash in capitals", line(&with(base.clone(), "hash", hex([0xab; 32]).to_uppercase())));
    group.damaged("a hash that is not hex", line(&with(base.clone(), "hash", "x".repeat(64))));
    group.damaged("meta that is a list", line(&with(base.clone(), "meta", json!([]))));
    group.damaged("stream at depth 5", line(&with(base.clone(), "stream", reference(5, &[chunk(b"data")]))));
    group.damaged("stream of 35 bytes", line(&with(base.clone(), "stream", reference(0, &[vec![1; 35]]))));
    group.damaged("stream that is a list", line(&with(base.clone(), "stream", json!([]))));
    group.damaged("cut short", bytes(text(format!("{}\n", &base.to_string()[..60]))));
    group.damaged("not an object", bytes(text("\"db/orders\"\n")));
    group.damaged("an empty line", bytes(text("\n")));
    let padded = |length: usize| {
        let empty = with(base.clone(), "pad", "").to_string();
        let (head, tail) = empty.split_at(empty.len() - 2);
        let pad = length - empty.len() - 1;
        bytes(Bytes::Parts(vec![text(head), repeat("x", pad), text(format!("{tail}\n"))]))
    };
    group.ok("1 MiB", padded(1 << 20), facts("db/orders"));
    group.damaged("one byte past 1 MiB", padded((1 << 20) + 1));
    group
}

fn record() -> Group {
    let mut group =
        Group::new("record", "records.md", "The plaintext of a mark (6), lease (7) or removal (8).", Given::default());
    let given = |kind: u8, fields: &Value| bytes(text(fields.to_string())).value("kind", kind);
    let mark = json!({ "time": "2026-11-21T12:00:00Z", "host": "db1", "packs": [hex([1; 32])] });
    let lease = json!({
        "time": "2026-11-21T12:00:00.5Z", "host": "db1", "host_id": HOST_ID, "pid": 4242, "pid_start": 99,
        "boot_id": "8d3c", "nonce": HOST_ID,
    });
    let removal = json!({
        "time": "2026-11-21T12:00:00Z", "host": "db1", "supersedes": [hex([2; 32])],
        "backups": [{ "id": hex([1; 32]), "host_id": HOST_ID, "seq": 7 }],
    });
    group.ok("a mark", given(6, &mark), json!({ "packs": [hex([1; 32])] }));
    group.ok("a mark of nothing", given(6, &with(mark.clone(), "packs", json!([]))), json!({ "packs": [] }));
    group.ok(
        "a mark with a field that nobody knows",
        given(6, &with(mark.clone(), "x", 1)),
        json!({ "packs": [hex([1; 32])] }),
    );
    group.ok("a lease", given(7, &lease), json!({ "host_id": HOST_ID }));
    group.ok("a removal", given(8, &removal), json!({ "backups": [hex([1; 32])] }));
    group.damaged("a mark without packs", given(6, &without(mark.clone(), "packs")));
    group.damaged("a mark of text", given(6, &with(mark.clone(), "packs", json!(["all"]))));
    group.damaged("a mark of a pack of 31 bytes", given(6, &with(mark.clone(), "packs", json!([hex([1; 31])]))));
    group.damaged("a mark without a time", given(6, &without(mark.clone(), "time")));
    group.damaged("a mark without a host", given(6, &without(mark.clone(), "host")));
    group.damaged("a mark at no time", given(6, &with(mark.clone(), "time", "soon")));
    group.damaged("a lease without a process", given(7, &without(lease.clone(), "pid")));
    group.damaged("a lease of a process below 0", given(7, &with(lease.clone(), "pid", -1)));
    group.damaged("a lease without a host id", given(7, &without(lease.clone(), "host_id")));
    group.damaged("a lease read as a removal", given(8, &lease));
    group.damaged("a removal without backups", given(8, &without(removal.clone(), "backups")));
    group.damaged("a removal of a backup without an id", {
        given(8, &with(removal.clone(), "backups", json!([{ "host_id": HOST_ID, "seq": 7 }])))
    });
    group.damaged("a removal of text", given(8, &with(removal.clone(), "backups", json!([hex([1; 32])]))));
    group.damaged("a removal that supersedes text", given(8, &with(removal, "supersedes", json!(["x"]))));
    group.damaged("not JSON", bytes(text("mark")).value("kind", 6));
    group.damaged("nothing", bytes(b"").value("kind", 6));
    group
}

fn cut() -> Group {
    let mut group = Group::new(
        "cut",
        "chunking.md",
        "A stream, a geometry, and the lengths of its chunks with the repository's table.",
        KEYS.given(),
    );
    let geometry = |min: usize, avg: usize, max: usize| json!({ "chunker": 1, "min": min, "avg": avg, "max": max });
    let standard = (16 << 10, 64 << 10, 256 << 10);
    let small = (64, 256, 1024);
    let mut ok = |name, seed: &'static str, length: usize, (min, avg, max): (usize, usize, usize)| {
        let data = noise(seed, length);
        let given = bytes(Bytes::Noise(seed, length)).value("geometry", geometry(min, avg, max));
        group.ok(name, given, json!({ "lengths": cuts(&KEYS.table(), min, avg, max, &data) }));
    };
    ok("a megabyte", "stream", 1_000_000, standard);
    ok("an empty stream", "stream", 0, standard);
    ok("one byte", "stream", 1, standard);
    ok("exactly the least", "stream", 16 << 10, standard);
    ok("one byte more than the least", "stream", (16 << 10) + 1, standard);
    ok("small chunks", "small", 20_000, small);
    ok("an odd length", "small", 5_001, small);
    ok("one byte more than the most", "small", 1025, small);
    ok("an average that is no power of two", "small", 20_000, (64, 362, 1024));
    ok("an average that is rounded up", "small", 20_000, (64, 364, 1024));
    ok("the largest geometry", "stream", 3_000_000, (64, (1 << 20) - 2, 1 << 20));
    ok("other bytes", "other", 20_000, small);
    group.ok(
        "zeros are cut at the most",
        bytes(repeat([0], 600_000)).value("geometry", geometry(standard.0, standard.1, standard.2)),
        json!({ "lengths": [262_144, 262_144, 75_712] }),
    );
    let keys = Keys { master: [3; 32], ..KEYS };
    group.ok(
        "the same stream in another repository",
        {
            let given = bytes(Bytes::Noise("small", 20_000)).value("geometry", geometry(small.0, small.1, small.2));
            given.bytes("master", keys.master)
        },
        json!({ "lengths": cuts(&keys.table(), small.0, small.1, small.2, &noise("small", 20_000)) }),
    );
    for (name, new) in [
        ("chunker 0", json!({ "chunker": 0, "min": 64, "avg": 256, "max": 1024 })),
        ("chunker 2", json!({ "chunker": 2, "min": 64, "avg": 256, "max": 1024 })),
        ("the least below 64", geometry(62, 256, 1024)),
        ("an odd least", geometry(65, 256, 1024)),
        ("an odd average", geometry(64, 257, 1024)),
        ("an odd most", geometry(64, 256, 1025)),
        ("an average below 256", geometry(64, 254, 1024)),
        ("the least not below the average", geometry(256, 256, 1024)),
        ("the average not below the most", geometry(64, 1024, 1024)),
        ("the most past 1 MiB", geometry(64, 256, (1 << 20) + 2)),
        ("the most 0", geometry(64, 256, 0)),
    ] {
        group.unsupported(name, bytes(Bytes::Noise("small", 5000)).value("geometry", new));
    }
    group
}

fn escape() -> Group {
    let mut group = Group::new("escape", "manifest.md", "A name as a component of an item path.", Given::default());
    for (name, component) in [
        ("public", "public"),
        ("", "%"),
        ("%", "%25"),
        (".", "%2E"),
        ("..", "%2E."),
        ("...", "..."),
        (".hidden", ".hidden"),
        ("a/b", "a%2Fb"),
        ("new\nline", "new%0Aline"),
        ("\0", "%00"),
        ("\u{7f}", "%7F"),
        ("%2F", "%252F"),
        ("Größe ☂", "Größe ☂"),
        ("a b\\c:*", "a b\\c:*"),
    ] {
        let case = Box::leak(format!("name {name:?}").into_boxed_str());
        group.ok(case, Given::default().value("name", name), json!({ "component": component }));
    }
    group
}
