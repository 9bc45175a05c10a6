//! Listening sockets: their addresses, permissions, and which clients may connect.

use crate::host::Hosts;
use crate::socket::Arrival;
use crate::tls::Tls;
use crate::{Error, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use wardian_sys::directory::{self, Directory};

/// The idle time after which the kernel probes a TCP client (tcp(7), `TCP_KEEPIDLE`).
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(60);

/// The listen backlog; the kernel caps it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A listen address: `unix:/path` or `tcp:ip:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A unix socket's path; `@` and a name for one in the abstract name space, which was handed to this server.
    Unix(PathBuf),
    /// An address and port.
    Tcp(SocketAddr),
}

impl std::str::FromStr for ListenAddr {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Address(text.into());
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(to, "unix:{}", path.display()),
            Self::Tcp(address) => write!(to, "tcp:{address}"),
        }
    }
}

/// Which clients may connect.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// Permission bits of a unix socket.
    pub mode: u32,
    /// Group of a unix socket, if the host has one of that name.
    pub group: String,
    /// Allow sockets on which nothing tells who the client is: TCP without TLS, and unix sockets without a file.
    pub insecure_listen: bool,
    /// How TCP clients are authenticated.
    pub tls: Option<Tls>,
    /// Names of this host: a request through TCP that names another one is refused.
    pub host_names: Vec<String>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            mode: 0o660,
            group: "wardian".into(),
            insecure_listen: false,
            tls: None,
            host_names: Vec::new(),
        }
    }
}

impl SocketOptions {
    /// Whether TCP clients are authenticated, or need not be. That a client comes from loopback does not
    /// authenticate it: all users of the host can connect to it, and so can every web page that one of them
    /// looks at.
    fn knows_clients(&self) -> bool {
        self.insecure_listen || self.tls.is_some()
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// `None`: the socket was inherited, and its file is not removed here.
        _file: Option<SocketFile>,
    },
    Tcp {
        listener: TcpListener,
        tls: Option<Tls>,
        hosts: Arc<Hosts>,
    },
}

impl Listener {
    /// Checks that [`Listener::bind`] would not refuse the address outright.
    ///
    /// # Errors
    /// The clients would not be authenticated.
    pub fn check(address: &ListenAddr, options: &SocketOptions) -> Result<()> {
        match address {
            ListenAddr::Tcp(_) if !options.knows_clients() => Err(Error::Insecure(address.to_string())),
            _ => Ok(()),
        }
    }

    /// Listens. The socket file of a dead server is replaced; that of a live one is an error.
    pub async fn bind(address: &ListenAddr, options: &SocketOptions) -> Result<Self> {
        match address {
            ListenAddr::Unix(path) => bind_unix(path, options).await.map(Self),
            // Before the port is open.
            ListenAddr::Tcp(_) if !options.knows_clients() => Err(Error::Insecure(address.to_string())),
            ListenAddr::Tcp(ip) => {
                let listener = TcpListener::bind(ip).await.map_err(failed(address, "bind"))?;
                Self::tcp(listener, options).map_err(failed(address, "look"))
            }
        }
    }

    fn tcp(listener: TcpListener, options: &SocketOptions) -> io::Result<Self> {
        let hosts = Arc::new(Hosts::new(&options.host_names, listener.local_addr()?));
        Ok(Self(Kind::Tcp { listener, tls: options.tls.clone(), hosts }))
    }

