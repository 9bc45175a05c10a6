//! A host with two bridges, three containers and a neighbour outside, in network namespaces.

use crate::egress::{Boxes, IcmpBox, TransportBox};
use crate::firewall::Firewall;
use crate::firewall::program::{Member, Policy};
use crate::ports::{Mapping, Transport};
use crate::testing::{Namespace, sh};
use ipnet::IpNet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

pub(super) const GROUP: u32 = 77;
pub(super) const TAG: &str = "0123456789abcdef0123456789abcdef";
pub(super) const TABLE: &str = "wardian-0123456789abcdef0123456789abcdef";
/// Every namespace answers TCP and UDP here.
pub(super) const SERVICE: u16 = 8080;
/// A rejection that arrives while connect(2) still holds the socket is forgotten; that of the next SYN, a second later,
/// is not.
const TIMEOUT: Duration = Duration::from_millis(1600);

/// The host's address outside, and the neighbour's.
pub(super) const HOST4: &str = "192.0.2.1";
pub(super) const HOST6: &str = "2001:db8::1";
pub(super) const OUTSIDE4: &str = "192.0.2.2";
pub(super) const OUTSIDE6: &str = "2001:db8::2";

/// Field by field: a bridge's name, its IPv4 gateway, the last byte of its IPv6 gateway.
const BRIDGES: [(&str, &str, &str); 2] =
    [("wbrdg-0afe0000", "10.254.0.1", "fd00::afe:1"), ("wbrdg-0afe0008", "10.254.0.9", "fd00::afe:9")];

#[derive(Debug)]
pub(super) struct Container {
    pub(super) ns: Namespace,
    pub(super) member: Member,
}

#[derive(Debug)]
pub(super) struct World {
    /// The test's thread is in it.
    pub(super) host: Namespace,
    pub(super) outside: Namespace,
    /// Two on the first bridge, one on the second.
    pub(super) containers: Vec<Container>,
}

pub(super) fn policy() -> Policy {
    Policy {
        group: GROUP,
        deny: vec![],
        allow: vec![],
        host_access: false,
        dns: vec![],
        log_group: 5,
        flows: 0,
    }
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A step that logs one box.
pub(super) fn log_v4(one: TransportBox<Ipv4Addr>) -> Boxes {
    Boxes { v4: vec![one], ..Boxes::default() }
}

/// The same for IPv6.
pub(super) fn log_v6(one: TransportBox<Ipv6Addr>) -> Boxes {
    Boxes { v6: vec![one], ..Boxes::default() }
}

/// The same for ICMP.
pub(super) fn log_icmp4(one: IcmpBox<Ipv4Addr>) -> Boxes {
    Boxes { v4_icmp: vec![one], ..Boxes::default() }
}

/// The same for ICMPv6.
pub(super) fn log_icmp6(one: IcmpBox<Ipv6Addr>) -> Boxes {
    Boxes { v6_icmp: vec![one], ..Boxes::default() }
}

/// A container's description by a number that makes everything in it unique.
pub(super) fn member(number: u32, bridge: &str) -> Member {
    let v4 = Ipv4Addr::from(0x0afe_0000 + number);
    let bytes = number.to_be_bytes();
    Member {
        id: format!("t{number}"),
        handle: format!("handle-{number}"),
        bridge: bridge.into(),
        port: format!("wt{number}-0"),
        mac: [2, 0, bytes[0], bytes[1], bytes[2], bytes[3]],
        v4,
        v6: Some((
            Ipv6Addr::from((0xfd00 << 112) + u128::from(v4.to_bits())),
            Ipv6Addr::from((0xfe80 << 112) + u128::from(v4.to_bits())),
        )),
        external: vec![HOST4.parse().unwrap(), HOST6.parse().unwrap()],
        mappings: vec![],
        egress: Vec::new(),
    }
}

pub(super) const fn tcp(host: u16, container: u16) -> Mapping {
    Mapping { transport: Transport::Tcp, host, container }
}

pub(super) const fn udp(host: u16, container: u16) -> Mapping {
    Mapping { transport: Transport::Udp, host, container }
}

impl World {
    pub(super) fn new() -> Self {
        Self::make(false)
    }

    /// Bridged packets pass the hooks of IP. A packet whose destination is translated to its own sender then does not
    /// leave the bridge, and goes back only through a port in hairpin mode.
    pub(super) fn with_br_netfilter() -> Self {
        Self::make(true)
    }

    fn make(br_netfilter: bool) -> Self {
        let host = Namespace::new();
        let outside = Namespace::new();
        host.enter();
        sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0",
        );
        // Or the kernel leaves some rejections unsaid.
        sh("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
        if std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
            let value = u8::from(br_netfilter);
            sh(&format!(
                "sysctl -qw net.bridge.bridge-nf-call-iptables={value} net.bridge.bridge-nf-call-ip6tables={value}"
            ));
        }
        outside.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        sh(&format!(
            "ip link add up0 type veth peer name up1 netns {pid}
             ip addr add {HOST4}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad; ip link set up0 up",
            pid = outside.pid(),
        ));
        outside.sh(&format!(
            "ip addr add {OUTSIDE4}/24 dev up1; ip addr add {OUTSIDE6}/64 dev up1 nodad; ip link set up1 up"
        ));
        for (name, four, six) in BRIDGES {
            sh(&format!(
                "ip link add {name} type bridge mcast_snooping 0 no_linklocal_learn 1; ip link set {name} group {GROUP} addrgenmode none
                 ip addr add {four}/29 dev {name}; ip addr add {six}/125 dev {name} nodad
                 ip addr add fe80::1/64 dev {name} nodad; ip link set {name} up"
            ));
        }
        let containers = [(2, 0), (3, 0), (10, 1)].map(|(number, bridge)| {
            let (bridge, four, six) = BRIDGES[bridge];
            let member = member(number, bridge);
            let ns = Namespace::new();
            let mac = member.mac.map(|byte| format!("{byte:02x}")).join(":");
            let port = &member.port;
            let (global, link) = member.v6.unwrap();
            sh(&format!(
                "ip link add {port} type veth peer name eth0 address {mac} netns {pid}
                 ip link set {port} group {GROUP} addrgenmode none master {bridge}; ip link set {port} up
                 ip link set {port} type bridge_slave hairpin {hairpin}",
                pid = ns.pid(),
                hairpin = if br_netfilter { "on" } else { "off" },
            ));
            ns.sh(&format!(
                "ip link set eth0 addrgenmode none
                 ip addr add {v4}/29 dev eth0; ip addr add {global}/125 dev eth0 nodad
                 ip addr add {link}/64 dev eth0 nodad; ip link set eth0 up
                 ip route add default via {four}; ip -6 route add default via {six}",
                v4 = member.v4,
            ));
            Container { ns, member }
        });
        let world = Self { host, outside, containers: containers.into() };
        // A link is ready for IPv6 only when the kernel has noticed its carrier, up to a second later.
        for (index, container) in world.containers.iter().enumerate() {
            for to in (0..3).filter(|other| *other != index).map(|other| world.v6(other)) {
                assert!((0..20).any(|_| ping(&container.ns, &to)), "{to} is never ready");
            }
        }
        assert!((0..20).any(|_| ping(&world.host, OUTSIDE6)), "the outside is never ready");
        for ns in [&world.host, &world.outside].into_iter().chain(world.containers.iter().map(|one| &one.ns))
        {
            ns.within(|| serve(SERVICE));
        }
        world
    }

    /// The firewall with all containers.
    pub(super) fn firewall(&self, policy: &Policy) -> Firewall {
        let firewall = Firewall::open(TAG, policy).unwrap();
        for container in &self.containers {
            firewall.add(&container.member).unwrap();
        }
        firewall
    }

    pub(super) fn v4(&self, index: usize) -> String {
        self.containers[index].member.v4.to_string()
    }

    pub(super) fn v6(&self, index: usize) -> String {
        self.containers[index].member.v6.unwrap().0.to_string()
    }
}

