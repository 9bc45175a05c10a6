//! A connection to the kernel over netlink, for requests that are answered at once.
//!
//! The kernel works on requests within the `send(2)` that brings them, so the replies are there when it returns. Only
//! the lists that do not fit into one datagram are continued, each part within a `recv(2)`. What can delay a call is
//! a lock of the kernel, such as the one over all links (`rtnl_mutex`), which others hold for up to tens of
//! milliseconds and which cannot be interrupted; the deadline ([`DEADLINE`]) is for replies that never come.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use thiserror::Error;

pub use wardian_sys::netlink::Protocol;

use crate::message::{HEADER, Message, OnError, Requests, find, messages, text, u32_at};

/// How long a reply may take. Replies exist when `send(2)` returns, so this is reached only if the kernel has dropped
/// one for lack of memory.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How often a list is asked for that changes while it is read.
const TRIES: usize = 16;

/// The kernel's largest datagram is 32 KiB (`netlink_recvmsg`, net/netlink/af_netlink.c).
const BUFFER: usize = 64 * 1024;

/// `NLMSGERR_ATTR_MSG`: the text of an error.
const ERROR_TEXT: u16 = 1;

/// Why the kernel has not done what it was asked for.
#[derive(Debug, Error)]
pub enum Error {
    /// A socket could not be opened.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// An attribute of a request is longer than 64 KiB.
    #[error("a request to the kernel is too long")]
    TooLong,
    /// The requests could not be sent; `EMSGSIZE`: the kernel grants the socket no buffer of their length.
    #[error("send {bytes} bytes to the kernel")]
    Send {
        /// Their length.
        bytes: usize,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The replies could not be received; `ENOBUFS`: some were dropped.
    #[error("receive from the kernel")]
    Receive(#[source] io::Error),
    /// The kernel has refused a request.
    #[error("{source}{}", .text.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// Its position among those that were sent together, from 0.
        request: usize,
        /// The error.
        source: io::Error,
        /// The kernel's explanation, where it has one.
        text: Option<String>,
    },
    /// No reply came in time.
    #[error("no reply from the kernel within {} s", DEADLINE.as_secs())]
    Late,
    /// The list changed each time it was read.
    #[error("the kernel's list changed while it was read, {TRIES} times in a row")]
    Changing,
    /// A reply lacks something or was cut off.
    #[error("a reply of the kernel is incomplete")]
    Incomplete,
}

impl Error {
    /// The kernel's error number, if it has refused a request.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// What an acknowledgement (`NLMSG_ERROR`) or the end of a list (`NLMSG_DONE`) tells: 0, or an errno.
fn errno(message: &Message<'_>) -> Result<i32, Error> {
    u32_at(message.body, 0).map(|code| code.cast_signed().saturating_neg()).ok_or(Error::Incomplete)
}

fn refused(message: &Message<'_>, request: usize, errno: i32) -> Error {
    // With NETLINK_CAP_ACK only the header of the request follows the errno, and then the attributes; the end of a
    // list has no such header.
    let before = if i32::from(message.kind) == libc::NLMSG_DONE { 4 } else { 4 + HEADER };
    let has_text = i32::from(message.flags) & libc::NLM_F_ACK_TLVS != 0;
    let told = has_text.then(|| message.body.get(before..)).flatten();
    Error::Refused {
        request,
        source: io::Error::from_raw_os_error(errno),
        text: told.and_then(|attributes| find(attributes, ERROR_TEXT)).map(text),
    }
}

/// A netlink socket and what belongs to it. Calls are one after the other: whoever shares it puts it behind a lock.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// The number of the next request.
    next: u32,
    buffer: Vec<u8>,
    /// A call has given up before all replies to it were received.
    unread: bool,
}

impl Connection {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        wardian_sys::netlink::open(protocol).map(Self::new).map_err(Error::Open)
    }