    /// Takes over a listening socket that the starter of this server has opened. Its file is not removed at
    /// the end.
    pub fn inherited(socket: OwnedFd, options: &SocketOptions) -> Result<Self> {
        let bad = |what: &'static str| Error::Inherited(what);
        let failed = |_| bad("not a socket");
        if sockopt::socket_type(&socket).map_err(failed)? != SocketType::STREAM
            || !sockopt::socket_acceptconn(&socket).map_err(failed)?
        {
            return Err(bad("not a listening stream socket"));
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(failed)?;
        let domain = sockopt::socket_domain(&socket).map_err(failed)?;
        if domain == AddressFamily::UNIX {
            let listener = std::os::unix::net::UnixListener::from(socket);
            let address = listener.local_addr().map_err(|_| bad("a socket without an address"))?;
            let path = address.as_pathname().map_or_else(
                || {
                    let name = address.as_abstract_name().unwrap_or_default();
                    PathBuf::from(format!("@{}", name.escape_ascii()))
                },
                Path::to_owned,
            );
            // A name in the abstract name space (unix(7)) has no permissions: every user of the host can connect to it.
            if address.as_pathname().is_none() && !options.insecure_listen {
                return Err(Error::Nameless(ListenAddr::Unix(path).to_string()));
            }
            let listener =
                UnixListener::from_std(listener).map_err(|_| bad("a socket that cannot be used"))?;
            return Ok(Self(Kind::Unix { listener, path, _file: None }));
        }
        if domain != AddressFamily::INET && domain != AddressFamily::INET6 {
            return Err(bad("neither a unix nor a TCP socket"));
        }
        let listener = TcpListener::from_std(std::net::TcpListener::from(socket))
            .map_err(|_| bad("a socket that cannot be used"))?;
        let address = listener.local_addr().map_err(|_| bad("a socket without an address"))?;
        if !options.knows_clients() {
            return Err(Error::Insecure(ListenAddr::Tcp(address).to_string()));
        }
        Self::tcp(listener, options).map_err(|_| bad("a socket without an address"))
    }

    /// Returns the address; for TCP port 0, with the port that the kernel chose.
    pub fn address(&self) -> io::Result<ListenAddr> {
        match &self.0 {
            Kind::Unix { path, .. } => Ok(ListenAddr::Unix(path.clone())),
            Kind::Tcp { listener, .. } => listener.local_addr().map(ListenAddr::Tcp),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Arrival> {
        match &self.0 {
            Kind::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Arrival::unix(stream)),
            Kind::Tcp { listener, tls, hosts } => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // Only keepalive notices a client whose host is gone.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                Ok(Arrival::tcp(stream, tls.clone(), hosts.clone()))
            }
        }
    }
}

/// The socket's file, removed on drop if it is still the same inode.
#[derive(Debug)]
struct SocketFile {
    dir: Directory,
    name: OsString,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if now.is_ok_and(|now| now.st_ino == self.inode) {
            let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

fn failed(address: &ListenAddr, step: &'static str) -> impl Fn(io::Error) -> Error {
    let address = address.to_string();
    move |source| Error::Listen { address: address.clone(), step, source }
}

async fn bind_unix(path: &Path, options: &SocketOptions) -> Result<Kind> {
    let address = ListenAddr::Unix(path.into());
    let fail = |step: &'static str| failed(&address, step);
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Address(address.to_string()));
    };
    // Clients connect by the path, which must fit into an address (`sun_path`).
    std::os::unix::net::SocketAddr::from_pathname(path).map_err(fail("bind"))?;
    // In a directory where others may rename files, they could make chown and chmod hit another file.
    let dir = match Directory::open_shared(above) {
        Err(directory::Error::System { source, .. }) => return Err(fail("open its directory")(source)),
        other => other.map_err(|source| Error::Untrusted { address: address.to_string(), source })?,
    };
    match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(fail("look")(error.into())),
        Ok(there) if FileType::from_raw_mode(there.st_mode) != FileType::Socket => {
            return Err(Error::NotASocket(path.into()));
        }
        Ok(_) => match UnixStream::connect(dir.at(name)).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(fail("see whether a server is there")(error)),
            Ok(_) => return Err(Error::InUse(path.into())),
        },
    }
    // The socket gets its name only once its permissions are right, so that no client connects before. Until
    // then it has a name that no one could have taken in advance; ss(8) goes on showing that name, so it
    // contains the final one, if that fits into an address.
    let shown = Some(name.to_string_lossy()).filter(|name| name.len() <= 40).unwrap_or_default();
    let early = format!(".{shown}.{}", uuid::Uuid::new_v4().simple());
    let (listener, inode) = bind_early(&dir, &early, options).map_err(|(step, error)| {
        let _ = rustix::fs::unlinkat(&dir, &early, AtFlags::empty());
        fail(step)(error)
    })?;
    if let Err(error) = rustix::fs::renameat(&dir, &early, &dir, name) {
        let _ = rustix::fs::unlinkat(&dir, &early, AtFlags::empty());
        return Err(fail("name it")(error.into()));
    }
    let file = SocketFile { dir, name: name.to_owned(), inode };
    Ok(Kind::Unix { listener, path: path.into(), _file: Some(file) })
}

