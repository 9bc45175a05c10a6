//! Netlink sockets (`netlink(7)`), in the caller's network namespace or in another one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::namespace::in_network;

/// The part of the kernel that a netlink socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `NETLINK_ROUTE`: links, addresses, routes, traffic control (`rtnetlink(7)`).
    Route,
    /// `NETLINK_NETFILTER`: nftables, connection tracking.
    Netfilter,
}

/// Bytes of replies that a socket holds before the kernel drops some: room for the errors of thousands of requests, each
/// of which has some 100 bytes, and 800 in a buffer of its own. Without CAP_NET_ADMIN the kernel silently lowers it to
/// `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 2 << 20;

/// Opens a socket in the network namespace of the calling thread.
///
/// It is connected to the kernel: a message that another process sends to it is refused, so that none can forge a
/// reply. Errors come with the kernel's text (`NETLINK_EXT_ACK`) and without a copy of the request
/// (`NETLINK_CAP_ACK`); requests for lists are checked strictly and filtered by the kernel (`NETLINK_GET_STRICT_CHK`).
///
/// # Errors
/// The kernel's, from `socket(2)`, `connect(2)`, `setsockopt(2)`.
pub fn open(protocol: Protocol) -> io::Result<OwnedFd> {
    let number = match protocol {
        Protocol::Route => None,
        Protocol::Netfilter => Some(NETFILTER),
    };
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))?;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
        turn_on(&socket, option)?;
    }
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// Opens a socket in another network namespace, which lives on as long as the socket does. The caller stays where it
/// is ([`in_network`]).
///
/// # Errors
/// As [`open`], and those of [`in_network`].
pub fn open_in(network: BorrowedFd<'_>, protocol: Protocol) -> io::Result<OwnedFd> {
    in_network(network, || open(protocol))
}

/// Has the kernel send the notices of a multicast group to a socket, such as `RTNLGRP_LINK` (`linux/rtnetlink.h`).
///
/// # Errors
/// The kernel's, from `setsockopt(2)`: EINVAL for a group that the protocol does not have.
pub fn join(socket: &OwnedFd, group: libc::c_int) -> io::Result<()> {
    set(socket, libc::NETLINK_ADD_MEMBERSHIP, group)
}

fn turn_on(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    set(socket, option, 1)
}

fn set(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is an integer on our stack, of the size that is passed with it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const value).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendFlags, getsockname, sendto};
    use std::os::fd::{AsFd, FromRawFd};
    use wardian_needs::needs;

    #[test]
    fn a_socket_in_a_namespace_stays_there_and_the_caller_where_it_is() {
        needs!(Root);
        let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = own();
        let pair = crate::namespace::pair(&[], &[], 0).unwrap();
        open_in(pair.network.as_fd(), Protocol::Netfilter).unwrap();
        let socket = open_in(pair.network.as_fd(), Protocol::Route).unwrap();
        let inside = in_network(pair.network.as_fd(), || Ok(own())).unwrap();
        assert_ne!(inside, before);
        // SIOCGSKNS (linux/sockios.h): the namespace of a socket, as a descriptor.
        // SAFETY: the call takes no argument.
        let fd = unsafe { libc::ioctl(socket.as_raw_fd(), 0x894c) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nobody else owns it.
        let home = unsafe { OwnedFd::from_raw_fd(fd) };
        let home = std::fs::read_link(format!("/proc/self/fd/{}", home.as_raw_fd())).unwrap();
        assert_eq!(home, inside);
        let panicked = std::panic::catch_unwind(|| {
            in_network(pair.network.as_fd(), || -> io::Result<()> { panic!("in a namespace") })
        });
        assert!(panicked.is_err());
        assert_eq!(own(), before);
    }

    #[test]
    fn nobody_but_the_kernel_can_send_to_a_socket() {
        needs!(Root);
        let (one, other) = (open(Protocol::Route).unwrap(), socket());
        let address = SocketAddrNetlink::try_from(getsockname(&one).unwrap()).unwrap();
        let sent = sendto(&other, &[0; 16], SendFlags::empty(), &address);
        assert_eq!(sent.unwrap_err(), rustix::io::Errno::CONNREFUSED);
    }

    /// One that is not connected.
    fn socket() -> OwnedFd {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap()
    }
}
