//! Connections to a server.

use super::address::Address;
use super::tls::Tls;
use crate::error::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How a server is reached.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: Address,
    pub(crate) tls: Option<Tls>,
}

/// A byte stream both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

impl std::fmt::Debug for dyn Duplex {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("connection")
    }
}

/// The timeout of the Go client.
const DIAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

pub(crate) async fn dial(server: &Server) -> Result<Box<dyn Duplex>> {
    let connect = async {
        match &server.address {
            Address::Unix(path) => connect(path).await.map(|s| Box::new(s) as Box<dyn Duplex>),
            Address::Tcp(host) => {
                let stream = TcpStream::connect(host.as_str()).await?;
                stream.set_nodelay(true)?;
                match &server.tls {
                    Some(tls) => Ok(Box::new(tls.connect(stream, host).await?) as Box<dyn Duplex>),
                    None => Ok(Box::new(stream) as Box<dyn Duplex>),
                }
            }
        }
    };
    let done = tokio::time::timeout(DIAL_TIMEOUT, connect).await;
    done.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|source| Error::Connect { address: server.address.to_string(), source })
}

/// Connects to a server, and tries again while its accept queue is full: a nonblocking connect(2) fails then
/// (unix(7), EAGAIN).
async fn connect(path: &std::path::Path) -> std::io::Result<UnixStream> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
    const AGAIN: std::time::Duration = std::time::Duration::from_millis(2);
    let begun = std::time::Instant::now();
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}