/// Binds a socket to the name `early`, and sets its group and mode. Returns the listener and its inode.
fn bind_early(
    dir: &Directory,
    early: &str,
    options: &SocketOptions,
) -> std::result::Result<(UnixListener, u64), (&'static str, io::Error)> {
    fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> (&'static str, io::Error) {
        move |error| (step, error.into())
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(at("bind"))?;
    // What bind(2) makes has the mode of the socket's own inode, less the umask (`unix_bind` in net/unix/af_unix.c):
    // there is no moment at which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(at("set its mode"))?;
    let name = SocketAddrUnix::new(dir.at(early)).map_err(at("bind"))?;
    bind(&socket, &name).map_err(at("bind"))?;
    // From here on the file is used by its descriptor, not by its name.
    let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, early, path, Mode::empty()).map_err(at("look"))?;
    let stat = rustix::fs::fstat(&file).map_err(at("look"))?;
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    if let Some(gid) = group_id(&groups, &options.group) {
        let gid = Some(rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(&file, "", None, gid, AtFlags::EMPTY_PATH).map_err(at("set its group"))?;
    }
    let mode = std::fs::Permissions::from_mode(options.mode);
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    // A default ACL of the directory (acl(5)) would admit users that the mode does not; most file systems
    // have none.
    let _ = rustix::fs::removexattr(&through, "system.posix_acl_access");
    std::fs::set_permissions(through, mode).map_err(at("set its mode"))?;
    listen(&socket, BACKLOG).map_err(at("listen"))?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    Ok((UnixListener::from_std(listener).map_err(at("listen"))?, stat.st_ino))
}

/// Number of the group `name` in the text of a group file.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, chown, symlink};
    use wardian_needs::needs;

    #[test]
    fn addresses() {
        assert_eq!("unix:/a b".parse::<ListenAddr>().unwrap(), ListenAddr::Unix("/a b".into()));
        assert_eq!("tcp:[::1]:7".parse::<ListenAddr>().unwrap().to_string(), "tcp:[::1]:7");
        for bad in ["", "/a", "unix:a", "tcp:localhost:7", "tcp:127.0.0.1", "udp:127.0.0.1:7"] {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn groups() {
        let text = "root:x:0:\nwardianx:x:5:\nbroken\nwardian:x:77:a,b\n";
        assert_eq!(group_id(text, "wardian"), Some(77));
        assert_eq!(group_id(text, "nobody"), None);
        assert_eq!(group_id(text, "broken"), None);
    }

    #[tokio::test]
    async fn tcp_wants_to_know_its_clients() {
        let options = SocketOptions::default();
        for address in ["tcp:0.0.0.0:0", "tcp:127.0.0.1:0", "tcp:[::1]:0"] {
            let address = address.parse().unwrap();
            assert!(matches!(Listener::bind(&address, &options).await, Err(Error::Insecure(_))));
        }
        let inherited = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = Listener::inherited(inherited.try_clone().unwrap().into(), &options);
        assert!(matches!(refused, Err(Error::Insecure(_))), "{refused:?}");
        let name = format!("wardian-door-{}", std::process::id());
        let address =
            <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name);
        let nameless = std::os::unix::net::UnixListener::bind_addr(&address.unwrap()).unwrap();
        // Certificates would not help here.
        let refused =
            Listener::inherited(nameless.try_clone().unwrap().into(), &options).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("unix:@{name}: ")) && !refused.contains("--tls"), "{refused}");
        let options = SocketOptions { insecure_listen: true, ..options };
        let anywhere = "tcp:0.0.0.0:0".parse().unwrap();
        assert!(Listener::bind(&anywhere, &options).await.is_ok());
        assert!(Listener::inherited(inherited.into(), &options).is_ok());
        let nameless = Listener::inherited(nameless.into(), &options).unwrap();
        assert_eq!(nameless.address().unwrap().to_string(), format!("unix:@{name}"));
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_a_live_one_is_not() {
        let folder = std::env::temp_dir().join(format!("wardian-door-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("s");
        let (address, options) = (ListenAddr::Unix(path.clone()), SocketOptions::default());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&address, &options).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert!(matches!(Listener::bind(&address, &options).await, Err(Error::InUse(_))));
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Listener::bind(&address, &options).await, Err(Error::NotASocket(_))));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// A directory of another user's, one that others may write to, and one such as /tmp with links planted.
    #[tokio::test]
    async fn a_socket_is_made_where_nobody_can_swap_it() {
        needs!(Root);
        let folder = std::env::temp_dir().join(format!("wardian-door-others-{}", std::process::id()));
        let secret = folder.join("secret");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&secret, "").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let options = SocketOptions { mode: 0o666, ..SocketOptions::default() };
        for (name, uid, mode) in [("theirs", 65534, 0o755), ("open", 0, 0o777), ("tmp", 0, 0o1777)] {
            let dir = folder.join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).unwrap();
            symlink(&secret, dir.join("s.new")).unwrap();
            chown(&dir, Some(uid), None).unwrap();
            let bound = Listener::bind(&ListenAddr::Unix(dir.join("s")), &options).await;
            match bound {
                Err(error) if name != "tmp" => {
                    assert!(matches!(error, Error::Untrusted { .. }), "{name}: {error}");
                    assert!(!dir.join("s").exists());
                }
                Ok(_) if name == "tmp" => {
                    assert_eq!(std::fs::metadata(dir.join("s")).unwrap().mode() & 0o777, 0o666);
                }
                other => panic!("{name}: {other:?}"),
            }
            assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o777, 0o600, "{name}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
