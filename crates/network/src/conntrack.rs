//! Forgetting the tracked connections of an address (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! An entry outlives its container by up to five days (an established TCP connection without packets). A new container
//! with the same address would be part of it: packets of old peers would pass as established, and a mapped port would
//! lead on to where it led before.
//!
//! The kernel walks the whole table for each question. With 262,144 buckets (`nf_conntrack_buckets`) a walk takes 12 ms
//! when they are empty, and 0.3 µs more for each entry that the kernel compares, or 3 µs for each that it lists
//! (`benches/links.rs`). So this is work for the background, and for many addresses at a time; an address is given to a
//! new container when it is done.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::message::{self, Message, Requests, find, find_path, nfgenmsg};
use crate::netlink::{self, Connection, Protocol};

/// `NFNL_SUBSYS_CTNETLINK << 8` and `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 1;
const DELETE: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 2;

/// `enum ctattr_type`.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
/// `CTA_TUPLE_IP`, and the source in it: `CTA_IP_V4_SRC`, `CTA_IP_V6_SRC`.
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `CTA_FILTER_ORIG_FLAGS` and `CTA_FILTER_REPLY_FLAGS`, and the flag for the source address
/// (`CTA_FILTER_F_CTA_IP_SRC`, net/netfilter/nf_internals.h).
const FILTER_FLAGS: [u16; 2] = [1, 2];
const BY_SOURCE: u32 = 1;

/// How many entries are deleted with one message: it must fit into the socket's buffer.
const AT_ONCE: usize = 256;

