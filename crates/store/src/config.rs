//! Where a store is, and what it may take.

use std::path::PathBuf;

use wardian_image::{Limits, Settings as Fetching};

/// Where a store is.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of what survives a reboot. Made if missing; closed to all but root.
    pub root: PathBuf,
    /// The directory of what does not, on a tmpfs: the records of root file systems.
    pub run: PathBuf,
    /// A server collects garbage when the layers take more bytes than this; none: only when it is told to.
    pub gc_threshold: Option<u64>,
    /// How layers are fetched from servers.
    pub remote: Fetching,
    /// What one layer, and one image, may take.
    pub limits: Limits,
    /// How many root file systems a server mounts ahead for each image that creates have asked for lately, at most
    /// [`ready::MOST`](crate::ready::MOST); 0: none.
    pub ready_rootfs: usize,
}

impl Config {
    /// Without automatic garbage collection, with nothing mounted ahead, and with the usual limits.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
            gc_threshold: None,
            remote: Fetching::default(),
            limits: Limits::default(),
            ready_rootfs: 0,
        }
    }
}
