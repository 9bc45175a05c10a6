//! What a container sends under addresses that are not its own.

use super::world::{HOST4, OUTSIDE4, Outcome, SERVICE, World, connect, datagram, from, ping, policy};
use crate::firewall::program::Policy;
use crate::testing::sh;
use wardian_needs::needs;

#[test]
fn other_source_addresses_go_nowhere() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&policy());
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));

    // An unused address of its subnet, a neighbour's, and one of another subnet; to a neighbour and beyond.
    let counted = "nft 'table inet t { chain i { type filter hook input priority 0; ip saddr @spoofed counter; \
                   ip6 saddr fd00::afe:0/125 ip6 saddr != { SELF } counter; }; set spoofed { type ipv4_addr; \
                   elements = { 10.254.0.4, 10.254.0.10 }; }; }'";
    b.sh(&counted.replace("SELF", &format!("{}, {}", world.v6(0), world.v6(1))));
    a.sh("ip addr add 10.254.0.4/29 dev eth0; ip addr add 10.254.0.10/32 dev eth0
          ip addr add fd00::afe:4/125 dev eth0 nodad");
    for (source, neighbour) in
        [("10.254.0.4", world.v4(1)), ("10.254.0.10", world.v4(1)), ("fd00::afe:4", world.v6(1))]
    {
        assert_eq!(datagram(a, Some(source), &neighbour, SERVICE), Outcome::Silence, "{source}");
    }
    for source in ["10.254.0.4", "10.254.0.10"] {
        assert_eq!(datagram(a, Some(source), OUTSIDE4, SERVICE), Outcome::Silence, "{source}");
    }
    let counters = b.sh("nft list ruleset");
    assert_eq!(counters.matches("counter packets 0 bytes 0").count(), 2, "{counters}");
    // The neighbour has not learned the addresses, either.
    let neighbours = b.sh("ip neigh; ip -6 neigh");
    assert!(!neighbours.contains("10.254.0.4 ") && !neighbours.contains("fd00::afe:4 "), "{neighbours}");

    // Another MAC address.
    a.sh("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:03; ip link set eth0 up
          ip route add default via 10.254.0.1");
    assert_eq!(connect(a, OUTSIDE4, SERVICE), Outcome::Silence);
    assert_eq!(connect(a, &world.v4(1), SERVICE), Outcome::Silence);
    // The bridge still finds its owner.
    assert_eq!(connect(b, OUTSIDE4, SERVICE), from(HOST4));
}

#[test]
fn lies_in_arp_and_neighbour_discovery_are_dropped() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&policy());
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);
    let count = "nft 'table arp t { chain i { type filter hook input priority 0; arp saddr ip 10.254.0.2 counter; }; };
                 table inet t { chain i { type filter hook prerouting priority -300;
                 icmpv6 type nd-router-advert counter; icmpv6 type nd-redirect counter;
                 icmpv6 type nd-neighbor-advert counter; icmpv6 type echo-request counter; }; }'";
    let counters = || -> Vec<u32> {
        let listed = b.sh("nft list ruleset");
        let numbers = listed.split("counter packets ").skip(1);
        numbers.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
    };
    let one = |to: &str| ping(a, to);
    let (v4, v6) = (world.v4(1), world.v6(1));

    // Honest ones arrive.
    b.sh(count);
    assert!(one(&v4) && one(&v6));
    let honest = counters();
    assert!(honest[0] >= 1, "{honest:?}");
    assert_eq!(honest[1..], [0, 0, honest[3], 1], "{honest:?}");

    // A sender's MAC address inside an ARP message that is not the container's; the frame's own is right.
    a.sh("nft 'table arp t { chain o { type filter hook output priority 0; arp saddr ether set 02:00:00:00:00:99; }; }'
          ip neigh flush dev eth0");
    assert!(!one(&v4));
    assert_eq!(counters()[0], honest[0]);
    a.sh("nft flush ruleset; ip neigh flush dev eth0");
    assert!((0..5).any(|_| one(&v4)));

    // Router advertisements and redirects, made of echo requests.
    for kind in ["nd-router-advert", "nd-redirect"] {
        a.sh(&format!(
            "nft 'table ip6 t {{ chain o {{ type filter hook output priority 0; \
             icmpv6 type echo-request icmpv6 type set {kind}; }}; }}'"
        ));
        assert!(!one(&v6));
        a.sh("nft flush ruleset");
    }
    assert_eq!(counters()[1..3], [0, 0]);

    // Advertisements for a target that is not the container's: the neighbour asks, the container lies.
    b.sh("ip -6 neigh flush dev eth0");
    a.sh("nft 'table ip6 t { chain o { type filter hook output priority 0; \
          icmpv6 type nd-neighbor-advert @th,64,128 set 0xfd00000000000000000000000afe0001; }; }'");
    let before = counters()[3];
    assert!(!ping(b, &world.v6(0)));
    assert_eq!(counters()[3], before);
    a.sh("nft flush ruleset");
    // The neighbour may still be waiting for the answer that it has not got.
    assert!((0..5).any(|_| ping(b, &world.v6(0))));
}

