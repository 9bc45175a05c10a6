//! Any text as the network of a create, as the host's resolv.conf, and as a handle in /etc/hosts.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use wardian_network::files::{self, Resolv};
use wardian_network::spec::Request;
use wardian_network::subnets::Subnets;

/// The line that a search domain must not be able to write.
const EVIL: &str = "nameserver 6.6.6.6";

fuzz_target!(|input: (bool, &str, &str)| {
    let (stub, first, second) = input;
    create(first, second);
    resolv(stub, first, second);
    let ip = Ipv4Addr::new(10, 254, 0, 2);
    if let Ok(text) = files::hosts(ip.into(), None, first, &[]) {
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert_eq!(text.split_whitespace().count(), 4, "{text:?}");
    }
});

/// Two containers, of which each gets an address of its own or an error that can be shown.
fn create(first: &str, second: &str) {
    let mut subnets = Subnets::new("10.254.0.0/22".parse().expect("a network")).expect("a pool");
    let mut leases = Vec::new();
    for spec in [first, second] {
        let leased = match Request::parse(spec) {
            Ok(request) => subnets.acquire(&request).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match leased {
            Ok(lease) => {
                assert!(lease.subnet.contains(&lease.ip) && lease.subnet.contains(&lease.gateway));
                let special = [lease.subnet.network(), lease.subnet.broadcast(), lease.gateway];
                assert!(!special.contains(&lease.ip) && !lease.ip.is_loopback(), "{lease:?}");
                leases.push(lease);
            }
            Err(error) => assert!(error.len() < 512 && !error.contains(char::is_control), "{error:?}"),
        }
    }
    if let [a, b] = leases[..] {
        let apart = !a.subnet.contains(&b.subnet) && !b.subnet.contains(&a.subnet);
        assert!(a.ip != b.ip && (a.subnet == b.subnet || apart), "{a:?} {b:?}");
    }
    assert!(leases.iter().filter(|lease| subnets.release(lease)).count() >= usize::from(!leases.is_empty()));
}

fn resolv(stub: bool, first: &str, second: &str) {
    let domains = [second.to_owned()];
    let plain = Resolv {
        host: if stub { "nameserver 127.0.0.53\noptions edns0" } else { first },
        upstream: Some(if stub { first } else { second }),
        bridge: IpAddr::V4(Ipv4Addr::new(10, 254, 0, 1)),
        servers: &[],
        additional: &[],
        own_servers: None,
        plugin_search: None,
    };
    if let Ok(text) = plain.text() {
        assert!(text.len() <= files::MAX_BYTES);
        let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver "));
        for server in servers {
            let server: IpAddr = server.parse().expect("an address");
            assert!(!server.is_loopback(), "{text:?}");
        }
    }
    if let Ok(text) = (Resolv { host: "", upstream: None, plugin_search: Some(&domains), ..plain }).text() {
        assert!(text.lines().count() <= 1 && !text.starts_with(EVIL), "{text:?}");
    }
}
