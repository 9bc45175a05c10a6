//! The choice of the driver of disk limits: the best one that this host has, or the one that was asked for.

use std::sync::Arc;

use super::btrfs::{self, Btrfs};
use super::directories::Directories;
use super::image::Images;
use super::names::Names;
use super::project_quota::{self, ProjectQuota};
use super::upper::Upper;
use crate::disk::layout::Layout;

/// A driver of disk limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskDriver {
    /// Project quota of XFS or ext4.
    ProjectQuota,
    /// Subvolumes of btrfs and their quota groups.
    Btrfs,
    /// Each limited root file system is an ext4 of its own, in a file.
    Image,
    /// Plain directories: limits are refused.
    None,
}

impl DiskDriver {
    /// All drivers, in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::ProjectQuota, Self::Btrfs, Self::Image, Self::None];

    /// Its name, as in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProjectQuota => "project-quota",
            Self::Btrfs => "btrfs",
            Self::Image => "image",
            Self::None => "none",
        }
    }
}

/// The driver that was asked for does not work here.
#[derive(Debug, thiserror::Error)]
#[error("the disk driver {name} does not work here: {why}")]
pub struct Unusable {
    name: &'static str,
    why: String,
}

/// What drivers need to make their parts.
pub(crate) struct Ground {
    pub(crate) layout: Arc<Layout>,
    pub(crate) names: Arc<Names>,
    /// See [`Directories::new`].
    pub(crate) grouped: bool,
}

/// Makes the driver that was asked for; `None`: the first one that works.
pub(crate) fn choose(ground: &Ground, asked: Option<DiskDriver>) -> Result<Arc<dyn Upper>, Unusable> {
    let mut reasons = Vec::new();
    let tried = asked.as_ref().map_or(&DiskDriver::ALL[..], std::slice::from_ref);
    for driver in tried {
        let made = make(*driver, ground, &reasons);
        match made {
            Ok(upper) => {
                tracing::info!(driver = driver.name(), others = reasons.join("; "), "store.disk-driver");
                return Ok(upper);
            }
            Err(why) => reasons.push(format!("{}: {why}", driver.name())),
        }
    }
    Err(Unusable { name: asked.unwrap_or(DiskDriver::None).name(), why: reasons.join("; ") })
}

/// Makes a driver, or tells why it does not work here. `others`: why those before it do not.
fn make(driver: DiskDriver, ground: &Ground, others: &[String]) -> Result<Arc<dyn Upper>, String> {
    let Ground { layout, names, grouped } = ground;
    let why = if others.is_empty() {
        "the disk driver is none (--disk-driver)".to_owned()
    } else {
        others.join("; ")
    };
    let directories = Directories::new(Arc::clone(layout), Arc::clone(names), *grouped, why);
    match driver {
        DiskDriver::ProjectQuota => match project_quota::missing(&layout.rootfs) {
            None => Ok(Arc::new(ProjectQuota::new(directories).map_err(|error| error.to_string())?)),
            Some(why) => Err(why),
        },
        DiskDriver::Btrfs => match btrfs::missing(&layout.rootfs) {
            None => {
                Ok(Arc::new(Btrfs::new(Arc::clone(layout), directories).map_err(|error| error.to_string())?))
            }
            Some(why) => Err(why),
        },
        DiskDriver::Image => Ok(Arc::new(Images::new(ground)?)),
        DiskDriver::None => Ok(Arc::new(directories)),
    }
}
