//! Who reaches whom.

use super::world::{
    HOST4, HOST6, OUTSIDE4, OUTSIDE6, Outcome, SERVICE, World, connect, datagram, from, log_icmp4, log_icmp6,
    log_v4, log_v6, net, ping, policy, serve, tcp, udp,
};
use crate::egress::{Boxes, IcmpBox, Step, TransportBox};
use crate::firewall::program::Policy;
use crate::testing::sh;
use std::net::{Ipv4Addr, Ipv6Addr};
use wardian_needs::needs;

const REJECTED: Outcome = Outcome::Rejected;

#[test]
fn containers_reach_each_other_and_the_outside_but_not_the_host() {
    needs!(Nftables);
    reach(&World::new());
}

#[test]
fn containers_reach_each_other_and_the_outside_but_not_the_host_with_br_netfilter() {
    needs!(Nftables);
    // Where the module is not loaded there is nothing to turn on.
    if std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        reach(&World::with_br_netfilter());
    }
}

fn reach(world: &World) {
    let firewall = world.firewall(&policy());
    let [a, b, c] = [0, 1, 2].map(|index| &world.containers[index].ns);

    // A neighbour of the same subnet, seen by its own address.
    assert_eq!(connect(a, &world.v4(1), SERVICE), from(&world.v4(0)));
    assert_eq!(connect(a, &world.v6(1), SERVICE), from(&world.v6(0)));
    assert_eq!(datagram(b, None, &world.v4(0), SERVICE), from(&world.v4(1)));
    assert!(ping(a, &world.v4(1)) && ping(a, &world.v6(1)));
    // Outside, as the host.
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
    assert_eq!(connect(c, OUTSIDE6, SERVICE), from(HOST6));
    assert_eq!(datagram(a, None, OUTSIDE4, SERVICE), from(HOST4));
    assert!(ping(a, OUTSIDE4) && ping(a, OUTSIDE6));
    // Another subnet, as its gateway.
    assert_eq!(connect(a, &world.v4(2), SERVICE), from("10.254.0.9"));
    assert_eq!(connect(c, &world.v6(0), SERVICE), from("fd00::afe:1"));
    // The host, by its gateways' and its outer addresses.
    for to in ["10.254.0.1", "10.254.0.9", HOST4, "fd00::afe:1", "fd00::afe:9", HOST6] {
        assert_eq!(connect(a, to, SERVICE), REJECTED, "{to}");
        assert_eq!(datagram(a, None, to, SERVICE), REJECTED, "{to}");
        assert!(!ping(a, to), "{to}");
    }
    // The host reaches containers, and they may answer.
    assert_eq!(connect(&world.host, &world.v4(0), SERVICE), from("10.254.0.1"));
    assert_eq!(connect(&world.host, &world.v6(2), SERVICE), from("fd00::afe:9"));
    assert!(ping(&world.host, &world.v4(0)));
    // From outside a container can be reached if the host forwards: that is left to the host's own rules.
    world.outside.sh(&format!("ip route add 10.254.0.0/24 via {HOST4}"));
    assert_eq!(connect(&world.outside, &world.v4(0), SERVICE), from(OUTSIDE4));

    // A container that is gone is cut off.
    firewall.remove(&world.containers[0].member.id).unwrap();
    for to in [OUTSIDE4, &world.v4(1), OUTSIDE6, &world.v6(1)] {
        assert_eq!(connect(a, to, SERVICE), Outcome::Silence, "{to}");
    }
    assert_eq!(connect(b, OUTSIDE4, SERVICE), from(HOST4));
}

