//! `wardian rootfs`: root file systems that outlive the command that makes them.

use crate::container::spec::Disk;
use crate::image;
use crate::print;
use crate::store::{NoStore, Place};
use anyhow::{Context as _, Result};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use wardian_store::{Phase, RootfsSpec, Store};

/// The commands of root file systems.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make one and print where it is attached: in a directory that only root may enter, without device nodes and set-uid
    /// programs. What is written in it does not outlive a reboot
    Create {
        /// An image's name in the store, or what `wardian image import` takes: it is fetched if it is missing, and
        /// written to the disk once. What could be both is refused: ./NAME is a file, NAME:latest an image
        image: String,
        /// What to call it: letters, digits and . _ -
        id: String,
        /// Let set-uid and set-gid bits and file capabilities have effect in it, as programs like sudo in a container need
        /// it; the runtime that uses the mount has to keep others of this host away from it
        #[arg(long)]
        suid: bool,
        #[command(flatten)]
        disk: Disk,
    },
    /// Throw one away. Returns at once: the disk is given back in the background. That it is not there is no error
    Delete {
        /// What it was called
        id: String,
    },
    /// List them all, those of containers too
    List,
    /// What one takes, as JSON
    Stats {
        /// What it was called
        id: String,
    },
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { place, command } = args;
    match command {
        Command::Create { image, id, suid, disk } => {
            let store = place.open_for_rootfs()?;
            let made = create(&store, &image, &id, suid, disk);
            place.leave(&store);
            let path = made?;
            let told = if place.json {
                print::json(&json!({ "path": path }))
            } else {
                print::text(&format!("{}\n", path.display()))
            };
            told.with_context(|| format!("{id} is made; `wardian rootfs delete {id}` throws it away"))?;
        }
        Command::Delete { id } => {
            let store = match place.open_existing() {
                // A repeated delete is no error, even if the store was removed too.
                Err(error) if error.is::<NoStore>() => {
                    print::note(&format!("there is no root file system {id}: {error}"));
                    return Ok(ExitCode::SUCCESS);
                }
                store => store?,
            };
            let deleted = store.detach_rootfs(&id);
            match deleted {
                Ok(true) => place.leave_trash(&store),
                _ => place.leave(&store),
            }
            if !deleted? {
                print::note(&format!("there is no root file system {id}"));
            }
        }
        Command::List => list(&place)?,
        Command::Stats { id } => stats(&place, &id)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(store: &Store, image: &str, id: &str, suid: bool, disk: Disk) -> Result<std::path::PathBuf> {
    let uri = image::address(store, image)?;
    let (image, layers) = image::fetch(store, &uri)?;
    if layers.iter().any(|layer| layer.phase() == Phase::Done) {
        // A layer is distrusted if its process ends before it is durable: each create would fetch it again.
        image::wait_durable(
            store,
            &image,
            "no root file system was made, and what is not on the disk yet is fetched again by the next one",
        )?;
    }
    Ok(store.attach_rootfs(id, &RootfsSpec { limit: disk.limit(), ..RootfsSpec::new(&image, None) }, suid)?)
}

fn list(place: &Place) -> Result<()> {
    let all = place.open_existing()?.rootfs()?;
    if place.json {
        return print::json(&all);
    }
    let row = |rootfs: &wardian_store::RootfsRecord| {
        let path = rootfs.attached.as_deref().map_or_else(|| "(a container's)".into(), shown);
        [rootfs.id.clone(), print::tame(&rootfs.image), print::age(rootfs.created_ms), path]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    print::text(&print::table(["ID", "IMAGE", "CREATED", "PATH"], &rows))
}

fn shown(path: &Path) -> String {
    print::tame(&path.to_string_lossy())
}

fn stats(place: &Place, id: &str) -> Result<()> {
    let store = place.open_existing()?;
    let missing = || format!("there is no root file system {id}; `wardian rootfs list` lists them");
    let own_bytes = store.rootfs_bytes(id)?.with_context(missing)?;
    let record = store.rootfs()?.into_iter().find(|record| record.id == id).with_context(missing)?;
    let layers = record.layers.iter().filter_map(|used| store.layer(&used.chain));
    let image_bytes: u64 = layers.map(|layer| layer.disk_bytes.unwrap_or(layer.bytes)).sum();
    print::json(&json!({
        "id": record.id,
        "path": record.attached,
        "image": record.image,
        "own_bytes": own_bytes,
        "bound": record.bound,
        "image_bytes": image_bytes,
        "writeback_error": record.writeback_error,
    }))
}
