//! The compiler against an evaluator that walks the rules.

use super::*;
use fastrand::Rng;
use std::fmt::Debug;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

fn rule(protocol: Protocol) -> Rule {
    Rule { protocol, networks: vec![], ports: vec![], icmp: None, log: false }
}

fn net(start: &str, end: &str) -> (IpAddr, IpAddr) {
    (start.parse().unwrap(), end.parse().unwrap())
}

fn tcp(start: &str, end: &str, ports: &[(u16, u16)]) -> Rule {
    Rule { networks: vec![net(start, end)], ports: ports.to_vec(), ..rule(Protocol::Tcp) }
}

/// The one step of rules without a log.
fn allowed(rules: &[Rule]) -> Boxes {
    match compile(rules).unwrap().as_slice() {
        [Step::Allow(boxes)] => boxes.clone(),
        steps => panic!("{steps:?}"),
    }
}

fn v4(boxes: &Boxes) -> Vec<String> {
    shown(&boxes.v4)
}

fn shown<A: Debug>(boxes: &[TransportBox<A>]) -> Vec<String> {
    let show = |part: &TransportBox<A>| {
        let ((a, b), (p, q), (x, y)) = (&part.addresses, part.protocols, part.ports);
        format!("{a:?}-{b:?} {p}-{q} {x}-{y}")
    };
    boxes.iter().map(show).collect()
}

/// A packet as its destination, protocol, and the two bytes after which a rule asks: port, or ICMP type and code.
#[derive(Debug, Clone, Copy)]
struct Packet {
    to: IpAddr,
    protocol: u8,
    word: u16,
}

impl Rule {
    fn has(&self, packet: Packet) -> bool {
        let within = |(start, end): &(IpAddr, IpAddr)| {
            start.is_ipv4() == packet.to.is_ipv4() && (*start..=*end).contains(&packet.to)
        };
        if !self.networks.is_empty() && !self.networks.iter().any(within) {
            return false;
        }
        match self.protocol {
            Protocol::All => true,
            Protocol::Tcp | Protocol::Udp => {
                packet.protocol == if self.protocol == Protocol::Tcp { 6 } else { 17 }
                    && (self.ports.is_empty()
                        || self.ports.iter().any(|(first, last)| (*first..=*last).contains(&packet.word)))
            }
            Protocol::Icmp | Protocol::Icmp6 => {
                let [kind, code] = packet.word.to_be_bytes();
                let (number, is_ipv4) = if self.protocol == Protocol::Icmp { (1, true) } else { (58, false) };
                packet.protocol == number
                    && packet.to.is_ipv4() == is_ipv4
                    && self.icmp.is_none_or(|(wanted, codes)| {
                        wanted == 255 || (wanted == kind && codes.is_none_or(|wanted| wanted == code))
                    })
            }
        }
    }
}

/// Whether a packet is allowed by the rules, and then whether with a log.
fn walked(rules: &[Rule], packet: Packet) -> Option<bool> {
    rules.iter().rev().find(|rule| rule.has(packet)).map(|rule| rule.log)
}

/// The same by the steps.
fn looked_up(steps: &[Step], packet: Packet) -> Option<bool> {
    steps.iter().find_map(|step| {
        let (boxes, log) = match step {
            Step::Allow(boxes) => (boxes, false),
            Step::Log(boxes) => (boxes, true),
        };
        let found = match packet.to {
            IpAddr::V4(to) => in_lists(to, packet, 1, &boxes.v4, &boxes.v4_icmp),
            IpAddr::V6(to) => in_lists(to, packet, 58, &boxes.v6, &boxes.v6_icmp),
        };
        found.then_some(log)
    })
}

fn in_lists<A: Copy + Ord>(
    to: A,
    packet: Packet,
    icmp: u8,
    all: &[TransportBox<A>],
    messages: &[IcmpBox<A>],
) -> bool {
    let transport = all.iter().filter(|part| {
        part.addresses.0 <= to
            && to <= part.addresses.1
            && (part.protocols.0..=part.protocols.1).contains(&packet.protocol)
            && (part.ports.0..=part.ports.1).contains(&packet.word)
    });
    let message = messages.iter().filter(|part| {
        packet.protocol == icmp
            && part.addresses.0 <= to
            && to <= part.addresses.1
            && (part.messages.0..=part.messages.1).contains(&packet.word)
    });
    let found = transport.count() + message.count();
    assert!(found <= 1, "two boxes for one packet");
    found == 1
}

