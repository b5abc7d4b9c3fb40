//! Puts a vector to the library's parsers.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};
use vault::backend::{Backend, BackendError, Memory};
use vault::chunk::Chunker;
use vault::format::FormatError;
use vault::format::config::Config;
use vault::format::index::Index;
use vault::format::manifest::{ChunkerParams, Item, Manifest, StreamRef};
use vault::format::pack::{BlobContents, Directory, check_filled, decode_directory, directory_range};
use vault::format::records::{Lease, Mark, Removal, decode_record};
use vault::format::slot::Slot;
use vault::id::RepoId;
use vault::pipeline::PipelineError;
use vault::pipeline::read::Reader;
use vault::progress::Progress;
use vault::repo::{Places, RepoError, Repository};
use vault::seal::blob::Opener;
use vault::seal::boxed::{Compression, NAMED_BY_HASH, OpenError, open_box, open_object, seal_box};
use vault::seal::keys::{Keys, Kind, MasterKey};
use vault::seal::slot::{Secret, SlotEntropy, SlotError, make_slot, open_slot};
use vault::source::{escape_component, unescape_component};

use crate::bytes::{expand, fact};

/// Class of a failure, as the vectors name it, and the library's message.
pub struct Failure {
    pub class: &'static str,
    pub message: String,
}

type Given = Map<String, Value>;

/// Returns the facts of what `given` holds.
pub fn run(object: &str, given: &Given) -> Result<Value, Failure> {
    match object {
        "keys" => keys(given),
        "config" => config(given),
        "slot" => slot(given),
        "box" | "frame" => sealed(given),
        "contents" => contents(given),
        "blob" => blob(given),
        "directory" => directory(given),
        "pack" => pack(given),
        "index" => index(given),
        "manifest" => manifest(given),
        "item" => item(given),
        "record" => record(given),
        "cut" => cut(given),
        "escape" => escape(given),
        "repository" => repository(given),
        other => panic!("nothing here reads a {other}"),
    }
}

fn bytes(given: &Given, name: &str) -> Vec<u8> {
    expand(given.get(name).unwrap_or_else(|| panic!("{name} is not given")))
}

fn array<const N: usize>(given: &Given, name: &str) -> [u8; N] {
    bytes(given, name).try_into().unwrap_or_else(|_| panic!("{name} has another length"))
}

fn number(given: &Given, name: &str) -> u64 {
    given[name].as_u64().unwrap_or_else(|| panic!("{name} is no number"))
}

fn keys_of(given: &Given) -> Keys {
    let epoch = u32::try_from(number(given, "epoch")).expect("32 bits");
    Keys::derive(&MasterKey { secret: array(given, "master"), epoch }, RepoId(array(given, "repository")))
}

fn kind_of(given: &Given) -> Kind {
    Kind::ALL[number(given, "kind") as usize - 1]
}

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// What the library shows of its subkeys: what it names, seals and cuts with them.
fn keys(given: &Given) -> Result<Value, Failure> {
    let (keys, data) = (keys_of(given), bytes(given, "data"));
    let table: Vec<u8> = keys.cdc_table().iter().flat_map(|word| word.to_le_bytes()).collect();
    let seal = |kind| {
        let mut out = Vec::new();
        seal_box(&keys, kind, &NAMED_BY_HASH, Compression::None, data.len(), &data, &[0; 32], &mut out);
        out
    };
    // The boxes' keys and the nonces' are the library's own: what it seals must be what the derivation gives.
    let derive = |purpose: &str| {
        let mut hasher = blake3::Hasher::new_derive_key(&format!("vault 2026-11 v1 {purpose}"));
        hasher.update(&bytes(given, "master")).update(&bytes(given, "repository"));
        hex(hasher.update(&(number(given, "epoch") as u32).to_le_bytes()).finalize().as_bytes())
    };
    let mut subkeys = Map::new();
    for kind in Kind::ALL {
        let unsealed = unseal(&derive(kind.word()), &keys, &seal(kind));
        assert_eq!(unsealed, Some(data.clone()), "boxes of {kind:?} are sealed with the subkey of that purpose");
        subkeys.insert(kind.word().to_owned(), derive(kind.word()).into());
    }
    for purpose in ["nonce", "chunk-id", "list-id", "blob-list", "config-mac"] {
        subkeys.insert(purpose.to_owned(), derive(purpose).into());
    }
    Ok(json!({
        "subkeys": subkeys,
        "chunk-id": hex(keys.chunk_id(&data).as_bytes()),
        "list-id": hex(keys.list_id(&data).as_bytes()),
        "blob-list": hex(&keys.blob_list(&data)),
        "config-mac": hex(&keys.config_mac(&data)),
        "cdc-table": fact(&table),
        "nonce": hex(&seal(Kind::Index)[16..40]),
    }))
}

