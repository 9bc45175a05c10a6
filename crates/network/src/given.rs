//! Network namespaces of the operator's, into which containers are created.
//!
//! A client names one by a path, and clients are not trusted: it must be a network namespace in one of the operator's
//! directories, reached through no link. What is in it is the operator's, and stays as it is.

use crate::files::{self, Names};
use crate::netlink::{Connection, Protocol};
use crate::{Files, Order, route};
use rustix::fs::{OFlags, ResolveFlags, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use wardian_sys::directory::{self, Directory};
use wardian_sys::namespace;
use wardian_sys::text::{chain, clip};

/// The property of a create with the path of the namespace.
pub const PROPERTY: &str = "wardian.network.namespace";
/// The most bytes of a client's text in an error.
const SHOWN: usize = 128;
/// No link leads out of the operator's directory, and no file descriptor of a process is taken for a file in it.
const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Why a container does not get into a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operator has named no directory.
    #[error(
        "{PROPERTY}: this server takes no network namespaces of others; its operator allows them with --network-namespaces DIR"
    )]
    NotAllowed,
    /// The path is not below one of the operator's directories.
    #[error(
        "{PROPERTY}: {0:?} is not the absolute path of a file in a directory of the server's --network-namespaces, without . and .."
    )]
    Elsewhere(String),
    /// Other users could put something into the operator's directory.
    #[error("--network-namespaces: {}", chain(.0))]
    Directory(#[source] directory::Error),
    /// The file cannot be opened.
    #[error("{PROPERTY}: {path:?}: {source}")]
    Open {
        /// What the client has named.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A link is on the way.
    #[error("{PROPERTY}: {0:?} is or leads through a symbolic link, which is not followed")]
    Link(String),
    /// It is something else.
    #[error("{PROPERTY}: {0:?} is no network namespace, such as `ip netns add` makes")]
    Other(String),
    /// It is that of the host.
    #[error("{PROPERTY}: {0:?} is the network namespace of the host itself, or of the server")]
    Host(String),
    /// Something that a driver would have to do.
    #[error(
        "{what}: the container is in a network namespace of the operator's ({PROPERTY}), in which the server changes nothing"
    )]
    Cannot {
        /// What.
        what: &'static str,
    },
}

/// A namespace that was found and checked.
#[derive(Debug, Clone)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<OwnedFd>,
}

/// A container's place in such a namespace, as its record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The path that the client has named.
    pub path: PathBuf,
    /// The first IPv4 address of the namespace's interfaces at the create.
    pub ip: Option<Ipv4Addr>,
    /// The first IPv6 address, but for link-local ones.
    pub ipv6: Option<Ipv6Addr>,
    /// The container's own name servers; none: those of the instance.
    pub dns: Vec<IpAddr>,
}

impl Namespace {
    /// Finds the namespace that a client names by `path`, below one of the operator's directories.
    ///
    /// # Errors
    /// It is refused; see [`Error`].
    pub fn open(directories: &[PathBuf], path: &str) -> Result<Self, Error> {
        if directories.is_empty() {
            return Err(Error::NotAllowed);
        }
        let shown = || clip(path, SHOWN).into_owned();
        let named = Path::new(path);
        let below = directories.iter().find_map(|dir| Some((dir, named.strip_prefix(dir).ok()?)));
        let (dir, rest) = below.ok_or_else(|| Error::Elsewhere(shown()))?;
        // `components` leaves out what changes nothing, such as `.` in the middle, which the text still has.
        let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
        if rest.as_os_str().is_empty() || !plain || dir.join(rest).as_os_str() != path {
            return Err(Error::Elsewhere(shown()));
        }
        let dir = Directory::open(dir).map_err(Error::Directory)?;
        let system = |source: io::Error| Error::Open { path: shown(), source };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = directory::open(&dir, rest, flags, BELOW).map_err(|error| match error {
            Errno::LOOP => Error::Link(shown()),
            other => system(other.into()),
        })?;
        let file = namespace::open_network(found.as_fd()).map_err(system)?;
        let file = file.ok_or_else(|| Error::Other(shown()))?;
        if is_hosts(&file).map_err(system)? {
            return Err(Error::Host(shown()));
        }
        Ok(Self { path: named.to_owned(), file: Arc::new(file) })
    }

    /// Returns a descriptor of it.
    ///
    /// # Errors
    /// The kernel's: there are too many descriptors.
    pub fn file(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }
}

/// Whether a namespace is that of this process, or the first one of the kernel: containers would be in the host's
/// network.
fn is_hosts(file: &OwnedFd) -> io::Result<bool> {
    /// The number of the kernel's first network namespace, since Linux 6.18 (`NET_NS_INIT_INO` of linux/nsfs.h).
    const FIRST: u64 = 0xefff_fff9;
    let stat = fstat(file)?;
    if stat.st_ino == FIRST {
        return Ok(true);
    }
    let own = std::fs::metadata("/proc/self/ns/net")?;
    // Of earlier kernels that of the first process. A server with fewer capabilities may not look at it.
    let first = std::fs::metadata("/proc/1/ns/net").ok();
    let is_same = |other: &std::fs::Metadata| (stat.st_dev, stat.st_ino) == (other.dev(), other.ino());
    Ok(is_same(&own) || first.as_ref().is_some_and(is_same))
}

impl State {
    /// See [`crate::Networks::reserve`].
    pub(crate) fn new(namespace: &Namespace, order: &Order) -> crate::Result<Self> {
        if let Some(what) = order.needs() {
            return Err(Error::Cannot { what }.into());
        }
        let mut inside = Connection::open_in(namespace.file.as_fd(), Protocol::Route)?;
        let (mut ip, mut ipv6) = (None, None);
        for address in route::addresses(&mut inside)? {
            match address {
                IpAddr::V4(address) => ip = ip.or(Some(address)),
                IpAddr::V6(address) => ipv6 = ipv6.or(Some(address)),
            }
        }
        Ok(Self { path: namespace.path.clone(), ip, ipv6, dns: order.dns.clone() })
    }

    /// Garden's properties of a container with this network (Garden §4.3).
    pub(crate) fn properties(&self) -> Vec<(&'static str, String)> {
        let ip = self.ip.map(|ip| ("garden.network.container-ip", ip.to_string()));
        let ipv6 = self.ipv6.map(|ip| ("garden.network.container-ipv6", ip.to_string()));
        ip.into_iter().chain(ipv6).collect()
    }

    /// See [`crate::Networks::files`].
    pub(crate) fn files(&self, handle: &str, names: &Names<'_>) -> crate::Result<Files> {
        let ip = self.ip.map_or(Ipv4Addr::LOCALHOST.into(), IpAddr::from);
        let own = Some(&*self.dns).filter(|own| !own.is_empty());
        let hosts = files::hosts(ip, self.ipv6, handle, names.host_entries)?;
        let resolv = names.resolv(&files::Host::read(), ip, own, None).text()?;
        Ok(Files { hosts, resolv })
    }
}