/// Addresses, protocols, and ports or messages.
type Sides<A> = ((A, A), (u8, u8), (u16, u16));

/// No two boxes overlap, and no neighbours could be one box.
fn check_list<A: Copy + Ord + Debug>(boxes: &[Sides<A>], next: impl Fn(A) -> Option<A>) {
    for (n, a) in boxes.iter().enumerate() {
        assert!(a.0.0 <= a.0.1 && a.1.0 <= a.1.1 && a.2.0 <= a.2.1, "{a:?}");
        for b in &boxes[n + 1..] {
            let apart = a.0.1 < b.0.0
                || b.0.1 < a.0.0
                || a.1.1 < b.1.0
                || b.1.1 < a.1.0
                || a.2.1 < b.2.0
                || b.2.1 < a.2.0;
            assert!(apart, "{a:?} and {b:?} overlap");
            let beside =
                a.1 == b.1 && a.2 == b.2 && (next(a.0.1) == Some(b.0.0) || next(b.0.1) == Some(a.0.0));
            assert!(!beside, "{a:?} and {b:?} could be one");
        }
    }
}

fn check_boxes(boxes: &Boxes) {
    let next4 = |a: Ipv4Addr| u32::from(a).checked_add(1).map(Ipv4Addr::from);
    let next6 = |a: Ipv6Addr| u128::from(a).checked_add(1).map(Ipv6Addr::from);
    check_list(&boxes.v4.iter().map(|b| (b.addresses, b.protocols, b.ports)).collect::<Vec<_>>(), next4);
    check_list(&boxes.v6.iter().map(|b| (b.addresses, b.protocols, b.ports)).collect::<Vec<_>>(), next6);
    check_list(&boxes.v4_icmp.iter().map(|b| (b.addresses, (0, 0), b.messages)).collect::<Vec<_>>(), next4);
    check_list(&boxes.v6_icmp.iter().map(|b| (b.addresses, (0, 0), b.messages)).collect::<Vec<_>>(), next6);
}

const ADDRESSES: [&str; 14] = [
    "0.0.0.0",
    "0.0.0.1",
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.255.255.255",
    "11.0.0.0",
    "255.255.255.254",
    "255.255.255.255",
    "::",
    "::1",
    "fd00::",
    "fd00::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];
const WORDS: [u16; 12] = [0, 1, 79, 80, 81, 255, 256, 2047, 2048, 2049, 65534, 65535];

fn random_rule(random: &mut Rng) -> Rule {
    let protocols =
        [Protocol::All, Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Icmp6];
    // All are rare: they swallow the others.
    let first = usize::from(random.u8(..8) > 0);
    let protocol = protocols[random.usize(first..6)];
    let mut address = || ADDRESSES[random.usize(..ADDRESSES.len())].parse::<IpAddr>().unwrap();
    let mut networks = Vec::new();
    for _ in 0..8 {
        let ends = (address(), address());
        let fits = match protocol {
            Protocol::Icmp => ends.0.is_ipv4(),
            Protocol::Icmp6 => ends.0.is_ipv6(),
            _ => true,
        };
        if ends.0.is_ipv4() == ends.1.is_ipv4() && fits {
            networks.push(ends);
        }
    }
    networks.truncate(random.usize(0..4));
    let mut word = || WORDS[random.usize(..WORDS.len())];
    let pairs = [(word(), word()), (word(), word()), (word(), word())];
    let mut rule = Rule { networks, log: random.u8(..4) == 0, ..rule(protocol) };
    if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        rule.ports = pairs[..random.usize(..4)].to_vec();
    } else if protocol != Protocol::All && random.u8(..4) > 0 {
        let [kind, code] = pairs[0].0.to_be_bytes();
        rule.icmp = Some((kind, random.bool().then_some(code)));
    }
    rule
}