#[test]
fn a_policy_may_open_the_host_or_its_name_server() {
    needs!(Nftables);
    let world = World::new();
    let a = &world.containers[0].ns;
    world.host.within(|| serve(53));
    let dns = ["10.254.0.1", HOST6].map(|ip| ip.parse().unwrap()).to_vec();
    let firewall = world.firewall(&Policy { dns, ..policy() });
    assert_eq!(datagram(a, None, "10.254.0.1", 53), from(&world.v4(0)));
    for to in ["10.254.0.1", HOST6] {
        assert!(matches!(connect(a, to, 53), Outcome::From(_)));
        assert_eq!(connect(a, to, SERVICE), REJECTED);
    }
    assert_eq!(connect(a, HOST4, 53), REJECTED);

    // Another policy takes effect when the firewall is opened, for containers that are there.
    drop(firewall);
    let all = Policy { host_access: true, ..policy() };
    let _firewall = crate::firewall::Firewall::open(super::world::TAG, &all).unwrap();
    assert_eq!(connect(a, HOST4, 53), from(&world.v4(0)));
    assert_eq!(connect(a, HOST6, SERVICE), from(&world.v6(0)));
    assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
}

const ALL4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
const ALL6: (Ipv6Addr, Ipv6Addr) = (Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(!0, !0, !0, !0, !0, !0, !0, !0));

