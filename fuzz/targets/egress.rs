//! Any rules for outgoing traffic. Their boxes must be disjoint, and have exactly what the rules have.
#![no_main]

use std::net::IpAddr;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use wardian_network::egress::{Protocol, Rule, Step, compile};

#[derive(Debug, Arbitrary)]
struct Any {
    protocol: u8,
    networks: Vec<(IpAddr, IpAddr)>,
    ports: Vec<(u16, u16)>,
    icmp: Option<(u8, Option<u8>)>,
    log: bool,
}

/// A packet: its destination, and the number of its protocol.
type Packet = (IpAddr, u8);

fuzz_target!(|input: Vec<Any>| {
    let rules: Vec<Rule> = input
        .into_iter()
        .filter_map(|any| {
            let Any { protocol, networks, ports, icmp, log } = any;
            let protocol = Protocol::from_garden(protocol % 5).ok()?;
            let rule = Rule { protocol, networks, ports, icmp, log };
            rule.check(true).is_ok().then_some(rule)
        })
        .take(64)
        .collect();
    let Ok(steps) = compile(&rules) else { return };
    let kept = serde_json::to_string(&rules).expect("JSON");
    assert_eq!(serde_json::from_str::<Vec<Rule>>(&kept).expect("rules"), rules);
    // What each rule begins and ends with, and what lies beside it.
    for rule in &rules {
        let ends = rule.networks.iter().flat_map(|(start, end)| [*start, *end]).take(4);
        let words = rule
            .ports
            .iter()
            .flat_map(|(first, last)| [*first, *last, first.wrapping_sub(1), last.wrapping_add(1)]);
        let words: Vec<u16> = words.take(8).chain([0, 2048, u16::MAX]).collect();
        for to in ends.chain([IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd00_u16, 0, 0, 0, 0, 0, 0, 1])]) {
            let to = to.to_canonical();
            for word in &words {
                for protocol in [1, 6, 17, 58, 132] {
                    let packet = (to, protocol);
                    let by_rules =
                        rules.iter().rev().find(|rule| allows(rule, packet, *word)).map(|rule| rule.log);
                    assert_eq!(by_rules, look_up(&steps, packet, *word), "{packet:?} {word}");
                }
            }
        }
    }
});

fn allows(rule: &Rule, (to, protocol): Packet, word: u16) -> bool {
    let within = |(start, end): &(IpAddr, IpAddr)| {
        let (start, end) = (start.to_canonical(), end.to_canonical());
        start.is_ipv4() == to.is_ipv4() && start <= to && to <= end
    };
    if !rule.networks.is_empty() && !rule.networks.iter().any(within) {
        return false;
    }
    let port =
        rule.ports.is_empty() || rule.ports.iter().any(|(first, last)| *first <= word && word <= *last);
    let [kind, code] = word.to_be_bytes();
    let message = rule.icmp.is_none_or(|(wanted, codes)| {
        wanted == 255 || (wanted == kind && codes.is_none_or(|wanted| wanted == code))
    });
    match rule.protocol {
        Protocol::All => true,
        Protocol::Tcp => protocol == 6 && port,
        Protocol::Udp => protocol == 17 && port,
        Protocol::Icmp => protocol == 1 && to.is_ipv4() && message,
        Protocol::Icmp6 => protocol == 58 && to.is_ipv6() && message,
    }
}

fn look_up(steps: &[Step], (to, protocol): Packet, word: u16) -> Option<bool> {
    steps.iter().find_map(|step| {
        let (boxes, log) = match step {
            Step::Allow(boxes) => (boxes, false),
            Step::Log(boxes) => (boxes, true),
        };
        let mut found = 0;
        let mut see = |first: IpAddr, last: IpAddr, protocols: (u8, u8), words: (u16, u16)| {
            let inside = first <= to && to <= last;
            let inside = inside && protocols.0 <= protocol && protocol <= protocols.1;
            found += u8::from(inside && words.0 <= word && word <= words.1);
        };
        if to.is_ipv4() {
            for part in &boxes.v4 {
                see(part.addresses.0.into(), part.addresses.1.into(), part.protocols, part.ports);
            }
            for part in &boxes.v4_icmp {
                see(part.addresses.0.into(), part.addresses.1.into(), (1, 1), part.messages);
            }
        } else {
            for part in &boxes.v6 {
                see(part.addresses.0.into(), part.addresses.1.into(), part.protocols, part.ports);
            }
            for part in &boxes.v6_icmp {
                see(part.addresses.0.into(), part.addresses.1.into(), (58, 58), part.messages);
            }
        }
        assert!(found <= 1, "two boxes for one packet");
        (found == 1).then_some(log)
    })
}
