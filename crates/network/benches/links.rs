//! What links, their queries and their end cost: `cargo bench --profile quick -p wardian-network --bench links`, as
//! root. The kernel takes some seconds more to delete the namespaces.
//!
//! Everything is made in a network namespace of the program's own. Medians and 95th percentiles in µs, first on a host
//! without other links, then with 250 bridges that have a port each.
#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use wardian_network::conntrack::Conntrack;
use wardian_network::link::{self, Bridge, Inside, Port, Veth};
use wardian_network::netlink::{Connection, Protocol};
use wardian_network::route;
use wardian_network::tc::{self, Limit};
use wardian_sys::namespace;

const ROUNDS: usize = 100;
const GROUP: u32 = 0x3eef_0001;

/// The times of one step.
struct Times(&'static str, Vec<Duration>);

impl Times {
    fn new(name: &'static str) -> Self {
        Self(name, Vec::new())
    }

    fn take<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = black_box(act());
        self.1.push(start.elapsed());
        result
    }
}

impl Drop for Times {
    fn drop(&mut self) {
        self.1.sort();
        let Some(last) = self.1.len().checked_sub(1) else { return };
        let micros = |at: usize| self.1[at].as_secs_f64() * 1e6;
        println!("{:48} {:9.1} {:9.1}", self.0, micros(last / 2), micros(last * 95 / 100));
    }
}

struct Made {
    bridge: u32,
    host: u32,
    network: OwnedFd,
}

fn gateway(number: u32) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::from_bits(0x0afe_0001 + number * 4), 30).unwrap()
}

/// Makes container number `number` as a driver does, with IPv6 if asked for.
fn make(route: &mut Connection, number: u32, v6: bool, steps: &mut [Times; 7]) -> Made {
    let gateway = gateway(number);
    let address = Ipv4Net::new(Ipv4Addr::from_bits(gateway.addr().to_bits() + 1), 30).unwrap();
    let in_v6 = |net: Ipv4Net| {
        let bits = 0xfd00 << 112 | u128::from(net.addr().to_bits());
        v6.then(|| Ipv6Net::new(bits.into(), 126).unwrap())
    };
    let (host, inside) = (format!("w{number}-0"), format!("w{number}-1"));
    let [namespace, bridge, veth, connect, find, attach, configure] = steps;
    let network = namespace.take(|| namespace::pair(&[], &[], 0).unwrap().network);
    let name = format!("wbrdg-{number}");
    let wanted = Bridge {
        name: &name,
        mac: link::random_mac(),
        mtu: 1400,
        group: GROUP,
        gateway,
        gateway6: in_v6(gateway),
    };
    let bridge = bridge.take(|| link::make_bridge(route, &wanted).unwrap());
    let wanted = Veth {
        host: &host,
        inside: &inside,
        host_mac: link::random_mac(),
        inside_mac: link::random_mac(),
        mtu: 1400,
        group: GROUP,
    };
    let index = veth.take(|| link::make_veth(route, &wanted, network.as_fd()).unwrap());
    let mut within = connect.take(|| Connection::open_in(network.as_fd(), Protocol::Route).unwrap());
    let within_index = find.take(|| link::find_by_name(&mut within, &inside).unwrap().unwrap().index);
    let port = Port { name: &host, index, bridge, inside_mac: wanted.inside_mac, hairpin: false };
    attach.take(|| link::attach(route, &port).unwrap());
    let wanted = Inside {
        name: &inside,
        index: within_index,
        address,
        gateway: gateway.addr(),
        address6: in_v6(address),
    };
    configure.take(|| link::configure(&mut within, &wanted).unwrap());
    Made { bridge, host: index, network }
}

fn steps(v6: bool) -> [Times; 7] {
    let name = |with: &'static str, without: &'static str| if v6 { with } else { without };
    [
        name("namespace", "namespace"),
        name("bridge, IPv4 and IPv6", "bridge, IPv4"),
        name("veth pair", "veth pair"),
        name("connection in the namespace", "connection in the namespace"),
        name("find the inner end", "find the inner end"),
        name("attach", "attach"),
        name("configure, IPv4 and IPv6", "configure, IPv4"),
    ]
    .map(Times::new)
}