/// Why the connections of an address are still tracked.
#[derive(Debug, Error)]
pub enum Error {
    /// No connection to the kernel.
    #[error("open a netlink socket for connection tracking")]
    Open(#[source] netlink::Error),
    /// The table could not be read.
    #[error("list tracked connections")]
    List(#[source] netlink::Error),
    /// Some entries could not be deleted.
    #[error("delete tracked connections")]
    Delete(#[source] netlink::Error),
}

/// An entry, by the attributes that name it.
struct Entry {
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

/// A connection to the kernel's table of connections.
#[derive(Debug)]
pub struct Conntrack {
    connection: Connection,
}

impl Conntrack {
    /// Opens it for the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let connection = Connection::open(Protocol::Netfilter).map_err(Error::Open)?;
        Ok(Self { connection })
    }

    /// Deletes the entries of all connections that one of these addresses has begun, or that were begun to it, also by
    /// way of a mapped port. Returns how many there were.
    ///
    /// A walk through the table ([the costs](self)), two for a single IPv4 address. The containers should have no
    /// processes any more: what they send meanwhile makes new entries.
    ///
    /// # Errors
    /// [`Error::List`], [`Error::Delete`].
    pub fn forget(&mut self, addresses: &[IpAddr]) -> Result<usize, Error> {
        let (v4, v6): (HashSet<IpAddr>, HashSet<IpAddr>) =
            addresses.iter().partition(|address| address.is_ipv4());
        Ok(self.forget_family(libc::AF_INET as u8, &v4)? + self.forget_family(libc::AF_INET6 as u8, &v6)?)
    }

    /// Deletes the entries of all connections that addresses of a network have begun, or that were begun to them, but
    /// for those of the addresses in `keep`: an earlier server may have ended without forgetting them. Returns how many
    /// there were.
    ///
    /// # Errors
    /// [`Error::List`], [`Error::Delete`].
    pub fn forget_others(&mut self, network: Ipv4Net, keep: &HashSet<Ipv4Addr>) -> Result<usize, Error> {
        let stale = |tuple: &Tuple| match tuple.source {
            Some(IpAddr::V4(source)) => network.contains(&source) && !keep.contains(&source),
            _ => false,
        };
        self.forget_where(libc::AF_INET as u8, |original, reply| stale(original) || stale(reply))
    }

    /// Deletes the entries of all UDP connections that were begun to these ports of the host: a client that goes on
    /// sending would keep being led where the port led before.
    ///
    /// # Errors
    /// [`Error::List`], [`Error::Delete`].
    pub fn forget_udp_ports(&mut self, ports: &HashSet<(IpAddr, u16)>) -> Result<usize, Error> {
        let mut count = 0;
        for (family, v4) in [(libc::AF_INET as u8, true), (libc::AF_INET6 as u8, false)] {
            if ports.iter().any(|(address, _)| address.is_ipv4() == v4) {
                let concerned = |original: &Tuple, _: &Tuple| {
                    let to = original.destination.zip(original.port);
                    original.protocol == Some(libc::IPPROTO_UDP as u8)
                        && to.is_some_and(|to| ports.contains(&to))
                };
                count += self.forget_where(family, concerned)?;
            }
        }
        Ok(count)
    }

    fn forget_where(&mut self, family: u8, which: impl Fn(&Tuple, &Tuple) -> bool) -> Result<usize, Error> {
        let request = |requests: &mut Requests, flags| {
            requests.add(GET, flags, &nfgenmsg(family, 0), |writer| writer);
        };
        let read = |message: &Message<'_>| {
            let attributes = message.body.get(4..)?;
            let (original, reply) =
                (Tuple::of(attributes, CTA_TUPLE_ORIG), Tuple::of(attributes, CTA_TUPLE_REPLY));
            if which(&original, &reply) { Entry::of(attributes) } else { None }
        };
        let entries: Vec<Entry> = self.connection.list(request, read).map_err(Error::List)?;
        for entries in entries.chunks(AT_ONCE) {
            self.delete(family, entries).map_err(Error::Delete)?;
        }
        Ok(entries.len())
    }

    fn forget_family(&mut self, family: u8, addresses: &HashSet<IpAddr>) -> Result<usize, Error> {
        let mut one = addresses.iter();
        let filters = match (one.next(), one.next()) {
            (None, _) => return Ok(0),
            // The kernel lists what matches the filter. It compares IPv6 addresses the wrong way round, and lists
            // what does not match (ctnetlink_filter_match_tuple, seen in Linux 6.18).
            (Some(IpAddr::V4(one)), None) => {
                vec![Some((CTA_TUPLE_ORIG, *one)), Some((CTA_TUPLE_REPLY, *one))]
            }
            _ => vec![None],
        };
        let mut count = 0;
        for filter in filters {
            let entries = self.entries(family, addresses, filter).map_err(Error::List)?;
            count += entries.len();
            for entries in entries.chunks(AT_ONCE) {
                self.delete(family, entries).map_err(Error::Delete)?;
            }
        }
        Ok(count)
    }

    /// The entries of the addresses, of which the kernel filters out (Linux 5.8; an older one lists all) those whose
    /// tuple of one direction has another source.
    fn entries(
        &mut self,
        family: u8,
        addresses: &HashSet<IpAddr>,
        filter: Option<(u16, Ipv4Addr)>,
    ) -> Result<Vec<Entry>, netlink::Error> {
        let request = |requests: &mut Requests, flags| {
            requests.add(GET, flags, &nfgenmsg(family, 0), |fields| {
                let Some((tuple, source)) = filter else { return fields };
                fields
                    .nest(tuple, |tuple| {
                        tuple.nest(CTA_TUPLE_IP, |ip| ip.address(CTA_IP_V4_SRC, source.into()))
                    })
                    .nest(CTA_FILTER, |filter| {
                        for (flags, of) in FILTER_FLAGS.into_iter().zip([CTA_TUPLE_ORIG, CTA_TUPLE_REPLY]) {
                            filter.u32(flags, if of == tuple { BY_SOURCE } else { 0 });
                        }
                        filter
                    })
            });
        };
        self.connection.list(request, |message| parse(message, addresses))
    }

    fn delete(&mut self, family: u8, entries: &[Entry]) -> Result<(), netlink::Error> {
        let mut requests = Requests::default();
        for entry in entries {
            // Entries end by themselves meanwhile. With the id it cannot be a new one in its place.
            requests
                .add(DELETE, 0, &nfgenmsg(family, 0), |fields| {
                    fields.nest_after(CTA_TUPLE_ORIG, &entry.original, |writer| writer);
                    for (kind, value) in [(CTA_ZONE, &entry.zone), (CTA_ID, &entry.id)] {
                        if let Some(value) = value {
                            fields.put(kind, value);
                        }
                    }
                    fields
                })
                .tolerate(libc::ENOENT);
        }
        self.connection.command(requests)
    }
}

/// Reads an entry if it is of one of the addresses. The sender of the first packet is the source of the original
/// direction; whoever answers is the source of the replies, whatever address the first packet was sent to.
fn parse(message: &Message<'_>, addresses: &HashSet<IpAddr>) -> Option<Entry> {
    let attributes = message.body.get(4..)?;
    let concerned = [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY].into_iter().any(|tuple| {
        let Some(ip) = find_path(attributes, &[tuple, CTA_TUPLE_IP]) else { return false };
        let source = find(ip, CTA_IP_V4_SRC).or_else(|| find(ip, CTA_IP_V6_SRC)).and_then(message::address);
        source.is_some_and(|source| addresses.contains(&source))
    });
    if concerned { Entry::of(attributes) } else { None }
}

impl Entry {
    /// Reads what names an entry in a request to delete it.
    fn of(attributes: &[u8]) -> Option<Self> {
        let owned = |kind| find(attributes, kind).map(<[u8]>::to_vec);
        Some(Self { original: owned(CTA_TUPLE_ORIG)?, zone: owned(CTA_ZONE), id: owned(CTA_ID) })
    }
}

/// One direction of an entry.
#[derive(Debug, Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    /// The destination's.
    port: Option<u16>,
}

impl Tuple {
    fn of(attributes: &[u8], tuple: u16) -> Self {
        let Some(ip) = find_path(attributes, &[tuple, CTA_TUPLE_IP]) else { return Self::default() };
        let one = |v4, v6| find(ip, v4).or_else(|| find(ip, v6)).and_then(message::address);
        let transport = find_path(attributes, &[tuple, CTA_TUPLE_PROTO]).unwrap_or_default();
        let port = find(transport, CTA_PROTO_DST_PORT).and_then(|bytes| bytes.first_chunk::<2>());
        Self {
            source: one(CTA_IP_V4_SRC, CTA_IP_V6_SRC),
            destination: one(CTA_IP_V4_DST, CTA_IP_V6_DST),
            protocol: find(transport, CTA_PROTO_NUM).and_then(|bytes| bytes.first().copied()),
            port: port.map(|bytes| u16::from_be_bytes(*bytes)),
        }
    }
}