#[test]
fn steps_do_what_the_rules_say() {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let mut random = Rng::with_seed(seed);
    for round in 0..400 {
        let rules: Vec<Rule> = (0..random.usize(..12)).map(|_| random_rule(&mut random)).collect();
        let steps = compile(&rules).unwrap();
        for step in &steps {
            let (Step::Allow(boxes) | Step::Log(boxes)) = step;
            assert!(!boxes.is_empty());
            check_boxes(boxes);
        }
        for (to, word) in ADDRESSES.iter().flat_map(|to| WORDS.map(|word| (to, word))) {
            for protocol in [0, 1, 6, 17, 58, 132, 255] {
                let packet = Packet { to: to.parse().unwrap(), protocol, word };
                let (walked, found) = (walked(&rules, packet), looked_up(&steps, packet));
                assert_eq!(walked, found, "SEED={seed}, round {round}: {packet:?}\n{rules:#?}\n{steps:#?}");
            }
        }
    }
}

#[test]
fn neighbours_become_one_box() {
    let rules = [
        tcp("10.0.0.0", "10.0.0.255", &[(80, 80), (81, 90), (443, 443)]),
        tcp("10.0.1.0", "10.0.1.255", &[(443, 443), (80, 90)]),
        tcp("10.0.0.7", "10.0.0.9", &[(85, 86)]),
    ];
    assert_eq!(v4(&allowed(&rules)), ["10.0.0.0-10.0.1.255 6-6 80-90", "10.0.0.0-10.0.1.255 6-6 443-443"]);
}

#[test]
fn what_overlaps_is_cut() {
    let rules = [tcp("10.0.0.0", "10.0.0.9", &[(80, 80)]), tcp("10.0.0.5", "10.0.0.19", &[(80, 89)])];
    assert_eq!(v4(&allowed(&rules)), ["10.0.0.0-10.0.0.4 6-6 80-80", "10.0.0.5-10.0.0.19 6-6 80-89"]);
    let rules = [tcp("0.0.0.0", "255.255.255.255", &[(0, 65535)]), tcp("10.0.0.5", "10.0.0.19", &[(80, 89)])];
    assert_eq!(v4(&allowed(&rules)), ["0.0.0.0-255.255.255.255 6-6 0-65535"]);
}