fn unseal(key: &str, keys: &Keys, sealed: &[u8]) -> Option<Vec<u8>> {
    use chacha20poly1305::aead::{Aead, Payload};
    use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
    let key: [u8; 32] = HEXLOWER.decode(key.as_bytes()).ok()?.try_into().ok()?;
    let nonce: [u8; 24] = sealed[16..40].try_into().ok()?;
    let aad = [b"vault/obj/1", &keys.repo.as_bytes()[..], &sealed[..16], &NAMED_BY_HASH].concat();
    XChaCha20Poly1305::new(&key.into()).decrypt(&nonce.into(), Payload { msg: &sealed[40..], aad: &aad }).ok()
}

fn config(given: &Given) -> Result<Value, Failure> {
    let raw = bytes(given, "bytes");
    let repository = Config::decode(&raw)?.repository();
    let epoch = u32::try_from(number(given, "epoch")).expect("32 bits");
    let master = MasterKey { secret: array(given, "master"), epoch };
    // The rest as whoever opens a repository sees it: with a slot that holds the master key.
    let secret = Secret::KeyFile([1; 32].into());
    let entropy = SlotEntropy { id: [1; 16], salt: [2; 32], nonce: [3; 24] };
    let slot = make_slot(repository, &master, &secret, "", 0, entropy)?;
    let store = Memory::new();
    store.overwrite("config", raw);
    store.overwrite(&format!("keys/{}", slot.id), slot.encode());
    Ok(json!({ "repository": open(store, &secret)?.1.config.repository }))
}

fn secret(given: &Given) -> Secret {
    match given.get("password") {
        Some(password) => Secret::Password(expand(password).into()),
        None => Secret::KeyFile(array::<32>(given, "key_file").into()),
    }
}

fn slot(given: &Given) -> Result<Value, Failure> {
    let slot = Slot::decode(&bytes(given, "bytes"))?;
    if slot.repo.as_bytes() != &array::<16>(given, "repository") || slot.id.as_bytes() != &array::<16>(given, "slot") {
        return Err(Failure { class: "damaged", message: "another repository's, or under another name".to_owned() });
    }
    let master = open_slot(&slot, &secret(given))?;
    Ok(json!({ "master": hex(&master.secret), "epoch": master.epoch, "label": slot.label }))
}

fn sealed(given: &Given) -> Result<Value, Failure> {
    let (keys, kind, object_id) = (keys_of(given), kind_of(given), array(given, "object_id"));
    let raw = bytes(given, "bytes");
    let mut payload = Vec::new();
    let plaintext = match open_box(&keys, kind, &object_id, &raw, &mut payload)?.compression {
        Compression::None => payload,
        Compression::Zstd => open_object(&keys, kind, raw)?,
    };
    Ok(json!({ "plaintext": fact(&plaintext) }))
}

fn contents(given: &Given) -> Result<Value, Failure> {
    let contents = BlobContents::decode_exact(&bytes(given, "bytes"))?;
    Ok(json!({
        "kind": contents.kind as u8,
        "depth": contents.depth,
        "chunks": contents.chunks.len(),
        "bases": contents.bases.len(),
        "bytes": contents.raw_bytes(),
    }))
}

fn blob(given: &Given) -> Result<Value, Failure> {
    let contents = BlobContents::decode_exact(&bytes(given, "contents"))?;
    let bases: Vec<u8> = given["bases"].as_array().expect("a list").iter().flat_map(expand).collect();
    let mut plaintext = Vec::new();
    Opener::default().open(&keys_of(given), &contents, &bytes(given, "bytes"), &bases, &mut plaintext)?;
    Ok(json!({ "plaintext": fact(&plaintext) }))
}

fn directory_facts(directory: &Directory) -> Value {
    let chunks: usize = directory.iter().map(|blob| blob.contents.chunks.len()).sum();
    json!({ "blobs": directory.len(), "chunks": chunks })
}

fn directory(given: &Given) -> Result<Value, Failure> {
    let directory = decode_directory(&bytes(given, "bytes"))?;
    check_filled(&directory, number(given, "end"))?;
    Ok(directory_facts(&directory))
}

fn pack(given: &Given) -> Result<Value, Failure> {
    let (keys, raw) = (keys_of(given), bytes(given, "bytes"));
    let range = directory_range(raw.len() as u64, &raw)?;
    let directory = open_object(&keys, Kind::Directory, &raw[range.start as usize..range.end as usize])?;
    let directory = decode_directory(&directory)?;
    check_filled(&directory, range.start)?;
    Ok(directory_facts(&directory))
}

fn index(given: &Given) -> Result<Value, Failure> {
    let index = Index::decode(&bytes(given, "bytes"))?;
    let blobs: usize = index.packs.iter().map(|pack| pack.directory.len()).sum();
    Ok(json!({ "supersedes": index.supersedes.len(), "packs": index.packs.len(), "blobs": blobs }))
}

fn stream(stream: &StreamRef) -> (u32, usize) {
    (stream.depth, stream.entries.len())
}

fn manifest(given: &Given) -> Result<Value, Failure> {
    let manifest = Manifest::decode(&bytes(given, "bytes"))?;
    let (depth, entries) = stream(&manifest.item_lines);
    Ok(json!({ "source": manifest.source, "items": manifest.items, "depth": depth, "entries": entries }))
}

