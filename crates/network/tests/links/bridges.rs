use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use wardian_needs::needs;
use wardian_network::link::{self, Bridge, Error, GATEWAY_LOCAL, Inside, Port, Veth};
use wardian_network::netlink::{Connection, Protocol};
use wardian_network::route;
use wardian_sys::namespace;

use crate::world::{Container, GROUP, Subnet, exchange, on_a_host, run, udp};

fn bridge(name: &str) -> Bridge<'_> {
    let gateway = "10.9.0.1/30".parse().unwrap();
    Bridge { name, mac: [2, 0, 0, 0, 0, 7], mtu: 1400, group: GROUP, gateway, gateway6: None }
}

#[test]
fn a_bridge_is_as_it_was_wanted() {
    needs!(Nftables);
    on_a_host(|route| {
        let gateway6 = Some("fd00::10.9.0.1/126".parse().unwrap());
        let index = link::make_bridge(route, &Bridge { gateway6, ..bridge("wbrdg-0a090000") }).unwrap();
        let shown = run("ip -d link show wbrdg-0a090000");
        let wanted = [
            ",UP",
            "mtu 1400",
            "02:00:00:00:00:07",
            "mcast_snooping 0",
            "stp_state 0",
            "addrgenmode none",
            "group 1055850497",
        ];
        for wanted in wanted {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        let addresses = run("ip addr show wbrdg-0a090000");
        let wanted =
            ["10.9.0.1/30 brd 10.9.0.3", "fd00::a09:1/126 scope global nodad", "fe80::1/64 scope link"];
        for wanted in wanted {
            assert!(addresses.contains(wanted), "{wanted}: {addresses}");
        }
        assert!(!addresses.contains("tentative") && addresses.matches("inet6").count() == 2, "{addresses}");
        let found = link::find_by_name(route, "wbrdg-0a090000").unwrap().unwrap();
        assert_eq!((found.index, found.kind.as_str(), found.mtu), (index, "bridge", 1400));
        assert_eq!(link::find_by_index(route, index).unwrap(), Some(found.clone()));
        assert_eq!(link::of_group(route, GROUP).unwrap(), [found]);
        assert_eq!(link::of_group(route, 7).unwrap(), []);
        assert_eq!(link::find_by_name(route, "none").unwrap(), None);
        assert_eq!(link::find_by_index(route, 9999).unwrap(), None);
    });
}

#[test]
fn a_name_that_is_taken_is_told_apart_and_its_owner_untouched() {
    needs!(Nftables);
    on_a_host(|route| {
        run("ip link add theirs type bridge");
        let before = run("ip -d link show theirs");
        let error = link::make_bridge(route, &bridge("theirs")).unwrap_err();
        assert!(matches!(&error, Error::Exists { name } if name == "theirs"), "{error:?}");
        let other = namespace::pair(&[], &[], 0).unwrap().network;
        let mut veth = Veth {
            host: "theirs",
            inside: "w-1",
            host_mac: link::random_mac(),
            inside_mac: link::random_mac(),
            mtu: 1500,
            group: GROUP,
        };
        let error = link::make_veth(route, &veth, other.as_fd()).unwrap_err();
        assert!(matches!(&error, Error::Exists { name } if name == "theirs"), "{error:?}");
        assert_eq!(run("ip -d link show theirs"), before);
        // A name that is taken inside.
        veth.host = "w-0";
        link::make_veth(route, &veth, other.as_fd()).unwrap();
        veth.host = "w2-0";
        let error = link::make_veth(route, &veth, other.as_fd()).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error:?}");
        assert_eq!(link::find_by_name(route, "w2-0").unwrap(), None);
        let error = link::make_bridge(route, &bridge("a-name-of-16-chars")).unwrap_err();
        let Error::Bridge { name, source } = &error else { panic!("{error:?}") };
        assert_eq!((name.as_str(), source.errno().is_some()), ("a-name-of-16-chars", true));
    });
}