/// Answers each connection and each datagram with the address that it comes from, until the process ends.
pub(super) fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream
                .peer_addr()
                .map(|peer| stream.write_all(peer.ip().to_canonical().to_string().as_bytes()));
        }
    });
    thread::spawn(move || {
        let mut space = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut space) {
            let _ = socket.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
        }
    });
}

/// What has become of a connection or datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was answered; the server saw this address.
    From(String),
    /// It was refused at once by an ICMP message.
    Rejected,
    /// There was no answer.
    Silence,
}

pub(super) fn from(address: &str) -> Outcome {
    Outcome::From(address.into())
}

/// Connects over TCP from a namespace, and asks who one is seen as.
pub(super) fn connect(ns: &Namespace, to: &str, port: u16) -> Outcome {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    ns.within(|| match TcpStream::connect_timeout(&to, TIMEOUT) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let mut text = String::new();
            match stream.read_to_string(&mut text) {
                Ok(_) => Outcome::From(text),
                Err(error) => panic!("{to}: {error}"),
            }
        }
        Err(error) => refused(&to, &error),
    })
}

/// The same with a datagram, from an address of the namespace's or from any.
pub(super) fn datagram(ns: &Namespace, source: Option<&str>, to: &str, port: u16) -> Outcome {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let source = source.map_or(any, |source| source.parse().unwrap());
    ns.within(|| {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect(to).unwrap();
        let mut space = [0; 64];
        match socket.send(b"?").and_then(|_| socket.recv(&mut space)) {
            Ok(length) => Outcome::From(String::from_utf8_lossy(&space[..length]).into_owned()),
            Err(error) => refused(&to, &error),
        }
    })
}

fn refused(to: &SocketAddr, error: &std::io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silence,
        ErrorKind::HostUnreachable | ErrorKind::PermissionDenied => Outcome::Rejected,
        _ => panic!("{to}: {error}"),
    }
}

/// Whether one echo request is answered.
pub(super) fn ping(ns: &Namespace, to: &str) -> bool {
    ns.within(|| {
        let ping = std::process::Command::new("ping").args(["-c1", "-W1", to]).output().unwrap();
        ping.status.success()
    })
}
