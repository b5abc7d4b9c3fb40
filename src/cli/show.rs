//! `vault show`.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::context::Context;
use super::screen::{count, local_time, many, size};
use super::snapshot::json_of;
use crate::format::manifest::{Item, Manifest};
use crate::ops::restore::SnapshotItems;
use crate::repo::snapshots::{Snapshot, find};
use crate::source::ItemSource;

/// Show one snapshot: where it comes from, and its items with sizes, rows and new bytes
///
/// ID is a backup ID, any unique beginning of one, `latest`, `latest:SOURCE` or `latest:SOURCE:NAME`.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Which snapshot
    #[arg(value_name = "ID")]
    id: String,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let (repo, snapshots) = context.open_to_read()?;
    let snapshot = find(&snapshots, &args.id)?;
    let items = SnapshotItems::new(repo.clone(), snapshot.manifest.clone(), 1, context.progress.clone());
    if context.global.json {
        context.print(json_of(snapshot))?;
    } else {
        context.print(heading(snapshot))?;
        context.print(format!("{:>10} {:>14} {:>10}  {:<12} {}", "SIZE", "ROWS", "NEW", "KIND", "ITEM"))?;
    }
    items.each_item(&mut |item| {
        let line = if context.global.json { json_of_item(&item).to_string() } else { line_of(&item) };
        context.print(line).map_err(std::io::Error::other)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The object of one item.
pub fn json_of_item(item: &Item) -> Value {
    json!({
        "item": item.path,
        "kind": item.kind,
        "rows": item.rows,
        "bytes": item.bytes,
        "bytes_new": item.bytes_new,
        "hash": item.hash,
        "meta": item.meta,
    })
}

fn line_of(item: &Item) -> String {
    let rows = item.rows.map(count).unwrap_or_default();
    let (bytes, new) = (size(item.bytes), size(item.bytes_new));
    format!("{bytes:>10} {rows:>14} {new:>10}  {:<12} {}", item.kind, item.path.escape_debug())
}

fn heading(snapshot: &Snapshot) -> String {
    let manifest = &snapshot.manifest;
    let mut lines = vec![
        ("backup", snapshot.id.hex()),
        ("time", format!("{} ({:.1} s)", local_time(manifest.time), manifest.seconds)),
        ("source", format!("{} {}", manifest.source, manifest.name)),
        ("host", format!("{} (number {})", manifest.host, manifest.seq)),
        ("parent", manifest.parent.map_or_else(|| "none".to_owned(), |parent| parent.hex())),
    ];
    let facts = [("engine", &manifest.engine), ("consistency", &manifest.consistency), ("options", &manifest.options)];
    lines.extend(facts.iter().filter(|(_, map)| !map.is_empty()).map(|(name, map)| (*name, words(map))));
    if !manifest.tags.is_empty() {
        lines.push(("tags", manifest.tags.join(" ")));
    }
    lines.push(("size", sizes(manifest)));
    lines.extend(manifest.warnings.iter().map(|warning| ("warning", warning.clone())));
    lines.into_iter().map(|(name, text)| format!("{name:<12} {text}\n")).collect()
}

fn sizes(manifest: &Manifest) -> String {
    let rows = if manifest.rows > 0 { format!(", {}", many(manifest.rows, "row")) } else { String::new() };
    format!(
        "{} in {}{rows}; new {}, stored {}",
        size(manifest.bytes),
        many(manifest.items, "item"),
        size(manifest.bytes_new),
        size(manifest.bytes_stored)
    )
}

/// `key value, key value`, with strings as they are.
fn words(map: &Map<String, Value>) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    map.iter().map(|(key, value)| format!("{key} {}", word(value))).collect::<Vec<_>>().join(", ")
}