#[test]
fn a_bridge_that_cannot_have_its_address_is_not_left_behind() {
    needs!(Nftables);
    on_a_host(|route| {
        let error =
            link::make_bridge(route, &Bridge { gateway: "127.0.0.1/8".parse().unwrap(), ..bridge("loop") });
        // An address that another link has is none of the kernel's business; one that no link can have is.
        assert!(error.is_ok());
        let error = link::make_bridge(
            route,
            &Bridge { gateway6: Some("ff02::1/64".parse().unwrap()), ..bridge("multicast") },
        )
        .unwrap_err();
        assert!(matches!(&error, Error::Bridge { name, .. } if name == "multicast"), "{error:?}");
        assert_eq!(link::find_by_name(route, "multicast").unwrap(), None);
    });
}

#[test]
fn containers_of_one_bridge_and_of_two_reach_each_other_at_once() {
    needs!(Nftables);
    on_a_host(|route| {
        let (one, two) = (Subnet::new(route, 1), Subnet::new(route, 2));
        let a = Container::new(route, &one, 2);
        let b = Container::new(route, &one, 3);
        let c = Container::new(route, &two, 2);
        for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &b)] {
            for v6 in [false, true] {
                assert!(from.reaches(to, v6), "{} {} {v6}", from.host, to.host);
            }
        }
        // The host, through both of its addresses.
        for gateway in [IpAddr::from(one.gateway.addr()), one.gateway6.addr().into()] {
            let host = udp((gateway, 0).into());
            let from = if gateway.is_ipv4() { a.v4.into() } else { a.v6 };
            let socket = a.socket((from, 0).into());
            exchange(&socket, &host, host.local_addr().unwrap(), from).unwrap();
        }
        let addresses = a.run("ip addr show");
        let local = link::link_local(a.v4);
        for wanted in
            ["10.9.1.2/24 brd 10.9.1.255", &format!("{local}/64 scope link"), "mtu 1400", "qlen 1\n"]
        {
            assert!(addresses.contains(wanted), "{wanted}: {addresses}");
        }
        assert!(!addresses.contains("tentative"), "{addresses}");
        assert!(a.run("ip route").contains("default via 10.9.1.1 "));
        assert!(a.run("ip -6 route").contains(&format!("default via {GATEWAY_LOCAL} ")));
        let port = run(&format!("bridge -d link show dev {}", a.host));
        for wanted in ["hairpin off", "learning off", " flood off", "mcast_flood on", "state forwarding"] {
            assert!(port.contains(wanted), "{wanted}: {port}");
        }
    });
}

#[test]
fn a_container_that_takes_anothers_hardware_address_gets_none_of_its_frames() {
    needs!(Nftables);
    on_a_host(|route| {
        let subnet = Subnet::new(route, 1);
        let (a, b) = (Container::new(route, &subnet, 2), Container::new(route, &subnet, 3));
        assert!(a.reaches(&b, false));
        let before = run("bridge fdb show br br1");
        let c = Container::new(route, &subnet, 4);
        let text: Vec<String> = b.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        c.run(&format!("ip link set {} address {}", c.inside, text.join(":")));
        // Frames of c with the address of b, to a.
        let socket = c.socket((c.v4, 0).into());
        for _ in 0..3 {
            socket.send_to(b"x", (a.v4, 9)).unwrap();
        }
        assert!(a.reaches(&b, false));
        let after = run("bridge fdb show br br1");
        for line in before.lines() {
            assert!(after.contains(line), "{line}: {after}");
        }
        assert!(!c.reaches(&a, false));
    });
}

