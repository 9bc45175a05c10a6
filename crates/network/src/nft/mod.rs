//! nf_tables over netlink (`linux/netfilter/nf_tables.h`): batches of changes, which the kernel makes all or not at
//! all, and dumps.
//!
//! Starting the program nft costs 6 to 16 ms; a batch with an element of a set costs some microseconds.

pub mod dump;
pub mod message;
pub mod rule;
pub mod set;

use message::{Family, Header, NFGENMSG, NFTABLES, NLMSGHDR, Writer};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use std::fmt;
use std::os::fd::OwnedFd;
use wardian_sys::netlink::Protocol;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

/// What a message does, by the numbers of `enum nf_tables_msg_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names of nf_tables")]
pub enum Operation {
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    GetGen = 16,
}

impl fmt::Display for Operation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::GetTable => "list tables",
            Self::DelTable => "delete table",
            Self::NewChain => "add chain",
            Self::GetChain => "list chains",
            Self::DelChain => "delete chain",
            Self::NewRule => "add rule to chain",
            Self::GetRule => "list rules",
            Self::DelRule => "delete rules of chain",
            Self::NewSet => "add set",
            Self::GetSet => "list sets",
            Self::DelSet => "delete set",
            Self::NewSetElem => "add elements to set",
            Self::GetSetElem => "list elements",
            Self::DelSetElem => "delete elements from set",
            Self::GetGen => "get the generation",
        })
    }
}

/// A failure of nf_tables.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket for netfilter")]
    Open(#[source] std::io::Error),
    /// A request could not be sent.
    #[error("cannot send nf_tables {bytes} bytes: {operation} {subject}")]
    Send {
        /// The first operation of the request.
        operation: Operation,
        /// What it concerns.
        subject: String,
        /// The length of the request.
        bytes: usize,
        /// The kernel's error; ENOBUFS and EMSGSIZE tell that the socket's send buffer is too small.
        #[source]
        source: Errno,
    },
    /// The answer could not be received.
    #[error("cannot receive the answer of nf_tables to: {operation} {subject}")]
    Receive {
        /// The first operation of the request.
        operation: Operation,
        /// What it concerns.
        subject: String,
        /// The kernel's error.
        #[source]
        source: Errno,
    },
    /// The kernel has refused an operation, and with it the whole batch.
    #[error("nf_tables refused: {operation} {subject}{}", kernel.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The operation.
        operation: Operation,
        /// What it concerns.
        subject: String,
        /// The kernel's own text, where it has one (extended ack).
        kernel: Option<String>,
        /// The kernel's error.
        #[source]
        source: Errno,
    },
    /// The kernel has not answered.
    #[error("nf_tables has not answered: {operation} {subject}")]
    Silent {
        /// The first operation of the request.
        operation: Operation,
        /// What it concerns.
        subject: String,
    },
    /// A dump was interrupted by changes each time it was tried.
    #[error("nf_tables changes too often to be read: {operation} {subject}")]
    Interrupted {
        /// The operation.
        operation: Operation,
        /// What it concerns.
        subject: String,
    },
    /// An attribute is longer than 64 KiB.
    #[error("a message to nf_tables is too long: {operation} {subject}")]
    TooLong {
        /// The first operation of the batch.
        operation: Operation,
        /// What it concerns.
        subject: String,
    },
}

impl Error {
    /// The kernel's error behind a refused operation.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// Whether the kernel has no nf_tables at all: it knows no such protocol, or answers for an unknown subsystem
    /// (`nfnetlink_rcv_msg` and `nfnetlink_rcv_batch` in net/netfilter/nfnetlink.c).
    pub(crate) fn is_without_tables(&self) -> bool {
        match self {
            Self::Open(source) => source.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()),
            Self::Refused { source, .. } => matches!(*source, Errno::INVAL | Errno::OPNOTSUPP),
            _ => false,
        }
    }
}

