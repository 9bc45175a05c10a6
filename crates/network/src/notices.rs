//! What the kernel tells of links without being asked: `RTNLGRP_LINK` of `rtnetlink(7)`.

use crate::link::{self, Link};
use crate::message::messages;
use crate::netlink::{Error, Protocol};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use wardian_sys::netlink;

/// `RTNLGRP_LINK` (`linux/rtnetlink.h`).
const LINKS: libc::c_int = 1;
/// The kernel's largest datagram is 32 KiB.
const BUFFER: usize = 32 * 1024;

/// A socket that gets notices.
#[derive(Debug)]
pub(crate) struct Notices {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What has happened to the links of a group.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// The kernel has dropped notices, because they were too many: anything may have happened.
    pub(crate) is_incomplete: bool,
    /// Links by their numbers, as they are after the last notice about each; `None`: it is gone.
    pub(crate) links: HashMap<u32, Option<Link>>,
}

impl Notices {
    /// Begins to listen, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = netlink::open(Protocol::Route).map_err(Error::Open)?;
        netlink::join(&socket, LINKS).map_err(Error::Open)?;
        Ok(Self { socket, buffer: vec![0; BUFFER] })
    }

    /// Returns what has happened to the links of a group since the last call. Does not wait.
    ///
    /// # Errors
    /// [`Error::Receive`].
    pub(crate) fn read(&mut self, group: u32) -> Result<News, Error> {
        let mut news = News::default();
        loop {
            let size = match recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, size)) if size > self.buffer.len() => {
                    news.is_incomplete = true;
                    continue;
                }
                Ok((_, size)) => size,
                Err(Errno::AGAIN) => return Ok(news),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    news.is_incomplete = true;
                    continue;
                }
                Err(error) => return Err(Error::Receive(error.into())),
            };
            for message in messages(&self.buffer[..size]) {
                // Those of the family AF_BRIDGE are about ports, whose links stay.
                if message.body.first() != Some(&(libc::AF_UNSPEC as u8)) {
                    continue;
                }
                let Some(found) = link::parse(&message).filter(|found| found.group == group) else {
                    continue;
                };
                match message.kind {
                    libc::RTM_NEWLINK => drop(news.links.insert(found.index, Some(found))),
                    libc::RTM_DELLINK => drop(news.links.insert(found.index, None)),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Namespace, sh};
    use wardian_needs::needs;

    #[test]
    fn notices_tell_of_the_links_of_a_group() {
        needs!(Nftables);
        let world = Namespace::new();
        world.within(|| {
            sh("ip link add other type bridge");
            let mut notices = Notices::open().unwrap();
            assert!(notices.read(77).unwrap().links.is_empty());
            sh("ip link add b0 type bridge; ip link set b0 group 77 up; ip link set other up
                ip link add w0 type veth peer name w1; ip link set w0 group 77 master b0 up");
            let news = notices.read(77).unwrap();
            let (mut names, ups): (Vec<_>, Vec<_>) =
                news.links.values().flatten().map(|link| (link.name.as_str(), link.is_up)).unzip();
            names.sort_unstable();
            assert_eq!((names, ups, news.is_incomplete), (vec!["b0", "w0"], vec![true, true], false));
            // A port that leaves its bridge is there.
            sh("ip link set w0 nomaster; ip link set b0 down");
            let news = notices.read(77).unwrap();
            let found = |name: &str| news.links.values().flatten().find(|link| link.name == name).unwrap();
            assert!(found("w0").master.is_none() && !found("b0").is_up);
            sh("ip link del w1");
            assert!(notices.read(77).unwrap().links.values().any(Option::is_none));
            // More than the socket holds.
            sh("for i in $(seq 8000); do echo link set other mtu $((1000 + i % 2)); done | ip -batch -");
            assert!(notices.read(77).unwrap().is_incomplete);
            assert!(!notices.read(77).unwrap().is_incomplete);
        });
    }
}