fn wait_until_gone(route: &mut Connection, host: u32) {
    while link::find_by_index(route, host).unwrap().is_some() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn measure(route: &mut Connection, first: u32) {
    for v6 in [false, true] {
        println!();
        let rounds = first + if v6 { ROUNDS as u32 } else { 0 };
        let mut made = Vec::new();
        {
            let mut steps = steps(v6);
            for number in rounds..rounds + ROUNDS as u32 {
                made.push(make(route, number, v6, &mut steps));
                // The work that the kernel does after a link came up belongs to no step.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if v6 {
            queries(route, &made[0]);
            limits(route, &made);
        }
        let (mut closed, mut gone) =
            (Times::new("close the namespace"), Times::new("… until the host's end is gone"));
        let (mut bridges, mut last) = (Vec::new(), Vec::new());
        for (at, one) in made.into_iter().enumerate() {
            bridges.push(one.bridge);
            if at < 20 {
                closed.take(|| drop(one.network));
                gone.take(|| wait_until_gone(route, one.host));
            } else {
                last.push((one.host, one.network));
            }
        }
        let hosts: Vec<u32> = last.iter().map(|(host, _)| *host).collect();
        let mut all = Times::new("close 80 namespaces until all ends are gone");
        all.take(|| {
            drop(last);
            hosts.into_iter().for_each(|host| wait_until_gone(route, host));
        });
        let mut delete = Times::new("delete a bridge without ports");
        for bridge in bridges {
            delete.take(|| link::delete(route, bridge).unwrap());
        }
    }
}

fn queries(route: &mut Connection, made: &Made) {
    let mut statistics = Times::new("statistics");
    let mut group = Times::new("links of a group");
    let mut foreign = Times::new("networks of others");
    let mut way = Times::new("way to an address");
    for _ in 0..ROUNDS {
        statistics.take(|| link::statistics(route, made.host).unwrap().unwrap());
        group.take(|| link::of_group(route, 7).unwrap());
        foreign.take(|| route::foreign_networks(route, 7).unwrap());
        way.take(|| route::way_to(route, Ipv4Addr::new(192, 0, 2, 1).into()).unwrap());
    }
}

fn limits(route: &mut Connection, made: &[Made]) {
    let limit = Limit { rate: 10_000_000, burst: 100_000 };
    let mut towards = Times::new("limit towards");
    let mut change = Times::new("change the limit towards");
    let mut read = Times::new("read a limit");
    let mut none = Times::new("remove the limit towards");
    let mut from = Times::new("limit from, with its device");
    let mut remove = Times::new("remove the limit from, with its device");
    for one in &made[..20] {
        towards.take(|| tc::limit_towards(route, one.host, limit).unwrap());
        change.take(|| tc::limit_towards(route, one.host, Limit { rate: 1_000_000, ..limit }).unwrap());
        read.take(|| tc::read(route, one.host).unwrap());
        none.take(|| tc::limit_towards(route, one.host, Limit::NONE).unwrap());
        from.take(|| tc::limit_from(route, one.host, limit, "wifb", GROUP).unwrap());
        remove.take(|| tc::remove_from(route, one.host, "wifb").unwrap());
    }
}

fn nft(rules: &str) {
    assert!(std::process::Command::new("nft").arg(rules).status().unwrap().success());
}

/// Entries of connections from the host to itself, which is the same to the table.
fn connections() {
    nft("table inet t { chain o { type filter hook output priority 0; ct state established accept; }; }");
    let mut conntrack = Conntrack::open().unwrap();
    let address = |last: u32| IpAddr::from(Ipv4Addr::from_bits(0x7f00_0100 + last));
    let mut made = 0;
    for entries in [0, 10_000, 100_000] {
        for last in made / 50_000..=entries / 50_000 {
            let socket = UdpSocket::bind((address(last), 0)).unwrap();
            for port in made % 50_000..(entries - last * 50_000).min(50_000) {
                // An answer that nobody is there to receive makes the next call fail.
                let _ = socket.send_to(b"x", (Ipv4Addr::LOCALHOST, 1 + port as u16));
                made += 1;
            }
        }
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        let mut forget = Times::new("forget an address without connections");
        for _ in 0..20 {
            forget.take(|| conntrack.forget(&[Ipv4Addr::new(10, 9, 9, 9).into()]).unwrap());
        }
        drop(forget);
        let mut several = Times::new("forget several addresses without connections");
        let absent: Vec<_> = (0..20).map(|last| IpAddr::from(Ipv4Addr::new(10, 9, 9, last))).collect();
        for _ in 0..20 {
            several.take(|| conntrack.forget(&absent).unwrap());
        }
        drop(several);
        println!("… of {} connections", count.trim());
    }
    let mut forget = Times::new("forget the connections of 127.0.1.0");
    let count = forget.take(|| conntrack.forget(&[address(0)]).unwrap());
    drop(forget);
    println!("… {count}");
}

fn on_a_host(act: impl FnOnce() + Send) {
    let network = namespace::pair(&[], &[], 0).unwrap().network;
    let run = || {
        act();
        Ok(())
    };
    namespace::in_network(network.as_fd(), run).unwrap();
}

fn main() {
    println!("{:48} {:>9} {:>9}", "step", "median", "p95");
    on_a_host(|| measure(&mut Connection::open(Protocol::Route).unwrap(), 0));
    on_a_host(|| {
        println!("\nwith 500 links");
        let route = &mut Connection::open(Protocol::Route).unwrap();
        let mut unused = steps(true);
        let others: Vec<Made> = (0..250).map(|number| make(route, number, true, &mut unused)).collect();
        unused.iter_mut().for_each(|times| times.1.clear());
        measure(route, 1000);
        let mut delete = Times::new("delete 250 bridges and their ports");
        delete.take(|| link::delete_group(route, GROUP).unwrap());
        drop(others);
    });
    println!();
    on_a_host(connections);
}