#[test]
fn denied_networks_have_holes() {
    needs!(Nftables);
    let mut world = World::new();
    world.outside.sh("ip addr add 192.0.2.3/24 dev up1");
    world.outside.within(|| serve(8081));
    let deny = ["192.0.2.0/24", "192.0.2.2/32", "10.254.0.0/16", "2001:db8::/32"].map(net).to_vec();
    let policy = Policy { deny, allow: vec![net("192.0.2.3/32")], ..policy() };
    let firewall = world.firewall(&policy);
    let id = world.containers[0].member.id.clone();
    let [a, b] = [0, 1].map(|index| &world.containers[index].ns);

    assert_eq!(connect(a, "192.0.2.3", SERVICE), from(HOST4));
    for to in [OUTSIDE4, OUTSIDE6, &world.v4(2)] {
        assert_eq!(connect(a, to, SERVICE), REJECTED, "{to}");
        assert_eq!(datagram(a, None, to, SERVICE), REJECTED, "{to}");
        assert!(!ping(a, to), "{to}");
    }
    // One's own subnet is open in any case.
    assert_eq!(connect(a, &world.v4(1), SERVICE), from(&world.v4(0)));

    let outside4: Ipv4Addr = OUTSIDE4.parse().unwrap();
    let outside6: Ipv6Addr = OUTSIDE6.parse().unwrap();
    let one4 = (outside4, outside4);
    // TCP to one port, over IPv4.
    let hole = |ports| TransportBox { addresses: one4, protocols: (6, 6), ports };
    let allow = |boxes| vec![Step::Allow(boxes)];
    firewall.set_egress(&id, &allow(Boxes { v4: vec![hole((8000, 8080))], ..Boxes::default() })).unwrap();
    assert_eq!(connect(a, OUTSIDE4, 8080), from(HOST4));
    assert_eq!(connect(a, OUTSIDE4, 8081), REJECTED);
    assert_eq!(datagram(a, None, OUTSIDE4, 8080), REJECTED);
    assert_eq!(connect(a, OUTSIDE6, 8080), REJECTED);
    assert!(!ping(a, OUTSIDE4));
    // It is a hole of this container's alone, and the networks that were open still are.
    assert_eq!(connect(b, OUTSIDE4, 8080), REJECTED);
    assert_eq!(connect(a, "192.0.2.3", SERVICE), from(HOST4));
    assert_eq!(connect(a, HOST4, SERVICE), REJECTED);

    // Everything over IPv6; echo requests alone over IPv4.
    let all6 = TransportBox { addresses: (outside6, outside6), protocols: (0, 255), ports: (0, 65535) };
    let echo = IcmpBox { addresses: ALL4, messages: (8 << 8, 8 << 8 | 255) };
    let boxes = Boxes { v4_icmp: vec![echo], v6: vec![all6], ..Boxes::default() };
    firewall.set_egress(&id, &allow(boxes)).unwrap();
    assert_eq!(connect(a, OUTSIDE4, 8080), REJECTED);
    assert_eq!(connect(a, OUTSIDE6, 8080), from(HOST6));
    assert_eq!(datagram(a, None, OUTSIDE6, 8081), from(HOST6));
    assert!(ping(a, OUTSIDE4) && ping(a, OUTSIDE6));

    // ICMPv6 by type; single matches, with their count in the chain that logs.
    let echo6 = |kind: u16| IcmpBox { addresses: ALL6, messages: (kind << 8, kind << 8 | 255) };
    let egress = vec![
        Step::Log(log_v4(hole((8080, 8080)))),
        Step::Allow(Boxes { v6_icmp: vec![echo6(128)], ..Boxes::default() }),
        Step::Log(log_v6(TransportBox { addresses: ALL6, protocols: (17, 17), ports: (0, 65535) })),
    ];
    firewall.set_egress(&id, &egress).unwrap();
    assert_eq!(connect(a, OUTSIDE4, 8080), from(HOST4));
    assert_eq!(connect(a, OUTSIDE4, 8081), REJECTED);
    assert!(ping(a, OUTSIDE6) && !ping(a, OUTSIDE4));
    assert_eq!(datagram(a, None, OUTSIDE6, 8081), from(HOST6));
    assert_eq!(connect(a, OUTSIDE6, 8081), REJECTED);
    let listed = sh("nft list ruleset");
    let log = format!("chain c-{id}-log {{\n\t\tcomment \"handle-2\"\n");
    assert!(listed.contains(&log), "{listed}");
    let rule = "ct state invalid,new,untracked log prefix \"handle-2 \" group 5 comment \"handle-2\"";
    assert!(listed.contains(rule), "{listed}");
    let single = log_icmp4(IcmpBox { addresses: ALL4, messages: (8 << 8, 8 << 8) });
    let single6 = log_icmp6(echo6(128));
    firewall.set_egress(&id, &[Step::Log(single), Step::Log(single6)]).unwrap();
    assert!(ping(a, OUTSIDE6) && ping(a, OUTSIDE4));
    assert_eq!(connect(a, OUTSIDE4, 8080), REJECTED);

    // No rules again; and a container that has rules from the beginning.
    firewall.set_egress(&id, &[]).unwrap();
    assert!(!ping(a, OUTSIDE6) && !ping(a, OUTSIDE4));
    assert_eq!(firewall.strays(&[]).unwrap().len(), 3);
    firewall.remove(&id).unwrap();
    let open = TransportBox { addresses: ALL4, protocols: (0, 255), ports: (0, 65535) };
    world.containers[0].member.egress = allow(Boxes { v4: vec![open], ..Boxes::default() });
    firewall.add(&world.containers[0].member).unwrap();
    let a = &world.containers[0].ns;
    assert_eq!(connect(a, OUTSIDE4, 8081), from(HOST4));
    assert!(ping(a, OUTSIDE4));
    assert_eq!(connect(a, &world.v4(2), SERVICE), from("10.254.0.9"));
    firewall.remove(&id).unwrap();
    assert!(!sh("nft list ruleset").contains("c-t2"));
}

#[test]
fn mapped_ports_lead_from_everywhere_to_the_container() {
    needs!(Nftables);
    mapped(World::new());
}

#[test]
fn mapped_ports_lead_from_everywhere_to_the_container_with_br_netfilter() {
    needs!(Nftables);
    // Where the module is not loaded there is nothing to turn on.
    if std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        mapped(World::with_br_netfilter());
    }
}