fn item(given: &Given) -> Result<Value, Failure> {
    let line = bytes(given, "bytes");
    // Whoever reads lines takes the newline off.
    let item = Item::decode_line(line.strip_suffix(b"\n").expect("a line ends with a newline"))?;
    let (depth, entries) = stream(&item.stream);
    Ok(json!({ "path": item.path, "bytes": item.bytes, "depth": depth, "entries": entries }))
}

fn record(given: &Given) -> Result<Value, Failure> {
    let raw = bytes(given, "bytes");
    Ok(match kind_of(given) {
        Kind::Mark => json!({ "packs": decode_record::<Mark>("mark", &raw)?.packs }),
        Kind::Lease => json!({ "host_id": decode_record::<Lease>("lease", &raw)?.host_id }),
        _ => {
            let removal = decode_record::<Removal>("removal", &raw)?;
            json!({ "backups": removal.backups.iter().map(|gone| gone.id).collect::<Vec<_>>() })
        }
    })
}

fn cut(given: &Given) -> Result<Value, Failure> {
    let params: ChunkerParams = serde_json::from_value(given["geometry"].clone()).expect("a geometry");
    let keys = keys_of(given);
    let unknown = |error: vault::chunk::GeometryError| Failure { class: "unsupported", message: error.to_string() };
    let chunker = Chunker::new(params, keys.cdc_table()).map_err(unknown)?;
    let data = bytes(given, "bytes");
    let mut lengths = Vec::new();
    let mut rest = &data[..];
    while let Some(length) = chunker.cut(rest, true) {
        lengths.push(length);
        rest = &rest[length..];
    }
    Ok(json!({ "lengths": lengths }))
}

fn escape(given: &Given) -> Result<Value, Failure> {
    let name = given["name"].as_str().expect("text");
    let component = escape_component(name);
    assert_eq!(unescape_component(&component).as_deref(), Some(name), "the inverse");
    Ok(json!({ "component": component }))
}

fn repository(given: &Given) -> Result<Value, Failure> {
    let store = Memory::new();
    let put = |objects: &Value| {
        for (name, bytes) in objects.as_object().expect("names and bytes") {
            store.overwrite(name, expand(bytes));
        }
    };
    put(&given["objects"]);
    put(&given["put"]);
    for name in given["remove"].as_array().expect("a list of names") {
        store.delete(name.as_str().expect("text")).expect("memory");
    }
    let (_folder, repo) = open(store, &secret(given))?;
    // A restore goes on with what the other index objects list; a case is about every object.
    if let Some((_, error)) = repo.load_index(&Progress::default())?.into_iter().next() {
        return Err(error.into());
    }
    let mut backups = Vec::new();
    for snapshot in repo.snapshots()? {
        let reader = Reader::new(repo.clone(), 2, Progress::default());
        let mut items = Vec::new();
        reader.each_item(&snapshot.manifest, &mut |item| {
            let mut data = Vec::new();
            reader.read_item(&item, &mut |piece| {
                data.extend_from_slice(piece);
                Ok(())
            })?;
            items.push(json!({ "path": item.path, "data": fact(&data) }));
            Ok(())
        })?;
        backups.push(json!({ "id": snapshot.id, "items": items }));
    }
    Ok(json!({ "backups": backups }))
}

/// Opens a repository as an installation that has never seen it.
fn open(store: Memory, secret: &Secret) -> Result<(tempfile::TempDir, Arc<Repository>), Failure> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let places = Places { cache: folder.path().join("cache"), state: folder.path().join("state") };
    let repo = Repository::open(Arc::new(store), secret, &places)?;
    Ok((folder, Arc::new(repo)))
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        let class = if matches!(error, FormatError::Version { .. } | FormatError::Newer { .. }) {
            "unsupported"
        } else {
            "damaged"
        };
        Self { class, message: error.to_string() }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let class = if matches!(error, OpenError::Unknown { .. }) { "unsupported" } else { "damaged" };
        Self { class, message: error.to_string() }
    }
}

impl From<SlotError> for Failure {
    fn from(error: SlotError) -> Self {
        let class = if matches!(error, SlotError::WrongSecret) { "wrong-key" } else { "damaged" };
        Self { class, message: error.to_string() }
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        let message = error.to_string();
        let class = match error {
            RepoError::WrongKey { .. } => "wrong-key",
            RepoError::Feature { .. } => "unsupported",
            RepoError::Format { source, .. } => Failure::from(source).class,
            RepoError::Damaged { .. } => "damaged",
            RepoError::Backend(BackendError::NotFound { .. } | BackendError::ShortRange { .. }) => "damaged",
            _ => "another error",
        };
        Self { class, message }
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Repo(error) => error.into(),
            PipelineError::Item { .. } => Self { class: "damaged", message: error.to_string() },
            other => Self { class: "another error", message: other.to_string() },
        }
    }
}