    /// Opens a connection in another network namespace, which is kept alive by it. Costs a short-lived thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open_in(network: BorrowedFd<'_>, protocol: Protocol) -> Result<Self, Error> {
        wardian_sys::netlink::open_in(network, protocol).map(Self::new).map_err(Error::Open)
    }

    fn new(socket: OwnedFd) -> Self {
        Self { socket, next: 1, buffer: vec![0; BUFFER], unread: false }
    }

    /// Sends requests, and returns the number of the first.
    fn send(&mut self, requests: &mut Requests) -> Result<u32, Error> {
        if std::mem::replace(&mut self.unread, true) {
            self.discard();
        }
        let first = self.next;
        let count = u32::try_from(requests.len()).expect("requests are far fewer than 2^32");
        self.next = self.next.wrapping_add(count);
        let bytes = requests.seal(first).ok_or(Error::TooLong)?;
        let mut sent = send(&self.socket, bytes, SendFlags::NOSIGNAL);
        // Nothing has been sent then: the socket's buffer is too small, by default 208 KiB.
        if sent == Err(Errno::MSGSIZE) {
            sent = self.enlarge(bytes.len()).and_then(|()| send(&self.socket, bytes, SendFlags::NOSIGNAL));
        }
        let failed = |source| Error::Send { bytes: bytes.len(), source };
        match sent {
            Ok(sent) if sent == bytes.len() => Ok(first),
            Ok(_) => Err(failed(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Makes the send buffer large enough for this many bytes. The kernel doubles the number for what it keeps in the
    /// buffer besides (socket(7)).
    fn enlarge(&self, bytes: usize) -> rustix::io::Result<()> {
        sockopt::set_socket_send_buffer_size_force(&self.socket, bytes)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&self.socket, bytes))
    }

    /// Drops the replies that an earlier call has left: they take up the buffer, and while a list has not been read to
    /// its end the kernel refuses to begin another one (`EBUSY`).
    fn discard(&mut self) {
        loop {
            match recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT) {
                // ENOBUFS tells that some were dropped; others may have arrived before.
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Receives a datagram into the buffer, and returns its size.
    fn receive(&mut self, deadline: Instant) -> Result<usize, Error> {
        loop {
            // With TRUNC the result is the size of the whole datagram, also where the buffer is smaller.
            let got = recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC);
            match got {
                Ok((_, size)) if size > self.buffer.len() => return Err(Error::Incomplete),
                Ok((_, size)) => return Ok(size),
                Err(Errno::AGAIN) => self.wait(deadline)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::Receive(error.into())),
            }
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Late);
        }
        let left = Timespec::try_from(left).map_err(|_| Error::Late)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Receive(error.into())),
        }
    }

    /// Has requests carried out, in one `send(2)`, and hands each reply that is not an acknowledgement to `read`, with
    /// the position of its request.
    ///
    /// # Errors
    /// The first that the kernel reports: those after it are often its consequences. The requests after that one were
    /// carried out all the same, unless they are a batch.
    pub(crate) fn ask(
        &mut self,
        mut requests: Requests,
        mut read: impl FnMut(usize, &Message<'_>),
    ) -> Result<(), Error> {
        if requests.len() == 0 {
            return Ok(());
        }
        let deadline = Instant::now() + DEADLINE;
        let first = self.send(&mut requests)?;
        let mut result = Ok(());
        loop {
            let size = match self.receive(deadline) {
                Ok(size) => size,
                Err(error) => return result.and(Err(error)),
            };
            for message in messages(&self.buffer[..size]) {
                let request = message.sequence.wrapping_sub(first) as usize;
                // Otherwise it is the reply to an earlier call that has given up.
                let Some(on_error) = requests.on_error(request) else { continue };
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    read(request, &message);
                    continue;
                }
                let errno = errno(&message)?;
                if errno != 0 && on_error != OnError::Tolerate(errno) {
                    result = result.and_then(|()| Err(refused(&message, request, errno)));
                    if on_error == OnError::End {
                        return result;
                    }
                }
                if request == requests.last() {
                    self.unread = false;
                    return result;
                }
            }
        }
    }

    /// Has requests carried out that are only acknowledged.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn command(&mut self, requests: Requests) -> Result<(), Error> {
        self.ask(requests, |_, _| {})
    }

    /// Asks for a list: a request with `NLM_F_DUMP`, whose replies `parse` turns into what is wanted of them. The list
    /// is read again if it has changed meanwhile (`NLM_F_DUMP_INTR`, or `EINTR`).
    ///
    /// # Errors
    /// The kernel's; [`Error::Changing`].
    pub(crate) fn list<T, I: IntoIterator<Item = T>>(
        &mut self,
        request: impl Fn(&mut Requests, u16),
        mut parse: impl FnMut(&Message<'_>) -> I,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..TRIES {
            let mut requests = Requests::default();
            request(&mut requests, libc::NLM_F_DUMP as u16);
            if let Some(list) = self.list_once(requests, &mut parse)? {
                return Ok(list);
            }
        }
        Err(Error::Changing)
    }

    /// Returns nothing if the list has changed.
    fn list_once<T, I: IntoIterator<Item = T>>(
        &mut self,
        mut requests: Requests,
        parse: &mut impl FnMut(&Message<'_>) -> I,
    ) -> Result<Option<Vec<T>>, Error> {
        let deadline = Instant::now() + DEADLINE;
        let number = self.send(&mut requests)?;
        let mut list = Vec::new();
        let mut changed = false;
        loop {
            let size = self.receive(deadline)?;
            for message in messages(&self.buffer[..size]) {
                if message.sequence != number {
                    continue;
                }
                changed |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                let kind = i32::from(message.kind);
                if !matches!(kind, libc::NLMSG_DONE | libc::NLMSG_ERROR) {
                    list.extend(parse(&message));
                    continue;
                }
                match errno(&message)? {
                    0 if kind == libc::NLMSG_ERROR => continue,
                    0 => {}
                    libc::EINTR => changed = true,
                    errno => return Err(refused(&message, 0, errno)),
                }
                self.unread = false;
                return Ok((!changed).then_some(list));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Namespace;
    use wardian_needs::needs;

    /// Requests for the addresses 10.0.0.0 and following of the loopback link.
    fn addresses(kind: u16, flags: i32, count: u32) -> Requests {
        let mut requests = Requests::default();
        for number in 0..count {
            // `struct ifaddrmsg`, with the number of the link.
            let [one, two, three, four] = 1_u32.to_ne_bytes();
            let header = [libc::AF_INET as u8, 32, 0, 0, one, two, three, four];
            requests.add(kind, flags as u16, &header, |address| {
                address.be32(libc::IFA_LOCAL, 0x0a00_0000 + number)
            });
        }
        requests
    }

    fn list(requests: &mut Requests, flags: u16) {
        requests.add(libc::RTM_GETADDR, flags, &[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0], |writer| writer);
    }

    fn count(connection: &mut Connection) -> usize {
        connection.list(list, |_| Some(())).unwrap().len()
    }

    #[test]
    fn what_a_call_has_left_does_not_concern_the_next_one() {
        needs!(Root);
        let own = Namespace::new();
        own.enter();
        let mut connection = Connection::open(Protocol::Route).unwrap();
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let addresses = || addresses(libc::RTM_NEWADDR, create, 10_000);
        // These take a larger buffer than a socket has at first.
        connection.command(addresses()).unwrap();

        // A list of several datagrams: the kernel begins no other one before its end.
        let mut requests = Requests::default();
        list(&mut requests, libc::NLM_F_DUMP as u16);
        connection.send(&mut requests).unwrap();
        assert_eq!(count(&mut connection), 10_001);

        // As many errors as no buffer has room for.
        let error = connection.command(addresses()).unwrap_err();
        let Error::Receive(source) = &error else { panic!("{error:?}") };
        assert_eq!(source.raw_os_error(), Some(libc::ENOBUFS));
        assert_eq!(count(&mut connection), 10_001);
    }

    #[test]
    fn the_first_error_counts_and_has_the_kernels_text() {
        needs!(Root);
        let own = Namespace::new();
        own.enter();
        let mut connection = Connection::open(Protocol::Route).unwrap();
        let mut requests = Requests::default();
        let add = |requests: &mut Requests, kind| {
            requests.add(libc::RTM_NEWLINK, libc::NLM_F_CREATE as u16, &[0; 16], |link| {
                link.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, kind))
            });
        };
        add(&mut requests, "nonesuch");
        requests.tolerate(libc::EOPNOTSUPP);
        add(&mut requests, "nonesuch");
        requests.add(libc::RTM_DELLINK, 0, &[0; 16], |link| link.text(libc::IFLA_IFNAME, "none"));
        let error = connection.command(requests).unwrap_err();
        assert_eq!(error.to_string(), "Operation not supported (os error 95): Unknown device type");
        assert!(matches!(error, Error::Refused { request: 1, .. }), "{error:?}");
    }
}