#[test]
fn tagged_frames_and_other_protocols_are_dropped() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&policy());
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);
    // What arrives at the neighbour, before any protocol looks at it.
    b.sh("nft 'table netdev t { chain i { type filter hook ingress device eth0 priority 0; ether type vlan counter; \
          meta protocol vlan counter; ether type 0x88b5 counter; }; }'");
    // The same addresses in a VLAN; the second one through a device that leaves the tag to the receiver (an offload).
    let [own, other] = [world.v4(0), world.v4(1)];
    let mut made = 0;
    for (number, offload) in [(5, "on"), (6, "off")] {
        let made_one = a.within(|| {
            std::process::Command::new("ip")
                .args(["link", "add", "link", "eth0", "name", &format!("v{number}"), "type", "vlan", "id"])
                .arg(number.to_string())
                .output()
                .unwrap()
                .status
                .success()
        });
        if !made_one {
            continue;
        }
        made += 1;
        a.sh(&format!(
            "ethtool -K eth0 tx-vlan-offload {offload} 2>/dev/null || true
             ip addr del {own}/29 dev eth0 2>/dev/null || true
             ip addr add {own}/29 dev v{number}; ip link set v{number} up
             ip neigh add {other} lladdr {mac} dev v{number}",
            mac = world.containers[1].member.mac.map(|byte| format!("{byte:02x}")).join(":"),
        ));
        assert_eq!(datagram(a, None, &other, SERVICE), Outcome::Silence);
        a.sh(&format!("ip link del v{number}"));
    }
    // Where the kernel has no VLAN devices, and for other protocols: echo requests become something else on their way.
    let mac = "ip addr replace SELF/29 dev eth0; ip neigh replace OTHER lladdr 02:00:00:00:00:03 dev eth0";
    a.sh(&mac.replace("SELF", &own).replace("OTHER", &other));
    for kind in ["vlan", "0x88b5"] {
        a.sh(&format!("{EGRESS} ether type ip ether type set {kind} counter; }}; }}'"));
        assert!(!ping(a, &other));
        let sent = a.sh("nft list ruleset; nft flush ruleset");
        assert!(!sent.contains("counter packets 0"), "{sent}");
    }
    let listed = b.sh("nft list ruleset");
    assert_eq!(listed.matches("counter packets 0 bytes 0").count(), 3, "{made} devices: {listed}");
    assert!(ping(a, &other));
}

/// Changes frames when they leave a container.
const EGRESS: &str = "nft 'table netdev t { chain e { type filter hook egress device eth0 priority 0;";

#[test]
fn the_bridge_is_not_told_where_others_are() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&policy());
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);
    assert!(ping(b, &world.v4(0)) && ping(a, &world.v4(1)));
    // The addresses of links inside; those of the host's ends are random, and may begin alike.
    let is_inside = |line: &str| line.starts_with("02:00:00:00:00:");
    let places = || {
        let all = sh("bridge fdb show br wbrdg-0afe0000");
        let mut all: Vec<_> =
            all.lines().filter(|line| is_inside(line)).map(|line| line.trim().to_owned()).collect();
        all.sort();
        all
    };
    let before = places();
    assert_eq!(before.len(), 2, "{before:?}");
    // To the neighbour, and to a group address that bridges keep to themselves (IEEE 802.1D): such frames do not pass
    // the hook prerouting, and a bridge learns from them unless it has been told not to.
    for daddr in ["02:00:00:00:00:03", "01:80:c2:00:00:0e", "01:80:c2:00:00:00"] {
        a.sh(&format!(
            "{EGRESS} ether type ip ether saddr set 02:00:00:00:00:03 ether daddr set {daddr} counter; }}; }}'"
        ));
        assert!(!ping(a, &world.v4(1)));
        let sent = a.sh("nft list ruleset; nft flush ruleset");
        assert!(!sent.contains("counter packets 0"), "{sent}");
        assert_eq!(places(), before, "{daddr}");
    }
    // They come in through the port: the host is as closed to them as through the bridge. There is no rejection of
    // what has come to a group address (RFC 1122, 3.2.2).
    a.sh(&format!("{EGRESS} ether type ip ether daddr set 01:80:c2:00:00:0e; }}; }}'; ip route flush cache"));
    assert_eq!(datagram(a, None, HOST4, SERVICE), Outcome::Silence);
    assert_eq!(datagram(a, None, OUTSIDE4, SERVICE), Outcome::Silence);
}

#[test]
fn frames_past_the_bridge_are_dropped() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&Policy { host_access: true, ..policy() });
    let a = &world.containers[0].ns;
    assert!(ping(a, HOST4));
    // A bridge hands frames for this address (LLDP, IEEE 802.1Q table 8-1) to the port itself.
    a.sh("ip neigh replace 10.254.0.1 lladdr 01:80:c2:00:00:0e dev eth0 nud permanent");
    assert!(!ping(a, HOST4));
}

#[test]
fn a_container_begins_no_more_flows_than_it_may() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&Policy { flows: 2, ..policy() });
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);
    // Each datagram comes from a port of its own, and a flow of UDP lasts for 30 s.
    for _ in 0..2 {
        assert_eq!(datagram(a, None, OUTSIDE4, SERVICE), from(HOST4));
    }
    assert_eq!(datagram(a, None, OUTSIDE4, SERVICE), Outcome::Silence);
    assert_eq!(datagram(b, None, OUTSIDE4, SERVICE), from(HOST4));
}

#[test]
fn packets_of_no_connection_do_not_leave() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&policy());
    let a = &world.containers[0].ns;
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
    let counted = "nft 'table inet t { chain f { type filter hook postrouting priority 300;
                   ip saddr 10.254.0.0/24 oifname != \"wbrdg*\" counter; }; }'";
    sh(counted);
    // The container's own rules turn every first segment into one that ends a connection.
    a.sh("nft 'table inet t { chain o { type route hook output priority -400; notrack; tcp flags set fin | ack; }; }'");
    assert_ne!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
    let counters = sh("nft list table inet t");
    assert!(counters.contains("counter packets 0 bytes 0"), "{counters}");
    sh("nft delete table inet t");
}
