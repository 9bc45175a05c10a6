//! nf_tables over netlink (`linux/netfilter/nf_tables.h`): batches of changes, which the kernel makes all or not at
//! all, and dumps.
//!
//! Starting the program nft costs 6 to 16 ms; a batch with an element of a set costs some microseconds.

pub mod dump;
pub mod rule;
pub mod set;

use crate::message::{Message, Requests, Writer, nfgenmsg};
use crate::netlink::{self, Protocol};
use parking_lot::Mutex;
use std::fmt;

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const NLM_F_EXCL: u16 = libc::NLM_F_EXCL as u16;
const NLM_F_CREATE: u16 = libc::NLM_F_CREATE as u16;
const NLM_F_APPEND: u16 = libc::NLM_F_APPEND as u16;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// All families, in dumps alone.
    Unspecified = 0,
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// Frames that cross a bridge.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

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

impl Operation {
    /// The type of the message.
    const fn message(self) -> u16 {
        SUBSYSTEM << 8 | self as u16
    }
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
    #[error("reach nf_tables")]
    Open(#[source] netlink::Error),
    /// The kernel has refused an operation, and with it the whole batch.
    #[error("nf_tables refused: {operation} {subject}")]
    Refused {
        /// The operation.
        operation: Operation,
        /// What it concerns.
        subject: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// The kernel could not be asked, or its answer is not known.
    #[error("nf_tables failed: {operation} {subject}")]
    Failed {
        /// The operation, the first one of a batch.
        operation: Operation,
        /// What it concerns.
        subject: String,
        /// The reason.
        #[source]
        source: netlink::Error,
    },
}

impl Error {
    fn new(operation: Operation, subject: &str, source: netlink::Error) -> Self {
        let subject = subject.to_owned();
        match source {
            netlink::Error::Refused { .. } => Self::Refused { operation, subject, source },
            _ => Self::Failed { operation, subject, source },
        }
    }

    /// The kernel's error number, if it has refused an operation.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.errno(),
            _ => None,
        }
    }

    /// Whether the kernel has no nf_tables at all: it knows no such protocol, or answers for an unknown subsystem
    /// (`nfnetlink_rcv_msg` and `nfnetlink_rcv_batch` in net/netfilter/nfnetlink.c).
    pub(crate) fn is_without_tables(&self) -> bool {
        match self {
            Self::Open(netlink::Error::Open(source)) => source.raw_os_error() == Some(libc::EPROTONOSUPPORT),
            _ => matches!(self.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)),
        }
    }
}

/// A list of changes that the kernel makes all or not at all.
#[derive(Debug)]
pub struct Batch {
    requests: Requests,
    /// What each request after the batch's begin does.
    operations: Vec<(Operation, String)>,
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
        let mut requests = Requests::default();
        requests.mark(NFNL_MSG_BATCH_BEGIN, SUBSYSTEM);
        Self { requests, operations: Vec::new() }
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The number of bytes so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.requests.size()
    }

    /// Appends an operation; `fill` writes its attributes. `subject` is for the text of errors.
    fn push(
        &mut self,
        operation: Operation,
        family: Family,
        flags: u16,
        subject: &str,
        fill: impl FnOnce(&mut Writer) -> &mut Writer,
    ) {
        self.operations.push((operation, subject.to_owned()));
        self.requests.add(operation.message(), flags, &nfgenmsg(family as u8, 0), fill);
    }

    /// Appends the deletion of a table and of all that is in it.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        const NFTA_TABLE_NAME: u16 = 1;
        self.push(Operation::DelTable, family, 0, table, |writer| writer.text(NFTA_TABLE_NAME, table));
    }
}

/// A netlink connection to the nf_tables of one network namespace.
#[derive(Debug)]
pub struct Connection(Mutex<netlink::Connection>);

impl Connection {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        netlink::Connection::open(Protocol::Netfilter).map(Mutex::new).map(Self).map_err(Error::Open)
    }

    /// Has the kernel make the changes of a batch, all or none.
    ///
    /// # Errors
    /// [`Error::Refused`] names the first operation that the kernel has refused; [`Error::Failed`].
    pub fn commit(&self, batch: Batch) -> Result<(), Error> {
        let Batch { mut requests, operations } = batch;
        let Some(first) = operations.first() else { return Ok(()) };
        requests.mark(NFNL_MSG_BATCH_END, SUBSYSTEM);
        self.0.lock().command(requests).map_err(|source| {
            // The error of a commit as a whole is reported for the batch's begin, which comes before the operations.
            let refused = match source {
                netlink::Error::Refused { request, .. } => request.checked_sub(1),
                _ => None,
            };
            let (operation, subject) = refused.and_then(|index| operations.get(index)).unwrap_or(first);
            Error::new(*operation, subject, source)
        })
    }

    /// Asks for one object; `fill` writes the request's attributes, `parse` gets those of the answer.
    fn get<T>(
        &self,
        (operation, family, subject): (Operation, Family, &str),
        fill: impl FnOnce(&mut Writer) -> &mut Writer,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, Error> {
        let mut requests = Requests::default();
        requests.add(operation.message(), 0, &nfgenmsg(family as u8, 0), fill);
        let mut found = None;
        let asked =
            self.0.lock().ask(requests, |_, reply| found = content(reply).and_then(|(_, all)| parse(all)));
        asked
            .and_then(|()| found.ok_or(netlink::Error::Incomplete))
            .map_err(|source| Error::new(operation, subject, source))
    }

    /// Asks for all objects that match; `fill` writes the request's attributes, `parse` gets the family and the
    /// attributes of each answer.
    fn list<T, I: IntoIterator<Item = T>>(
        &self,
        (operation, family, subject): (Operation, Family, &str),
        fill: impl Fn(&mut Writer) -> &mut Writer,
        parse: impl Fn(Family, &[u8]) -> I,
    ) -> Result<Vec<T>, Error> {
        let request = |requests: &mut Requests, flags| {
            requests.add(operation.message(), flags, &nfgenmsg(family as u8, 0), &fill);
        };
        let parse = |reply: &Message<'_>| {
            content(reply).map(|(family, all)| parse(family, all)).into_iter().flatten()
        };
        self.0.lock().list(request, parse).map_err(|source| Error::new(operation, subject, source))
    }
}

/// The family and the attributes of a reply.
fn content<'a>(reply: &Message<'a>) -> Option<(Family, &'a [u8])> {
    let (header, attributes) = reply.body.split_first_chunk::<4>()?;
    let family = [Family::Inet, Family::Ip, Family::Bridge, Family::Ip6, Family::Unspecified]
        .into_iter()
        .find(|family| *family as u8 == header[0])?;
    Some((family, attributes))
}

#[cfg(test)]
mod tests;
