//! The door: who may come in, by which socket.

use crate::host::Hosts;
use crate::socket::Arrival;
use crate::tls::Tls;
use crate::{Error, Result};
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// After so much silence the kernel asks a TCP client whether it is still there (tcp(7), `TCP_KEEPIDLE`).
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(60);

/// Where to listen: `unix:/path` or `tcp:ip:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A unix socket's path.
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

/// Who may come in.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// Permission bits of a unix socket.
    pub mode: u32,
    /// Group of a unix socket, if the host has one of that name.
    pub group: String,
    /// Allow sockets on which nothing tells who the client is: TCP without TLS, and unix sockets without a file.
    pub insecure_listen: bool,
    /// How TCP clients show who they are.
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
    /// Whether a client that comes through TCP is known, or need not be. Loopback tells nothing: all users of the host
    /// can connect to it, and so can every web page that one of them looks at.
    fn knows_clients(&self) -> bool {
        self.insecure_listen || self.tls.is_some()
    }
}

/// An open door.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    /// The inode of a socket file that is ours to remove.
    Unix {
        listener: UnixListener,
        path: PathBuf,
        inode: Option<u64>,
    },
    Tcp {
        listener: TcpListener,
        tls: Option<Tls>,
        hosts: Arc<Hosts>,
    },
}

impl Listener {
    /// Listen. The socket file of a dead server is replaced; that of a live one is an error.
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
        let port = listener.local_addr()?.port();
        let hosts = Arc::new(Hosts::new(&options.host_names, port));
        Ok(Self(Kind::Tcp { listener, tls: options.tls.clone(), hosts }))
    }

    /// A listening socket that whoever started us has opened. Its file stays when we go.
    pub fn inherited(socket: OwnedFd, options: &SocketOptions) -> Result<Self> {
        use rustix::net::{AddressFamily, SocketType};
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
            let path = listener.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_owned));
            // A name in the abstract name space (unix(7)) has no permissions: every user of the host can connect to it.
            if path.is_none() && !options.insecure_listen {
                return Err(Error::Insecure("an abstract unix socket".to_owned()));
            }
            let listener =
                UnixListener::from_std(listener).map_err(|_| bad("a socket that cannot be used"))?;
            return Ok(Self(Kind::Unix { listener, path: path.unwrap_or_default(), inode: None }));
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

    /// Where it listens; with TCP port 0, the port that was given.
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
                // A client whose host has gone says nothing more, not even that it has gone.
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                Ok(Arrival::tcp(stream, tls.clone(), hosts.clone()))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix { path, inode: Some(inode), .. } = &self.0
            && std::fs::symlink_metadata(path).is_ok_and(|now| now.ino() == *inode)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn failed(address: &ListenAddr, step: &'static str) -> impl Fn(io::Error) -> Error {
    let address = address.to_string();
    move |source| Error::Listen { address: address.clone(), step, source }
}

async fn bind_unix(path: &Path, options: &SocketOptions) -> Result<Kind> {
    let address = ListenAddr::Unix(path.into());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&address, "look")(error)),
        Ok(there) if !there.file_type().is_socket() => return Err(Error::NotASocket(path.into())),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(failed(&address, "see whether a server is there")(error)),
            Ok(_) => return Err(Error::InUse(path.into())),
        },
    }
    // It gets its name only when its permissions are right: nobody comes in before that.
    let mut early = path.as_os_str().to_owned();
    early.push(".new");
    let early = PathBuf::from(early);
    let _ = std::fs::remove_file(&early);
    let listener = UnixListener::bind(&early).map_err(failed(&address, "bind"))?;
    let open = || -> std::result::Result<u64, (&'static str, io::Error)> {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        if let Some(gid) = group_id(&groups, &options.group) {
            std::os::unix::fs::chown(&early, None, Some(gid)).map_err(|e| ("set its group", e))?;
        }
        let mode = std::fs::Permissions::from_mode(options.mode);
        std::fs::set_permissions(&early, mode).map_err(|e| ("set its mode", e))?;
        let inode = std::fs::symlink_metadata(&early).map_err(|e| ("look", e))?.ino();
        std::fs::rename(&early, path).map_err(|e| ("name it", e))?;
        Ok(inode)
    };
    match open() {
        Ok(inode) => Ok(Kind::Unix { listener, path: path.into(), inode: Some(inode) }),
        Err((step, error)) => {
            let _ = std::fs::remove_file(&early);
            Err(failed(&address, step)(error))
        }
    }
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
        let name =
            <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
        let nameless = std::os::unix::net::UnixListener::bind_addr(&name.unwrap()).unwrap();
        let refused = Listener::inherited(nameless.into(), &options);
        assert!(matches!(refused, Err(Error::Insecure(_))), "{refused:?}");
        let options = SocketOptions { insecure_listen: true, ..options };
        let anywhere = "tcp:0.0.0.0:0".parse().unwrap();
        assert!(Listener::bind(&anywhere, &options).await.is_ok());
        assert!(Listener::inherited(inherited.into(), &options).is_ok());
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
}