/// A list of changes that the kernel makes all or not at all.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    /// What each message does; its index plus one is the message's sequence number.
    operations: Vec<(Operation, String)>,
    /// Where the last message begins.
    last: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        let mut writer = Writer::default();
        batch_mark(&mut writer, NFNL_MSG_BATCH_BEGIN, 0);
        Self { writer, operations: Vec::new(), last: 0 }
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The number of bytes so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.writer.bytes().len()
    }

    /// Appends an operation; `fill` writes its attributes. `subject` is for the text of errors.
    pub(crate) fn push(
        &mut self,
        operation: Operation,
        family: Family,
        flags: u16,
        subject: &str,
        fill: impl FnOnce(&mut Writer),
    ) {
        self.operations.push((operation, subject.to_owned()));
        self.last = self.size();
        let header = Header {
            kind: NFTABLES << 8 | operation as u16,
            flags: NLM_F_REQUEST | flags,
            sequence: u32::try_from(self.operations.len()).unwrap_or(u32::MAX),
            family,
            resource: 0,
        };
        self.writer.message(&header, fill);
    }

    /// Appends the deletion of a table and of all that is in it.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        const NFTA_TABLE_NAME: u16 = 1;
        self.push(Operation::DelTable, family, 0, table, |writer| writer.text(NFTA_TABLE_NAME, table));
    }

    fn first(&self) -> (Operation, String) {
        self.operations.first().cloned().unwrap_or((Operation::GetGen, String::new()))
    }
}

fn batch_mark(writer: &mut Writer, kind: u16, sequence: u32) {
    let header =
        Header { kind, flags: NLM_F_REQUEST, sequence, family: Family::Unspecified, resource: NFTABLES };
    writer.message(&header, |_| ());
}

/// A netlink connection to the nf_tables of one network namespace.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// One request at a time: its answers are received before the next one is sent. The longest request that the
    /// send buffer takes, in bytes.
    sendable: Mutex<usize>,
}