fn mapped(mut world: World) {
    world.containers[0].member.mappings =
        vec![tcp(61001, SERVICE), udp(61001, SERVICE), tcp(61002, SERVICE), tcp(61002, 9)];
    let firewall = world.firewall(&policy());
    let [a, b, c] = [0, 1, 2].map(|index| &world.containers[index].ns);

    assert_eq!(connect(&world.outside, HOST4, 61001), from(OUTSIDE4));
    assert_eq!(connect(&world.outside, HOST6, 61001), from(OUTSIDE6));
    assert_eq!(datagram(&world.outside, None, HOST4, 61001), from(OUTSIDE4));
    // Of two mappings of one port the first one counts.
    assert_eq!(connect(&world.outside, HOST4, 61002), from(OUTSIDE4));
    // The host itself, by its own address.
    assert_eq!(connect(&world.host, HOST4, 61001), from(HOST4));
    assert_eq!(connect(&world.host, HOST6, 61001), from(HOST6));
    assert_eq!(datagram(&world.host, None, HOST4, 61001), from(HOST4));
    // The container itself and its neighbour: both are seen as the gateway. From another subnet, too.
    for ns in [a, b, c] {
        assert_eq!(connect(ns, HOST4, 61001), from("10.254.0.1"));
        assert_eq!(connect(ns, HOST6, 61001), from("fd00::afe:1"));
        assert_eq!(datagram(ns, None, HOST4, 61001), from("10.254.0.1"));
    }
    // Ports and addresses that are not mapped are the host's own.
    assert_eq!(connect(a, HOST4, 61003), REJECTED);
    assert_eq!(connect(a, "10.254.0.1", 61001), REJECTED);

    // Ports come and go while the container runs.
    let id = &world.containers[0].member.id;
    firewall.map_port(id, tcp(61003, SERVICE)).unwrap();
    assert_eq!(connect(&world.outside, HOST4, 61003), from(OUTSIDE4));
    firewall.unmap_port(id, tcp(61003, SERVICE)).unwrap();
    assert_eq!(connect(a, HOST4, 61003), REJECTED);
    // The second mapping of a port counts once the first one has gone.
    firewall.unmap_port(id, tcp(61002, SERVICE)).unwrap();
    let listed = sh("nft list ruleset");
    assert!(listed.contains("192.0.2.1 . tcp . 61002 comment \"handle-2\" : 10.254.0.2 . 9"), "{listed}");
    // Another container cannot take what is mapped.
    let other = &world.containers[1].member.id;
    let error = firewall.map_port(other, tcp(61001, 1)).unwrap_err();
    assert_eq!(error.to_string(), format!("the firewall could not map a port of container {other}"));
    let error = firewall.map_port(other, tcp(0, 1)).unwrap_err();
    assert!(error.to_string().ends_with("a mapped port is 0"), "{error}");
    firewall.remove(id).unwrap();
    firewall.map_port(other, tcp(61001, SERVICE)).unwrap();
    assert_eq!(connect(&world.outside, HOST4, 61001), from(OUTSIDE4));
}

