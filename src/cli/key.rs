//! `vault key`.

use std::process::ExitCode;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::context::Context;
use super::exit::usage;
use super::screen::{lines_of, local_time, table};
use super::secret::NewSecret;
use crate::format::slot::{Kdf, Slot};
use crate::id::SlotId;

/// List, add, remove and change the passwords and key files that open the repository
///
/// Each password or key file has a slot of its own, and every one of them opens all of the repository. Removing a slot
/// keeps its password from opening the repository from now on; whoever has copied the slot before can still use it.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault key list"
    "head -c 32 /dev/urandom > backup.key && chmod 600 backup.key"
    "vault key add --label 'offline copy' --new-key-file backup.key"
    "vault key passwd --new-password-file /run/secrets/vault-new"
))]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the slots; `*` is the one that was just used
    List,
    /// Add a slot for another password or key file
    Add {
        #[command(flatten)]
        new: NewSecret,
        /// Name of the slot, for `vault key list`
        #[arg(long, default_value = "added")]
        label: String,
    },
    /// Remove a slot: not the last one, and not the one in use
    Remove {
        /// Id of the slot, or the beginning of one; see `vault key list`
        #[arg(value_name = "SLOT")]
        slot: String,
    },
    /// Change the password: add a slot for the new one, then remove the slot in use
    Passwd {
        #[command(flatten)]
        new: NewSecret,
    },
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open()?;
    let added = |id: SlotId| {
        if context.global.json {
            return context.print(json!({ "id": id, "added": true }));
        }
        context.print(id)
    };
    match args.action {
        Action::List => list(context, &repo.slots()?, repo.slot)?,
        Action::Add { new, label } => {
            let id = repo.add_slot(&new.get()?, &label, context.now())?;
            context.say(format!("added key slot {id} ({label})"));
            added(id)?;
        }
        Action::Remove { slot } => {
            let slots = repo.slots()?;
            let slot = find(&slots, &slot)?;
            if slot.id == repo.slot && slots.len() > 1 {
                return Err(usage(format!(
                    "{} is the slot that you use: `vault key passwd` replaces it; to remove it, use another password",
                    slot.id
                )));
            }
            repo.remove_slot(&slot.id)?;
            context.say(format!("removed key slot {} ({})", slot.id, slot.label));
            if context.global.json {
                context.print(json!({ "id": slot.id, "removed": true }))?;
            }
        }
        Action::Passwd { new } => {
            let label = repo.slots()?.into_iter().find(|slot| slot.id == repo.slot).map(|slot| slot.label);
            let id = repo.add_slot(&new.get()?, &label.unwrap_or_default(), context.now())?;
            repo.remove_slot(&repo.slot)?;
            context.say(format!("changed: key slot {id} in place of {}", repo.slot));
            added(id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &Context, slots: &[Slot], used: SlotId) -> anyhow::Result<()> {
    let time = |slot: &Slot| Timestamp::from_second(i64::try_from(slot.created).unwrap_or(0)).unwrap_or_default();
    if context.global.json {
        return slots.iter().try_for_each(|slot| {
            context.print(json!({
                "id": slot.id, "kind": kind(slot), "label": slot.label, "created": time(slot), "used": slot.id == used,
            }))
        });
    }
    let mut table = table(&["", "slot", "opened by", "created", "label"]);
    for slot in slots {
        let mark = if slot.id == used { "*" } else { "" };
        let row = [mark.to_owned(), slot.id.hex(), kind(slot).to_owned(), local_time(time(slot)), slot.label.clone()];
        table.add_row(row);
    }
    context.print(lines_of(&table))
}

fn kind(slot: &Slot) -> &'static str {
    match slot.kdf {
        Kdf::Argon2id { .. } => "password",
        Kdf::KeyFile => "key-file",
    }
}

fn find<'s>(slots: &'s [Slot], word: &str) -> anyhow::Result<&'s Slot> {
    let found: Vec<_> =
        slots.iter().filter(|slot| !word.is_empty() && slot.id.hex().starts_with(&word.to_lowercase())).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(usage(format!("no key slot {word:?}: `vault key list` lists what there is"))),
        _ => {
            let candidates: Vec<_> = found.iter().map(|slot| slot.id.hex()).collect();
            Err(usage(format!("{word:?} could be any of {}: give more digits", candidates.join(", "))))
        }
    }
}
