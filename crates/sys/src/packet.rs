//! One message with descriptors over a `SOCK_SEQPACKET` unix socket.

use rustix::io::{IoSlice, IoSliceMut, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg,
    sendmsg, socket_with, socketpair, sockopt,
};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The limit of descriptors in one message: below the kernel's `SCM_MAX_FD` (253).
pub const MAX_FDS: usize = 200;
/// The limit of bytes in one message.
pub const MAX_BYTES: usize = 128 * 1024;

/// Makes a connected pair of sockets.
///
/// # Errors
/// The kernel's, from `socketpair(2)`.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&a, &b] {
        sockopt::set_socket_send_buffer_size(end, 2 * MAX_BYTES)?;
    }
    Ok((a, b))
}

/// The address of a socket in a directory: `sun_path` holds 108 bytes, and a descriptor's path in /proc always fits.
fn address(dir: BorrowedFd<'_>, name: &str) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Makes a listening socket called `name` in the directory `dir`.
///
/// # Errors
/// The kernel's, from `socket(2)`, `bind(2)`, `listen(2)`.
pub fn listen_at(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&fd, &address(dir, name)?)?;
    listen(&fd, 16)?;
    Ok(fd)
}

/// Connects to the socket `name` in the directory `dir`, non-blocking.
///
/// # Errors
/// The kernel's; `ECONNREFUSED` when nobody listens any more, `EAGAIN` when the listener's backlog is full.
pub fn connect_at(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    sockopt::set_socket_send_buffer_size(&fd, 2 * MAX_BYTES)?;
    connect(&fd, &address(dir, name)?)?;
    Ok(fd)
}

/// Sends one message.
///
/// # Errors
/// The kernel's; `EMSGSIZE` above [`MAX_BYTES`] or [`MAX_FDS`].
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    if bytes.len() > MAX_BYTES || fds.len() > MAX_FDS {
        return Err(rustix::io::Errno::MSGSIZE);
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Its bytes; empty when the peer is gone.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, in order.
    pub fds: Vec<OwnedFd>,
    /// Whether all descriptors have arrived. The kernel drops those for which this process has no room (recvmsg(2),
    /// `MSG_CTRUNC`); the bytes are complete all the same, and the connection stays usable.
    pub whole: bool,
}

/// Receives one message.
///
/// # Errors
/// The kernel's; `EMSGSIZE` when its bytes were truncated.
pub fn receive(socket: impl AsFd, flags: RecvFlags) -> Result<Message> {
    // One buffer per thread: an allocation of this size is a new mapping each time, which costs more than the
    // message.
    thread_local!(static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_BYTES]));
    BUFFER.with_borrow_mut(|buffer| receive_into(buffer, socket, flags))
}

fn receive_into(buffer: &mut [u8], socket: impl AsFd, flags: RecvFlags) -> Result<Message> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(rustix::io::Errno::MSGSIZE);
    }
    let whole = !got.flags.contains(rustix::net::ReturnFlags::CTRUNC);
    Ok(Message { bytes: buffer[..got.bytes].to_vec(), fds, whole })
}
