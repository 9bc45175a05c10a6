//! What listeners of nfnetlink_log get.

use super::world::{HOST4, OUTSIDE4, Outcome, SERVICE, World, connect, datagram, from, log_v4, net, policy};
use crate::egress::{Step, TransportBox};
use crate::firewall::program::Policy;
use crate::message::{Requests, find, messages, nfgenmsg, text};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::OwnedFd;
use wardian_needs::needs;

const NFNL_SUBSYS_ULOG: u16 = 4;

/// Listens to a group (`linux/netfilter/nfnetlink_log.h`).
fn listen(group: u16) -> OwnedFd {
    const NFULNL_MSG_CONFIG: u16 = 1;
    const NFULA_CFG_CMD: u16 = 1;
    const NFULA_CFG_MODE: u16 = 2;
    const NFULNL_CFG_CMD_BIND: u8 = 1;
    const NFULNL_COPY_META: u8 = 1;
    let socket = wardian_sys::netlink::open(wardian_sys::netlink::Protocol::Netfilter).unwrap();
    let mut requests = Requests::default();
    requests.add(NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, 0, &nfgenmsg(0, group), |writer| {
        writer
            .put(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND])
            .put(NFULA_CFG_MODE, &[0, 0, 0, 0, NFULNL_COPY_META, 0])
    });
    send(&socket, requests.seal(1).unwrap(), SendFlags::empty()).unwrap();
    socket
}

/// The prefixes of all packets that have been logged so far.
fn logged(socket: &OwnedFd) -> Vec<String> {
    const NFULA_PREFIX: u16 = 10;
    // The kernel collects packets for up to a second.
    std::thread::sleep(std::time::Duration::from_millis(1300));
    let mut space = vec![0; 1 << 16];
    let mut found = Vec::new();
    while let Ok((_, length)) = recv(socket, &mut space[..], RecvFlags::DONTWAIT) {
        for message in messages(&space[..length]) {
            if message.kind == NFNL_SUBSYS_ULOG << 8 {
                found.push(text(find(&message.body[4..], NFULA_PREFIX).unwrap()));
            }
        }
    }
    found
}

#[test]
fn a_connection_is_logged_once_with_its_container() {
    needs!(Nftables);
    let mut world = World::new();
    world.containers[0].member.handle = "a handle of more than twenty-eight characters".into();
    let outside = OUTSIDE4.parse().unwrap();
    let tcp = TransportBox { addresses: (outside, outside), protocols: (6, 6), ports: (SERVICE, SERVICE) };
    world.containers[0].member.egress = vec![Step::Log(log_v4(tcp))];
    let listener = listen(7);
    let other = listen(8);
    let policy = Policy { deny: vec![net("0.0.0.0/0")], log_group: 7, ..policy() };
    let _firewall = world.firewall(&policy);
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
    assert_eq!(datagram(a, None, OUTSIDE4, SERVICE), Outcome::Rejected);
    assert_eq!(connect(b, OUTSIDE4, SERVICE), Outcome::Rejected);
    assert_eq!(logged(&listener), ["a handle of more than twenty "; 2]);
    assert_eq!(logged(&other), [""; 0]);
}
