//! Layers and root file systems: the one store of a host.
//!
//! ```text
//! <root>/
//! ├── format.json                       which program may touch this store
//! ├── lock                              held by the server; names the run directory
//! ├── layers/<chain>/{fs/, layer.json}  unpacked once; ids as in the image
//! ├── images/<name>.json                what names stand for, and pins
//! ├── images/<digest>.documents         manifest and config of one or more of them
//! ├── images/<id>/rootfs                where a published root file system is attached
//! ├── staging/<name>/                   half-made layers, each locked by its maker; without a maker, trash
//! ├── partial/sha256-<digest>           what is kept of a blob whose fetch ended early
//! ├── rootfs/<name>/{upper,work}        named by a record in <run>/rootfs, or trash
//! ├── rootfs/<name>/image               instead of these, with a limit and the driver `image`: a file system with both
//! ├── trash/<name>/                     layers that nobody is given any more, and other trash
//! └── volumes/<name>/{data/, volume.json} named volumes, which nothing but their removal deletes
//! <run>/rootfs/
//! ├── <id>.json                         a living root file system: its directory, its layers
//! └── <id>/                             where it is attached, if it was asked to be
//! <run>/l/<name>                        a layer, attached for root file systems that others mount
//! ```
//!
//! The modules; each uses only those before it:
//!
//! * `disk`: the directories and files of a store and of a run directory, its lock and records;
//! * `layers`: layers, their owners and their durability;
//! * `images`: named images, opened images, and the progress of imports;
//! * `mounts`: root file systems: made ahead, mounted, measured and deleted;
//! * `work`: the calls, and the background work.
//!
//! Layers are durable, containers are volatile. Nothing on a request path waits for the disk: a root file system is a
//! detached volatile overlay handed out as a descriptor, releasing it removes a record on tmpfs and tells the reaper,
//! and layers are written back by a thread of their own. The store may be killed at any instruction.
//!
//! One server has the store ([`Store::serve`]); commands use it at the same time or without one ([`Store::open`]).
//! All calls block and may come from any thread.
#![forbid(unsafe_code)]

mod config;
mod disk;
mod error;
mod failpoints;
mod images;
mod layers;
mod mounts;
mod store;
mod threads;
mod work;

pub use config::Config;
pub use disk::inbox::Inbox;
pub use disk::limit::{Bound, DiskLimit, Scope, TooSmall, Written};
pub use disk::lock::run_of;
pub use disk::record::{Record as RootfsRecord, Used};
pub use disk::{format, layout, remove, run, whose};
pub use error::{Error, Result};
pub use failpoints::NAMES as FAILPOINTS;
pub use images::image::{self, Documents, Named, Wish};
pub use images::opened::Image;
pub use images::progress::{LayerProgress, Phase, Progress};
pub use images::reference::Reference;
pub use images::terms::{NoPull, Pull};
pub use layers::layer;
pub use layers::owner::Owner;
pub use mounts::changes::{Change, Changes, Kind as ChangeKind};
pub use mounts::driver::{DiskDriver, Unusable};
pub use mounts::measure::Measured;
pub use mounts::ready;
pub use mounts::rootfs::{self, Rootfs, RootfsSpec};
pub use store::Store;
pub use wardian_image::registry::{Known, Login};
pub use wardian_image::{Host, Limits, Settings as Fetching, Way, shown};
pub use work::collect::{Collected, Garbage};
pub use work::erase;
pub use work::fetch::{Opened, ToFetch};
pub use work::publish::{Parts, Published, PublishedUsage};
pub use work::usage::{ImageUsage, LayerInfo, RootfsUsage, Summary, Usage, VolumeUsage};
pub use work::volume::{self, Volume};

#[cfg(test)]
mod tests;
