//! Configuration of a store: its directories and limits.

use std::path::PathBuf;

use wardian_image::registry::Known;
use wardian_image::{Limits, Settings as Fetching};

use crate::mounts::driver::DiskDriver;

/// The configuration of a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of persistent data. It is created if it is missing, and accessible to root only.
    pub root: PathBuf,
    /// The run directory, on a tmpfs: the records of root file systems, which do not survive a reboot.
    pub run: PathBuf,
    /// A server collects garbage when the layers take more bytes than this; `None`: only on request.
    pub gc_threshold: Option<u64>,
    /// How layers are fetched from registries.
    pub remote: Fetching,
    /// What this host knows of registries.
    pub registries: Known,
    /// The limits for one layer and for one image.
    pub limits: Limits,
    /// Whether the layers of OCI layouts are taken as they are ([`wardian_image::Opening::unverified`]).
    pub unverified: bool,
    /// How many root file systems a server mounts ahead for each image that creates have asked for lately, at most
    /// [`ready::MOST`](crate::ready::MOST); 0: none.
    pub ready_rootfs: usize,
    /// The driver of disk limits; `None`: the first one that works here.
    pub disk_driver: Option<DiskDriver>,
}

impl Config {
    /// Returns a configuration without automatic garbage collection or root file systems mounted ahead, with the
    /// default limits, and without settings or logins of registries.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
            gc_threshold: None,
            remote: Fetching::default(),
            registries: Known::default(),
            limits: Limits::default(),
            unverified: false,
            ready_rootfs: 0,
            disk_driver: None,
        }
    }
}