#[test]
fn statistics_are_of_the_link() {
    needs!(Nftables);
    on_a_host(|route| {
        let subnet = Subnet::new(route, 1);
        let (a, b) = (Container::new(route, &subnet, 2), Container::new(route, &subnet, 3));
        assert!(a.reaches(&b, false));
        let before = link::statistics(route, a.host_index).unwrap().unwrap();
        let socket = a.socket((a.v4, 0).into());
        let receiver = b.socket((b.v4, 0).into());
        socket.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        receiver.recv_from(&mut [0; 1000]).unwrap();
        let after = link::statistics(route, a.host_index).unwrap().unwrap();
        // Ethernet, IPv4 and UDP headers.
        assert!(after.received_bytes - before.received_bytes >= 1000 + 14 + 20 + 8, "{before:?} {after:?}");
        assert!(
            after.received_packets > before.received_packets && after.sent_packets >= before.sent_packets
        );
        assert_eq!(link::statistics(route, 9999).unwrap(), None);
    });
}

#[test]
fn the_links_of_a_group_go_together_and_no_others() {
    needs!(Nftables);
    on_a_host(|route| {
        run("ip link add theirs type bridge");
        let subnet = Subnet::new(route, 1);
        let a = Container::new(route, &subnet, 2);
        let links = link::of_group(route, GROUP).unwrap();
        let kinds: Vec<_> = links.iter().map(|link| (link.kind.as_str(), link.master)).collect();
        assert_eq!(kinds, [("bridge", None), ("veth", Some(subnet.bridge))]);
        link::delete(route, subnet.bridge).unwrap();
        link::delete(route, subnet.bridge).unwrap();
        assert_eq!(link::find_by_index(route, a.host_index).unwrap().unwrap().master, None);
        link::delete_group(route, GROUP).unwrap();
        link::delete_group(route, GROUP).unwrap();
        assert!(link::delete_group(route, 0).is_err());
        assert_eq!(link::of_group(route, GROUP).unwrap(), []);
        assert!(link::find_by_name(route, "theirs").unwrap().is_some());
        // The other end has gone with it.
        let mut within = Connection::open_in(a.network.as_fd(), Protocol::Route).unwrap();
        assert_eq!(link::find_by_name(&mut within, &a.inside).unwrap(), None);
    });
}

#[test]
fn a_link_goes_with_its_containers_namespace() {
    needs!(Nftables);
    on_a_host(|route| {
        let subnet = Subnet::new(route, 1);
        let Container { network, host_index, .. } = Container::new(route, &subnet, 2);
        drop(network);
        let end = Instant::now() + Duration::from_secs(10);
        while link::find_by_index(route, host_index).unwrap().is_some() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        // The bridge is as good as new.
        let (a, b) = (Container::new(route, &subnet, 2), Container::new(route, &subnet, 3));
        assert!(a.reaches(&b, false) && b.reaches(&a, true));
    });
}

#[test]
fn the_way_to_an_address_and_the_networks_of_others() {
    needs!(Nftables);
    on_a_host(|route| {
        let internet = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(route::way_to(route, internet).unwrap(), None);
        run("ip link add uplink mtu 1450 type bridge");
        run("ip addr add 172.30.0.2/16 dev uplink");
        run("ip link set uplink up");
        run("ip route add default via 172.30.0.1");
        run("ip route add 10.8.0.0/16 via 172.30.0.9");
        run("ip route add 10.7.0.0/16 via 172.30.0.9 table 77");
        run("ip route add blackhole 10.6.0.0/16");
        Subnet::new(route, 1);
        let way = route::way_to(route, internet).unwrap().unwrap();
        assert_eq!((way.link.name.as_str(), way.link.mtu, way.link.group), ("uplink", 1450, 0));
        assert_eq!(way.source, IpAddr::from(Ipv4Addr::new(172, 30, 0, 2)));
        assert_eq!(route::way_to(route, "10.6.0.1".parse().unwrap()).unwrap(), None);
        assert_eq!(route::way_to(route, "2001:db8::1".parse().unwrap()).unwrap(), None);
        let mut found: Vec<_> = route::foreign_networks(route, GROUP)
            .unwrap()
            .into_iter()
            .map(|one| (one.network.to_string(), one.link, one.is_address))
            .collect();
        found.sort();
        let uplink = Some("uplink".to_owned());
        let wanted = [
            ("10.7.0.0/16".to_owned(), uplink.clone(), false),
            ("10.8.0.0/16".to_owned(), uplink.clone(), false),
            ("172.30.0.0/16".to_owned(), uplink, true),
        ];
        assert_eq!(found, wanted);
        // Of a group that nobody has, the subnet is foreign.
        assert_eq!(route::foreign_networks(route, 9).unwrap().len(), 4);
    });
}

