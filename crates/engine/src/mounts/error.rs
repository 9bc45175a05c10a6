//! Why something cannot be mounted in a container or a pea.

use rustix::io::Errno;
use std::path::PathBuf;
use wardian_sys::mount;

/// Why something cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path is not absolute.
    #[error("both paths must be absolute")]
    Relative,
    /// The source does not exist.
    #[error("there is no {0} on the server's host")]
    Missing(PathBuf),
    /// A file is to be mounted on a directory, or a directory on a file.
    #[error("{source_name} is a {}, {} a {}", kind(*.directory), .destination.display(), kind(!.directory))]
    Kind {
        /// What is mounted, as the client calls it.
        source_name: String,
        /// Where it is to be.
        destination: PathBuf,
        /// Whether what is mounted is a directory.
        directory: bool,
    },
    /// There is a file system of the kernel.
    #[error(
        "no volume and no tmpfs can be at {0}: /, /dev, and all in /proc and /sys are every container's own"
    )]
    Place(PathBuf),
    /// The source is a device that the container may not use.
    #[error("the container may not open the {word} device {major}:{minor} that it is")]
    Device {
        /// `character` or `block`.
        word: &'static str,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// There is no mapping of ids.
    #[error(
        "idmap has no meaning in a privileged container, whose root is root of the host: leave idmap out"
    )]
    Privileged,
    /// The source's file system cannot be mounted with other ids.
    #[error(
        "{path} is on {fs}, of which this kernel makes no idmapped mounts: leave idmap out, and let the host's user {root}, \
         who is the container's root, write there"
    )]
    NoIdmap {
        /// The source.
        path: PathBuf,
        /// Its file system.
        fs: String,
        /// The host's id of the container's root.
        root: u32,
    },
    /// The kernel has no idmapped mounts.
    #[error("this kernel has no idmapped mounts (they came with Linux 5.12): leave idmap out")]
    NoIdmaps,
    /// The source is idmapped already.
    #[error("{0} is in a mount that is idmapped already: leave idmap out")]
    Idmapped(PathBuf),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] mount::Error),
    /// The source cannot be looked at.
    #[error("look at {path}")]
    Look {
        /// The source.
        path: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// A volume cannot be made or opened.
    #[error(transparent)]
    Volume(#[from] Box<wardian_store::Error>),
}

fn kind(directory: bool) -> &'static str {
    if directory { "directory" } else { "file" }
}