#[test]
fn rules_of_others_are_theirs() {
    needs!(Nftables);
    let world = World::new();
    let firewall = world.firewall(&policy());
    let a = &world.containers[0].ns;
    let drops = || crate::firewall::foreign::foreign_drop(super::world::TAG, super::world::GROUP).unwrap();
    assert_eq!(drops(), []);

    // A policy to drop stops containers, whatever these tables accept; the remedy lets them through again.
    let policy = "{ type filter hook forward priority 0; policy drop; }";
    let last = "{ type filter hook forward priority 10; ip saddr 203.0.113.1 drop; counter reject with icmpx admin-prohibited; }";
    for (table, chain, content) in [
        ("ip filter", "FORWARD", policy),
        ("ip mangle", "FORWARD", "{ type filter hook forward priority -150; policy drop; }"),
        ("inet fw", "forward", policy),
        ("inet fw", "forward", last),
        ("ip fw", "forward", "{ type filter hook forward priority 10; log drop; }"),
        ("inet firewalld", "filter_FORWARD", last),
    ] {
        sh(&format!("nft 'table {table} {{ chain {chain} {content}; }}'"));
        assert_ne!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
        let found = drops();
        assert_eq!(found.len(), 1, "{content}: {found:?}");
        assert_eq!(found[0].chain, format!("{table} {chain}"));
        if found[0].remedy.starts_with("nft ") {
            sh(&found[0].remedy);
            assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4));
        }
        sh(&format!("nft delete table {table}"));
    }
    // A chain that stops something, but not everything.
    sh(
        "nft 'table ip fw { chain c { type filter hook forward priority 0; ip saddr 203.0.113.1 drop; accept; }; }'",
    );
    assert_eq!(drops(), []);
    assert_eq!(firewall.check().unwrap(), crate::firewall::Health::Intact);

    // iptables, in both of its forms.
    let has = |program: &str| {
        std::process::Command::new(program)
            .args(["-w", "-L", "-n"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    for (program, table, chain) in [
        ("iptables-nft", "filter", "ip filter FORWARD"),
        ("iptables-nft", "mangle", "ip mangle FORWARD"),
        ("iptables-legacy", "filter", "iptables-legacy filter FORWARD"),
        ("iptables-legacy", "mangle", "iptables-legacy mangle FORWARD"),
    ] {
        if !has(program) {
            continue;
        }
        sh(&format!(
            "{program} -t {table} -A FORWARD -s 203.0.113.0/24 -j DROP; {program} -t nat -A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE"
        ));
        assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4), "{program}");
        sh(&format!("{program} -t {table} -P FORWARD DROP"));
        assert_eq!(connect(a, OUTSIDE4, SERVICE), Outcome::Silence, "{program}");
        let found = drops();
        assert!(found.len() == 1 && found[0].chain == chain, "{found:?}");
        let remedy = found[0].remedy.replace("iptables -", &format!("{program} -"));
        sh(&remedy);
        assert_eq!(connect(a, OUTSIDE4, SERVICE), from(HOST4), "{program}");
        sh(&format!("{program} -t {table} -P FORWARD ACCEPT; {program} -t {table} -A FORWARD -j DROP"));
        assert_eq!(drops().len(), 1, "{program} {table}");
        sh(&format!("{program} -t {table} -F FORWARD; {program} -t nat -F"));
        assert_eq!(drops(), [], "{program} {table}");
    }
}

/// The table of neighbours is shared by the whole host: senders must not fill it with addresses that nobody has.
#[test]
fn the_host_asks_for_no_neighbours_that_no_container_is() {
    needs!(Nftables);
    let world = World::new();
    let _firewall = world.firewall(&policy());
    let [a, c] = [0, 2].map(|index| &world.containers[index].ns);
    let [missing, missing6] = ["10.254.0.5", "fd00::afe:5"];
    // From another subnet, and from the same one by way of the gateway.
    // There IPv6 makes an entry before it asks the firewall, for a redirection of which it sends one in a second.
    a.sh(&format!("ip route add {missing} via 10.254.0.1"));
    assert_eq!(connect(a, missing, SERVICE), REJECTED);
    assert_eq!(connect(c, missing, SERVICE), REJECTED);
    assert_eq!(connect(c, missing6, SERVICE), REJECTED);
    world
        .outside
        .sh(&format!("ip route add 10.254.0.0/24 via {HOST4}; ip -6 route add fd00::/64 via {HOST6}"));
    assert_eq!(connect(&world.outside, missing, SERVICE), REJECTED);
    assert_eq!(connect(&world.outside, missing6, SERVICE), REJECTED);
    let neighbours = world.host.sh("ip neigh show nud all");
    assert!(!neighbours.contains(missing) && !neighbours.contains(missing6), "{neighbours}");
    // Those that are there are reached as before.
    assert_eq!(datagram(&world.outside, None, &world.v4(0), SERVICE), from(OUTSIDE4));
    assert_eq!(connect(c, &world.v6(0), SERVICE), from("fd00::afe:1"));
    assert!(world.host.sh("ip neigh show nud all").contains(&world.v4(0)));
}
