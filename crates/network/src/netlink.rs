//! A connection to the kernel over netlink, for requests that are answered at once.
//!
//! The kernel works on requests within the `send(2)` that brings them, so the replies are there when it returns. Only
//! the lists that do not fit into one datagram are continued, each part within a `recv(2)`. What can delay a call is
//! the kernel's lock over all links (`rtnl_mutex`), which others hold for up to tens of milliseconds and which cannot
//! be interrupted; the deadline ([`DEADLINE`]) is for replies that never come.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use thiserror::Error;

pub use wardian_sys::netlink::Protocol;

use crate::message::{HEADER, Message, Requests, find, messages, text, u32_at};

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
    /// The requests could not be sent.
    #[error("send to the kernel")]
    Send(#[source] io::Error),
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

/// What is read of an acknowledgement or the end of a list: 0, or minus an errno.
fn code(body: &[u8]) -> Result<i32, Error> {
    u32_at(body, 0).map(u32::cast_signed).ok_or(Error::Incomplete)
}

/// The error of an `NLMSG_ERROR` or `NLMSG_DONE`.
fn refused(message: &Message<'_>, request: usize, code: i32) -> Error {
    // With NETLINK_CAP_ACK only the header of the request follows the code, and then the attributes; the end of a
    // list has no such header.
    let before = if i32::from(message.kind) == libc::NLMSG_DONE { 4 } else { 4 + HEADER };
    let has_text = i32::from(message.flags) & libc::NLM_F_ACK_TLVS != 0;
    let told = has_text.then(|| message.body.get(before..)).flatten();
    Error::Refused {
        request,
        source: io::Error::from_raw_os_error(code.saturating_neg()),
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
        Self { socket, next: 1, buffer: vec![0; BUFFER] }
    }

    /// Sends requests, and returns the number of the first.
    fn send(&mut self, requests: &mut Requests) -> Result<u32, Error> {
        let first = self.next;
        let count = u32::try_from(requests.len()).expect("requests are far fewer than 2^32");
        self.next = self.next.wrapping_add(count);
        let bytes = requests.seal(first);
        match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == bytes.len() => Ok(first),
            Ok(_) => Err(Error::Send(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(Error::Send(error.into())),
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
    /// The first that the kernel reports; the requests after that one were carried out all the same.
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
            let size = self.receive(deadline)?;
            for message in messages(&self.buffer[..size]) {
                let request = message.sequence.wrapping_sub(first) as usize;
                if request >= requests.len() {
                    // The reply to an earlier call that has given up.
                    continue;
                }
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    read(request, &message);
                    continue;
                }
                let code = code(message.body)?;
                if code != 0 && requests.tolerated(request) != Some(code.saturating_neg()) && result.is_ok() {
                    result = Err(refused(&message, request, code));
                }
                if request + 1 == requests.len() {
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
    /// is read again if it has changed meanwhile (`NLM_F_DUMP_INTR`).
    ///
    /// # Errors
    /// The kernel's; [`Error::Changing`].
    pub(crate) fn list<T>(
        &mut self,
        request: impl Fn(&mut Requests, u16),
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
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
    fn list_once<T>(
        &mut self,
        mut requests: Requests,
        parse: &mut impl FnMut(&Message<'_>) -> Option<T>,
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
                match i32::from(message.kind) {
                    kind @ (libc::NLMSG_DONE | libc::NLMSG_ERROR) => {
                        let code = code(message.body)?;
                        if code != 0 {
                            return Err(refused(&message, 0, code));
                        }
                        if kind == libc::NLMSG_DONE {
                            return Ok((!changed).then_some(list));
                        }
                    }
                    _ => list.extend(parse(&message)),
                }
            }
        }
    }
}