impl Connection {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        /// Room for the errors of a large batch: each has some 100 bytes, and 800 in a buffer of its own.
        const RECEIVE: usize = 2 << 20;
        let socket = wardian_sys::netlink::open(Protocol::Netfilter).map_err(Error::Open)?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE)
                .map_err(|error| Error::Open(error.into()))?;
        }
        Ok(Self { socket, sendable: Mutex::new(0) })
    }

    /// Has the kernel make the changes of a batch, all or none.
    ///
    /// # Errors
    /// [`Error::Refused`] names the first operation that the kernel has refused.
    pub fn commit(&self, mut batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let (operation, subject) = batch.first();
        // The kernel acknowledges only what asks for it; the last operation's tells that all has been read.
        batch.writer.add_flags(batch.last, NLM_F_ACK);
        let last = u32::try_from(batch.operations.len()).unwrap_or(u32::MAX);
        batch_mark(&mut batch.writer, NFNL_MSG_BATCH_END, last.wrapping_add(1));
        if batch.writer.overflowed() {
            return Err(Error::TooLong { operation, subject });
        }
        let mut sendable = self.sendable.lock();
        self.send(&mut sendable, batch.writer.bytes(), (operation, &subject))?;
        let mut refused: Option<(u32, Refusal)> = None;
        let mut finished = false;
        let received = self.receive((operation, &subject), |kind, flags, sequence, payload| {
            if kind != NLMSG_ERROR {
                return Step::Go;
            }
            if let Some(refusal) = Refusal::parse(flags, payload) {
                // The first one is the cause; those after it are often its consequences.
                if refused.is_none() {
                    refused = Some((sequence, refusal));
                }
            }
            finished |= sequence == last;
            // A failed commit is reported for the batch's first message, before the acknowledgement.
            if finished { Step::Stop } else { Step::Go }
        });
        if let Some((sequence, refusal)) = refused {
            let index = (sequence as usize).checked_sub(1);
            let of = index.and_then(|index| batch.operations.get(index)).cloned();
            let (operation, subject) = of.unwrap_or((operation, subject));
            return Err(Error::Refused { operation, subject, kernel: refusal.text, source: refusal.errno });
        }
        received?;
        if finished { Ok(()) } else { Err(Error::Silent { operation, subject }) }
    }

    fn send(&self, sendable: &mut usize, bytes: &[u8], what: (Operation, &str)) -> Result<(), Error> {
        /// The kernel keeps some bytes of the buffer for itself (`netlink_sendmsg`).
        const RESERVE: usize = 4096;
        let failed = |source| Error::Send {
            operation: what.0,
            subject: what.1.to_owned(),
            bytes: bytes.len(),
            source,
        };
        if *sendable < bytes.len() {
            let size = (bytes.len() + RESERVE).max(1 << 18);
            if sockopt::set_socket_send_buffer_size_force(&self.socket, size).is_err() {
                sockopt::set_socket_send_buffer_size(&self.socket, size).map_err(failed)?;
            }
            *sendable = size - RESERVE;
        }
        // Answers that a failed exchange has left behind would be taken for those of this one.
        let mut rest = [0; 1024];
        while recv(&self.socket, &mut rest[..], RecvFlags::DONTWAIT).is_ok() {}
        send(&self.socket, bytes, SendFlags::empty()).map_err(failed)?;
        Ok(())
    }

    /// Hands each message that the kernel sends to `take`, until that has enough.
    fn receive(
        &self,
        what: (Operation, &str),
        mut take: impl FnMut(u16, u16, u32, &[u8]) -> Step,
    ) -> Result<(), Error> {
        let failed = |source| Error::Receive { operation: what.0, subject: what.1.to_owned(), source };
        let mut space = vec![0_u8; 1 << 16];
        loop {
            let length = match recv(&self.socket, &mut space[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    // nf_tables answers before send(2) returns, or, in a dump, before recv(2) does. The wait is for a
                    // kernel that would do otherwise.
                    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
                    let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
                    if poll(&mut ready, Some(&second)).map_err(failed)? == 0 {
                        return Err(Error::Silent { operation: what.0, subject: what.1.to_owned() });
                    }
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            for (kind, flags, sequence, payload) in message::messages(&space[..length.min(space.len())]) {
                if let Step::Stop = take(kind, flags, sequence, payload) {
                    return Ok(());
                }
            }
        }
    }

    /// Asks for objects; `fill` writes the request's attributes, `take` gets the attributes of each answer. With
    /// `dump` for all that match, otherwise for one.
    ///
    /// `take` may see an object twice when the dump has to be repeated; `restart` is called before each try.
    fn request<T>(
        &self,
        (operation, family, subject): (Operation, Family, &str),
        dump: bool,
        fill: impl Fn(&mut Writer),
        mut take: impl FnMut(&mut T, Family, &[u8]),
        mut restart: impl FnMut() -> T,
    ) -> Result<T, Error> {
        const TRIES: u32 = 20;
        let mut sendable = self.sendable.lock();
        for sequence in 1..=TRIES {
            let mut writer = Writer::default();
            let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { 0 };
            let kind = NFTABLES << 8 | operation as u16;
            writer.message(&Header { kind, flags, sequence, family, resource: 0 }, &fill);
            self.send(&mut sendable, writer.bytes(), (operation, subject))?;
            let mut found = restart();
            let mut interrupted = false;
            let mut refused = None;
            self.receive((operation, subject), |kind, flags, of, payload| {
                if of != sequence {
                    return Step::Go;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                if kind == NLMSG_ERROR {
                    refused = Refusal::parse(flags, payload);
                    return Step::Stop;
                }
                if kind == NLMSG_DONE {
                    // A dump that fails half-way ends with an error in place of zero.
                    refused = Refusal::parse(flags | NLM_F_CAPPED, payload);
                    return Step::Stop;
                }
                if let (Some(family), Some(attributes)) =
                    (payload.first().and_then(|family| family_of(*family)), payload.get(NFGENMSG..))
                {
                    take(&mut found, family, attributes);
                }
                if dump { Step::Go } else { Step::Stop }
            })?;
            if let Some(Refusal { errno, text }) = refused {
                if errno != Errno::INTR {
                    let subject = subject.to_owned();
                    return Err(Error::Refused { operation, subject, kernel: text, source: errno });
                }
                interrupted = true;
            }
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Error::Interrupted { operation, subject: subject.to_owned() })
    }
}

fn family_of(number: u8) -> Option<Family> {
    [Family::Inet, Family::Ip, Family::Bridge, Family::Ip6, Family::Unspecified]
        .into_iter()
        .find(|family| *family as u8 == number)
}

enum Step {
    Go,
    Stop,
}

/// An error message of netlink other than an acknowledgement.
struct Refusal {
    errno: Errno,
    text: Option<String>,
}

impl Refusal {
    fn parse(flags: u16, payload: &[u8]) -> Option<Self> {
        const NLMSGERR_ATTR_MSG: u16 = 1;
        let number = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
        if number == 0 {
            return None;
        }
        let errno = Errno::from_raw_os_error(number.checked_neg().filter(|number| *number > 0).unwrap_or(5));
        let after = if flags & NLM_F_CAPPED != 0 {
            NLMSGHDR
        } else {
            let length = payload.get(4..8).and_then(|length| length.try_into().ok()).map(u32::from_ne_bytes);
            length.map_or(NLMSGHDR, |length| (length as usize).next_multiple_of(4))
        };
        let attributes = (flags & NLM_F_ACK_TLVS != 0).then(|| payload.get(4 + after..)).flatten();
        let text = attributes.and_then(|all| message::attribute(all, NLMSGERR_ATTR_MSG)).map(message::text);
        Some(Self { errno, text })
    }
}

#[cfg(test)]
mod tests;