#[test]
fn all_protocols_swallow_the_others() {
    let some = Rule { networks: vec![net("10.0.0.0", "10.0.0.9")], ..rule(Protocol::All) };
    let icmp = Rule { icmp: Some((8, None)), ..rule(Protocol::Icmp) };
    let rules = [some, tcp("10.0.0.5", "10.0.0.19", &[]), rule(Protocol::Udp), icmp];
    let boxes = allowed(&rules);
    assert_eq!(
        v4(&boxes),
        [
            "0.0.0.0-9.255.255.255 17-17 0-65535",
            "10.0.0.0-10.0.0.9 0-255 0-65535",
            "10.0.0.10-10.0.0.19 6-6 0-65535",
            "10.0.0.10-255.255.255.255 17-17 0-65535",
        ]
    );
    assert_eq!(shown(&boxes.v6), ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 17-17 0-65535"]);
    let icmp: Vec<String> =
        boxes.v4_icmp.iter().map(|part| format!("{:?} {:?}", part.addresses, part.messages)).collect();
    assert_eq!(icmp, ["(0.0.0.0, 9.255.255.255) (2048, 2303)", "(10.0.0.10, 255.255.255.255) (2048, 2303)"]);
    let everything = allowed(&[rule(Protocol::All), rule(Protocol::Tcp), rule(Protocol::Icmp)]);
    assert_eq!(everything.len(), 2);
}

#[test]
fn type_255_is_every_type() {
    let any = Rule { icmp: Some((255, Some(255))), ..rule(Protocol::Icmp) };
    assert_eq!(allowed(&[any]), allowed(&[rule(Protocol::Icmp)]));
    assert_eq!(v4(&allowed(&[rule(Protocol::Icmp)])), ["0.0.0.0-255.255.255.255 1-1 0-65535"]);
    let boxes = allowed(&[rule(Protocol::Icmp6)]);
    assert_eq!(shown(&boxes.v6), ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 58-58 0-65535"]);
    assert!(boxes.v4.is_empty());
}

#[test]
fn later_rules_decide_about_the_log() {
    let log = |rule: Rule| Rule { log: true, ..rule };
    let (a, b) = (tcp("10.0.0.0", "10.0.0.9", &[]), tcp("10.0.0.10", "10.0.0.19", &[]));
    let steps =
        compile(&[a.clone(), log(rule(Protocol::Tcp)), log(rule(Protocol::Udp)), b.clone(), a]).unwrap();
    let kinds: Vec<(bool, usize)> = steps
        .iter()
        .map(|step| match step {
            Step::Allow(boxes) => (false, boxes.len()),
            Step::Log(boxes) => (true, boxes.len()),
        })
        .collect();
    // The two ranges of the last step are one; both log rules have a box for each family.
    assert_eq!(kinds, [(false, 1), (true, 4), (false, 1)]);
    assert_eq!(compile(&[]).unwrap(), []);
}

#[test]
fn the_recorded_rules_of_garden() {
    let address = |text: &str| text.parse::<IpAddr>().ok();
    let single = networks([(address("1.2.3.4"), None), (None, address("5.6.7.8"))]);
    let rules = [
        Rule { networks: vec![net("8.8.8.8", "8.8.8.8")], ports: vec![(80, 80)], ..rule(Protocol::Tcp) },
        Rule { networks: single, ports: vec![(53, 60), (99, 0)], ..rule(Protocol::Udp) },
        Rule { icmp: Some((8, Some(0))), ..rule(Protocol::Icmp) },
        Rule { icmp: Some((3, None)), ..rule(Protocol::Icmp) },
        Rule { networks: vec![net("9.9.9.9", "1.1.1.1")], ..rule(Protocol::Tcp) },
    ];
    check(&rules, false).unwrap();
    let boxes = allowed(&rules);
    // Neither the ports 99 to 0 nor the addresses from 9.9.9.9 to 1.1.1.1 are any.
    let udp = ["1.2.3.4-1.2.3.4 17-17 53-60", "5.6.7.8-5.6.7.8 17-17 53-60", "8.8.8.8-8.8.8.8 6-6 80-80"];
    assert_eq!(v4(&boxes), udp);
    let messages: Vec<(u16, u16)> = boxes.v4_icmp.iter().map(|part| part.messages).collect();
    assert_eq!(messages, [(768, 1023), (2048, 2048)]);
    assert!(boxes.v6.is_empty() && boxes.v6_icmp.is_empty());
    let nothing = Rule { networks: vec![net("9.9.9.9", "1.1.1.1")], ..rule(Protocol::All) };
    assert_eq!(compile(&[nothing]).unwrap(), []);
}

#[test]
fn a_network_without_ends_is_everything() {
    let address = |text: &str| text.parse::<IpAddr>().ok();
    assert_eq!(networks([(address("1.2.3.4"), address("1.2.3.5")), (None, None)]), []);
    assert_eq!(networks([(address("::ffff:1.2.3.4"), None)]), [net("1.2.3.4", "1.2.3.4")]);
    assert_eq!(networks([]), []);
}

#[test]
fn wrong_rules_are_refused_with_gardens_texts() {
    let with_ports = |protocol| Rule { ports: vec![(1, 2)], ..rule(protocol) };
    let with_type = |protocol| Rule { icmp: Some((8, None)), ..rule(protocol) };
    let to = |protocol, start, end| Rule { networks: vec![net(start, end)], ..rule(protocol) };
    for (rule, text) in [
        (with_ports(Protocol::All), "Ports cannot be specified for Protocol ALL"),
        (with_ports(Protocol::Icmp), "Ports cannot be specified for Protocol ICMP"),
        (with_type(Protocol::Tcp), "ICMP types cannot be specified for Protocol TCP"),
        (with_type(Protocol::All), "ICMP types cannot be specified for Protocol ALL"),
        (rule(Protocol::Icmp6), "invalid protocol: 4"),
        (to(Protocol::All, "::1", "::1"), "the network ::1-::1 is IPv6, which containers do not have here"),
        (
            to(Protocol::All, "::1", "1.1.1.1"),
            "the network ::1-1.1.1.1 is IPv4 at one end and IPv6 at the other",
        ),
    ] {
        assert_eq!(check(std::slice::from_ref(&rule), false).unwrap_err().to_string(), text);
    }
    assert!(rule(Protocol::Icmp6).check(true).is_ok() && to(Protocol::Tcp, "::1", "::2").check(true).is_ok());
    assert!(to(Protocol::Tcp, "::ffff:1.1.1.1", "1.1.1.2").check(false).is_ok());
    let error = compile(&[to(Protocol::Icmp6, "1.1.1.1", "1.1.1.1")]).unwrap_err();
    assert_eq!(error.to_string(), "the network 1.1.1.1-1.1.1.1 cannot be specified for Protocol ICMPv6");
    assert!(compile(&[to(Protocol::Icmp, "::1", "::1")]).is_err());
    for number in 0..=4 {
        assert_eq!(Protocol::from_garden(number).map(Protocol::to_garden), Ok(number));
    }
    assert_eq!(Protocol::from_garden(9).unwrap_err().to_string(), "invalid protocol: 9");
}

#[test]
fn too_much_is_refused() {
    let text = |rules: &[Rule]| compile(rules).unwrap_err().to_string();
    let many = vec![rule(Protocol::Tcp); MAX_RULES + 1];
    assert_eq!(text(&many), "10001 rules in rules for outgoing traffic, of which 10000 are allowed");
    let wide = Rule { ports: vec![(1, 1); MAX_RANGES + 1], ..rule(Protocol::Tcp) };
    assert!(text(&[wide]).contains("1025 ranges of ports of a rule"));
    let wide = Rule { networks: vec![net("1.1.1.1", "1.1.1.1"); MAX_RANGES + 1], ..rule(Protocol::All) };
    assert!(text(&[wide]).contains("1025 networks of a rule"));
    let ports: Vec<(u16, u16)> = (0..1024).map(|port| (2 * port, 2 * port)).collect();
    let rules: Vec<Rule> = (0..257).map(|_| Rule { ports: ports.clone(), ..rule(Protocol::Tcp) }).collect();
    assert!(text(&rules).contains("263168 pairs"));
    let turns: Vec<Rule> = (0..=MAX_STEPS).map(|n| Rule { log: n % 2 == 0, ..rule(Protocol::Tcp) }).collect();
    assert_eq!(compile(&turns[1..]).unwrap().len(), MAX_STEPS);
    assert!(text(&turns).starts_with("513 alternations of logged and other rules"));
    // As many pairs as possible, none of which can be joined with another one: more boxes than there may be.
    let address = |n: u32| IpAddr::from(Ipv4Addr::from(n));
    let rules: Vec<Rule> = (0..256)
        .map(|n| Rule {
            networks: vec![(address(2 * n), address(2 * n))],
            ports: ports.clone(),
            ..rule(Protocol::Tcp)
        })
        .collect();
    assert_eq!(compile(&rules), Err(Error::Boxes));
    assert_eq!(text(&rules), "rules for outgoing traffic that take more than 65536 elements of sets");
}

#[test]
fn rules_are_kept_as_json() {
    let kept = Rule {
        icmp: Some((8, None)),
        log: true,
        networks: vec![net("1.1.1.1", "1.1.1.2")],
        ..rule(Protocol::Icmp)
    };
    let text =
        r#"{"protocol":"icmp","networks":[["1.1.1.1","1.1.1.2"]],"ports":[],"icmp":[8,null],"log":true}"#;
    assert_eq!(serde_json::to_string(&kept).unwrap(), text);
    assert_eq!(serde_json::from_str::<Rule>(text).unwrap(), kept);
    assert_eq!(serde_json::from_str::<Rule>(r#"{"protocol":"tcp"}"#).unwrap(), rule(Protocol::Tcp));
}

/// Lists that are built to take long: nested, staggered, alternating.
fn hostile() -> Vec<(&'static str, Vec<Rule>)> {
    let address = |n: u32| IpAddr::from(Ipv4Addr::from(n));
    let to = |first, last, ports: Vec<(u16, u16)>| Rule {
        networks: vec![(address(first), address(last))],
        ports,
        ..rule(Protocol::Tcp)
    };
    let count = u32::try_from(MAX_RULES).unwrap();
    let port = |n: u32| u16::try_from(n * 6).unwrap();
    let nested = (0..count).map(|n| to(n, u32::MAX - n, vec![(port(n), port(n))])).collect();
    let staircase = (0..count).map(|n| to(3 * n, 3 * n + 40_000, vec![(port(n), port(n) + 3)])).collect();
    // A comb of ports, over which a rule of all ports comes and goes.
    let comb: Vec<(u16, u16)> = (0..1024).map(|n| (64 * n, 64 * n)).collect();
    let mut shutter = vec![to(0, u32::MAX, comb.clone())];
    shutter.extend((0..count - 1).map(|n| to(4 * n, 4 * n, vec![])));
    let mut all_shutter = vec![to(0, u32::MAX, comb.clone())];
    all_shutter.extend((0..count - 1).map(|n| Rule { protocol: Protocol::All, ..to(4 * n, 4 * n, vec![]) }));
    let copies = vec![to(0, u32::MAX, comb); MAX_PAIRS / 1024];
    let mut random = Rng::with_seed(7);
    let mut any = |most: u32| random.u32(..most);
    let random_rules = (0..count)
        .map(|_| {
            let mut network = || {
                let first = any(u32::MAX);
                (address(first), address(first.saturating_add(any(1 << 30))))
            };
            let networks = (0..5).map(|_| network()).collect();
            let ports = (0..5).map(|_| (any(65536) as u16, any(65536) as u16)).collect();
            Rule { networks, ports, ..rule(Protocol::Udp) }
        })
        .collect();
    let alternating =
        (0..count).map(|n| Rule { log: n % 40 < 20, ..to(n, n + 1000, vec![(port(n), port(n) + 9)]) });
    vec![
        ("nested", nested),
        ("staircase", staircase),
        ("comb and shutter", shutter),
        ("comb and shutter of all protocols", all_shutter),
        ("copies", copies),
        ("random", random_rules),
        ("alternating logs", alternating.collect()),
    ]
}

/// The rules of a large installation: networks with some ports, many of them in each other.
fn ordinary(count: u32) -> Vec<Rule> {
    let mut random = Rng::with_seed(3);
    let ports = [80, 443, 5432, 3306, 6379, 8080, 9092, 53, 25, 22];
    (0..count)
        .map(|_| {
            let prefix = random.u32(16..=32);
            let first = (random.u32(..1 << 24) | 10 << 24) & u32::MAX.unbounded_shl(32 - prefix);
            let last = first | u32::MAX.checked_shr(prefix).unwrap_or(0);
            let ports =
                (0..random.usize(1..4)).map(|_| ports[random.usize(..ports.len())]).map(|p| (p, p)).collect();
            let networks = vec![(Ipv4Addr::from(first).into(), Ipv4Addr::from(last).into())];
            Rule { networks, ports, ..rule(if random.u8(..8) == 0 { Protocol::Udp } else { Protocol::Tcp }) }
        })
        .collect()
}

#[test]
#[ignore = "a measurement"]
fn how_long_it_takes() {
    let mut lists = vec![("3,000 ordinary rules", ordinary(3000)), ("10 ordinary rules", ordinary(10))];
    lists.extend(hostile());
    for (name, rules) in lists {
        let start = Instant::now();
        let steps = compile(&rules);
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let boxes = steps.map(|steps| {
            let count = |step: &Step| match step {
                Step::Allow(boxes) | Step::Log(boxes) => boxes.len(),
            };
            (steps.len(), steps.iter().map(count).sum::<usize>())
        });
        println!("{name}: {ms:.1} ms, steps and boxes: {boxes:?}");
    }
}