#[test]
fn lists_longer_than_a_datagram_are_whole() {
    needs!(Nftables);
    on_a_host(|route| {
        let other = namespace::pair(&[], &[], 0).unwrap().network;
        for number in 0..300 {
            let (host, inside) = (format!("w{number}-0"), format!("w{number}-1"));
            let (host_mac, inside_mac) = (link::random_mac(), link::random_mac());
            let veth = Veth { host: &host, inside: &inside, host_mac, inside_mac, mtu: 1500, group: GROUP };
            link::make_veth(route, &veth, other.as_fd()).unwrap();
        }
        let links = link::of_group(route, GROUP).unwrap();
        assert!(links.len() == 300 && links.iter().all(|link| link.kind == "veth"));
        link::delete_group(route, GROUP).unwrap();
        assert_eq!(link::of_group(route, GROUP).unwrap(), []);
    });
}

#[test]
fn a_refusal_comes_with_the_kernels_words() {
    needs!(Nftables);
    on_a_host(|route| {
        let subnet = Subnet::new(route, 1);
        let a = Container::new(route, &subnet, 2);
        let mut within = Connection::open_in(a.network.as_fd(), Protocol::Route).unwrap();
        let index = link::find_by_name(&mut within, &a.inside).unwrap().unwrap().index;
        let wrong = Inside {
            name: &a.inside,
            index,
            address: "10.9.1.9/24".parse().unwrap(),
            gateway: "10.77.0.1".parse().unwrap(),
            address6: None,
        };
        let error = link::configure(&mut within, &wrong).unwrap_err();
        let Error::Inside { name, source } = &error else { panic!("{error:?}") };
        assert_eq!((name, source.errno()), (&a.inside, Some(libc::ENETUNREACH)));
        assert!(source.to_string().ends_with(": Nexthop has invalid gateway"), "{source}");
        // The connection is as good as before.
        assert!(link::find_by_index(&mut within, index).unwrap().is_some());
    });
}

#[test]
fn a_host_without_ipv6_has_containers_without_ipv6() {
    needs!(Nftables);
    on_a_host(|route| {
        let index = link::make_bridge(route, &bridge("br")).unwrap();
        let network = namespace::pair(&[], &[], 0).unwrap().network;
        let veth = Veth {
            host: "w-0",
            inside: "w-1",
            host_mac: link::random_mac(),
            inside_mac: link::random_mac(),
            mtu: 1400,
            group: GROUP,
        };
        let host = link::make_veth(route, &veth, network.as_fd()).unwrap();
        let port =
            Port { name: "w-0", index: host, bridge: index, inside_mac: veth.inside_mac, hairpin: false };
        link::attach(route, &port).unwrap();
        let mut within = Connection::open_in(network.as_fd(), Protocol::Route).unwrap();
        let inside = Inside {
            name: "w-1",
            index: link::find_by_name(&mut within, "w-1").unwrap().unwrap().index,
            address: "10.9.0.2/30".parse().unwrap(),
            gateway: "10.9.0.1".parse().unwrap(),
            address6: None,
        };
        link::configure(&mut within, &inside).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(!run("ip addr").lines().any(|line| line.contains("inet6") && !line.contains("::1/128")));
        let shown = namespace::in_network(network.as_fd(), || Ok(run("ip addr show w-1"))).unwrap();
        assert!(shown.contains("10.9.0.2/30") && !shown.contains("inet6"), "{shown}");
        let links = run("ip -d link show w-0");
        assert!(links.contains("numtxqueues 1 numrxqueues 1") && links.contains("qlen 1"), "{links}");
    });
}
