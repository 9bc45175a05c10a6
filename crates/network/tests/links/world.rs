//! A host of the test's own, and containers on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use wardian_network::link::{self, Bridge, Inside, Mac, Port, Veth};
use wardian_network::netlink::{Connection, Protocol};
use wardian_sys::namespace;

pub const GROUP: u32 = 0x3eef_0001;

/// Runs a test in a network namespace of its own: what it makes there, links of the same names included, does not
/// concern the host.
pub fn on_a_host(test: impl FnOnce(&mut Connection) + Send) {
    let pair = namespace::pair(&[], &[], 0).unwrap();
    namespace::in_network(pair.network.as_fd(), || {
        for (path, value) in
            [("/proc/sys/net/ipv4/ip_forward", "1"), ("/proc/sys/net/ipv6/conf/all/forwarding", "1")]
        {
            std::fs::write(path, value)?;
        }
        test(&mut Connection::open(Protocol::Route).unwrap());
        Ok(())
    })
    .unwrap();
}

/// Runs a program in the namespace of the calling thread and returns its output.
pub fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub struct Subnet {
    pub bridge: u32,
    pub gateway: Ipv4Net,
    pub gateway6: Ipv6Net,
}

impl Subnet {
    /// The network 10.9.`number`.0/24.
    pub fn new(route: &mut Connection, number: u8) -> Self {
        let gateway = Ipv4Net::new(Ipv4Addr::new(10, 9, number, 1), 24).unwrap();
        let gateway6 = format!("fd00::10.9.{number}.1/120").parse().unwrap();
        let bridge = Bridge {
            name: &format!("br{number}"),
            mac: link::random_mac(),
            mtu: 1400,
            group: GROUP,
            gateway,
            gateway6: Some(gateway6),
        };
        Self { bridge: link::make_bridge(route, &bridge).unwrap(), gateway, gateway6 }
    }
}

pub struct Container {
    pub network: OwnedFd,
    pub host: String,
    pub inside: String,
    pub host_index: u32,
    pub mac: Mac,
    pub v4: Ipv4Addr,
    pub v6: IpAddr,
}

impl Container {
    /// Makes a container with the last byte of its address, below 100.
    pub fn new(route: &mut Connection, subnet: &Subnet, last: u8) -> Self {
        let [.., third, _] = subnet.gateway.addr().octets();
        let network = namespace::pair(&[], &[], 0).unwrap().network;
        let (host, inside) = (format!("w{third}x{last}-0"), format!("w{third}x{last}-1"));
        let mac = link::random_mac();
        let veth = Veth {
            host: &host,
            inside: &inside,
            host_mac: link::random_mac(),
            inside_mac: mac,
            mtu: 1400,
            group: GROUP,
        };
        let host_index = link::make_veth(route, &veth, network.as_fd()).unwrap();
        let mut within = Connection::open_in(network.as_fd(), Protocol::Route).unwrap();
        let inside_index = link::find_by_name(&mut within, &inside).unwrap().unwrap().index;
        let v4 = Ipv4Addr::from_bits(subnet.gateway.network().to_bits() + u32::from(last));
        let v6 = (subnet.gateway6.network().to_bits() + u128::from(last)).into();
        let port =
            Port { name: &host, index: host_index, bridge: subnet.bridge, inside_mac: mac, hairpin: false };
        link::attach(route, &port).unwrap();
        let configuration = Inside {
            name: &inside,
            index: inside_index,
            address: Ipv4Net::new(v4, subnet.gateway.prefix_len()).unwrap(),
            gateway: subnet.gateway.addr(),
            address6: Some(Ipv6Net::new(v6, subnet.gateway6.prefix_len()).unwrap()),
        };
        link::configure(&mut within, &configuration).unwrap();
        Self { network, host, inside, host_index, mac, v4, v6: v6.into() }
    }

    /// Does something in the container's network.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        namespace::in_network(self.network.as_fd(), || Ok(act())).unwrap()
    }

    pub fn run(&self, line: &str) -> String {
        self.within(|| run(line))
    }

    /// A UDP socket in the container that waits for at most a second.
    pub fn socket(&self, address: SocketAddr) -> UdpSocket {
        self.within(|| udp(address))
    }

    /// Whether a packet arrives at another container. The first one must: nothing is repeated.
    pub fn reaches(&self, other: &Self, v6: bool) -> bool {
        let (from, to) = if v6 { (self.v6, other.v6) } else { (self.v4.into(), other.v4.into()) };
        let receiver = other.socket((to, 0).into());
        exchange(&self.socket((from, 0).into()), &receiver, receiver.local_addr().unwrap(), from).is_ok()
    }
}

pub fn udp(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// Sends a packet and its answer.
pub fn exchange(sender: &UdpSocket, receiver: &UdpSocket, to: SocketAddr, from: IpAddr) -> io::Result<()> {
    sender.send_to(b"there", to)?;
    let mut buffer = [0; 16];
    let (size, peer) = receiver.recv_from(&mut buffer)?;
    assert_eq!((&buffer[..size], peer.ip()), (b"there".as_slice(), from));
    receiver.send_to(b"back", peer)?;
    let (size, peer) = sender.recv_from(&mut buffer)?;
    assert_eq!((&buffer[..size], peer.ip()), (b"back".as_slice(), to.ip()));
    Ok(())
}
