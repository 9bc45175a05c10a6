//! From a container to elements, chains, sets and rules of nf_tables.

use super::program::Member;
use crate::egress::{Boxes, IcmpBox, Step, TransportBox};
use crate::nft::rule::{Load, Rule, Verdict};
use crate::nft::set::{Element, Fields, KeyType, Table, Value};
use crate::nft::{Batch, Family};
use crate::ports::{Mapping, Transport};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A set or map of the skeleton that has elements of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Set {
    pub(super) family: Family,
    pub(super) name: &'static str,
}

const fn inet(name: &'static str) -> Set {
    Set { family: Family::Inet, name }
}

const fn bridge(name: &'static str) -> Set {
    Set { family: Family::Bridge, name }
}

pub(super) const PORTS4: Set = bridge("ports4");
const PORTS6: Set = bridge("ports6");
const TARGETS6: Set = bridge("targets6");
const MEMBERS4: Set = inet("members4");
const MEMBERS6: Set = inet("members6");
const LOCAL4: Set = inet("local4");
const LOCAL6: Set = inet("local6");
const EGRESS4: Set = inet("egress4");
const EGRESS6: Set = inet("egress6");
const MAPPED4: Set = inet("mapped4");
const MAPPED6: Set = inet("mapped6");

/// All of them.
pub(super) const SETS: [Set; 11] =
    [PORTS4, PORTS6, TARGETS6, MEMBERS4, MEMBERS6, LOCAL4, LOCAL6, EGRESS4, EGRESS6, MAPPED4, MAPPED6];

/// What the names of containers' chains and sets begin with.
pub(super) const PREFIX: &str = "c-";
/// What the name of a container's chain that logs ends with.
const LOG: &str = "-log";
/// The chain of the skeleton where a container's own chain ends.
const DEFAULT: &str = "default";

/// The name of a container's chain.
pub(super) fn chain(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// The container's id in the name of one of its chains or sets.
pub(super) fn id_of(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.split('-').next()
}

/// A container's handle as a comment or prefix: printable ASCII that nft can read again from its own output, at most
/// this many characters.
pub(super) fn shown(handle: &str, limit: usize) -> String {
    let plain = |c: char| {
        if (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\' | '$' | '@') { c } else { '_' }
    };
    handle.chars().take(limit).map(plain).collect()
}

/// The elements that keep a container's addresses.
pub(super) fn addresses(member: &Member) -> Vec<(Set, Element)> {
    let own = IpAddr::V4(member.v4);
    let port = |ip| Element::key(Fields::new().link(&member.port).bytes(&member.mac).ip(ip));
    let local = |ip| Element::key(Fields::new().link(&member.bridge).ip(ip));
    let mut all =
        vec![(PORTS4, port(own)), (MEMBERS4, Element::key(Fields::new().ip(own))), (LOCAL4, local(own))];
    if let Some((global, link)) = member.v6 {
        for ip in [IpAddr::V6(global), IpAddr::V6(link)] {
            all.extend([(PORTS6, port(ip)), (TARGETS6, port(ip))]);
        }
        let global = IpAddr::V6(global);
        all.extend([(MEMBERS6, Element::key(Fields::new().ip(global))), (LOCAL6, local(global))]);
    }
    all
}

/// The elements that lead to a container's chain.
pub(super) fn entries(member: &Member) -> Vec<(Set, Element)> {
    if member.egress.is_empty() {
        return Vec::new();
    }
    let entry = |ip| Element {
        key: Fields::new().link(&member.bridge).ip(ip),
        last: None,
        value: Value::Verdict(Verdict::Goto(chain(&member.id))),
    };
    let mut all = vec![(EGRESS4, entry(IpAddr::V4(member.v4)))];
    all.extend(member.v6.map(|(global, _)| (EGRESS6, entry(IpAddr::V6(global)))));
    all
}

/// The elements of mapped ports.
pub(super) fn mapped(member: &Member, mappings: &[Mapping]) -> Vec<(Set, Element)> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let mut taken = HashSet::new();
    let mut all = Vec::new();
    for mapping in mappings {
        if !taken.insert((mapping.transport, mapping.host)) {
            continue;
        }
        for external in &member.external {
            let (set, own) = match (external, member.v6) {
                (IpAddr::V4(_), _) => (MAPPED4, IpAddr::V4(member.v4)),
                (IpAddr::V6(_), Some((global, _))) => (MAPPED6, IpAddr::V6(global)),
                (IpAddr::V6(_), None) => continue,
            };
            let protocol = match mapping.transport {
                Transport::Tcp => TCP,
                Transport::Udp => UDP,
            };
            let key = Fields::new().ip(*external).protocol(protocol).port(mapping.host);
            let value = Value::Fields(Fields::new().ip(own).port(mapping.container));
            all.push((set, Element { key, last: None, value }));
        }
    }
    all
}

/// The chains, sets and rules of a container with egress rules.
#[derive(Debug)]
pub(super) struct Program {
    sets: Vec<ProgramSet>,
    rules: Vec<Rule>,
    logs: bool,
}

#[derive(Debug)]
struct ProgramSet {
    fields: &'static [KeyType],
    elements: Vec<Element>,
}

/// What a container's program has left in the kernel, by its counts; the names follow from the container's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footprint {
    pub(super) sets: usize,
    /// Of all its chains.
    pub(super) rules: usize,
    pub(super) logs: bool,
}

/// The layers that a packet's fields are read from.
#[derive(Clone, Copy)]
struct Layout {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    family: u8,
    address: KeyType,
    destination: Load,
    icmp: u8,
}

const V4: Layout = Layout {
    family: 2,
    address: KeyType::Ipv4,
    destination: Load::Network { offset: 16, length: 4 },
    icmp: 1,
};
const V6: Layout = Layout {
    family: 10,
    address: KeyType::Ipv6,
    destination: Load::Network { offset: 24, length: 16 },
    icmp: 58,
};
const DESTINATION_PORT: Load = Load::Transport { offset: 2, length: 2 };
const ICMP_TYPE_AND_CODE: Load = Load::Transport { offset: 0, length: 2 };
const ALL_PORTS: (u16, u16) = (0, u16::MAX);
const ALL_PROTOCOLS: (u8, u8) = (0, u8::MAX);

trait Address: Copy + PartialEq + Into<IpAddr> {
    const LAYOUT: Layout;
    /// With ports, without ports, ICMP.
    const KEYS: [&'static [KeyType]; 3];
    const ALL: (Self, Self);
    fn bytes(self) -> Vec<u8>;
}

impl Address for Ipv4Addr {
    const LAYOUT: Layout = V4;
    const KEYS: [&'static [KeyType]; 3] = [
        &[V4.address, KeyType::Protocol, KeyType::Port],
        &[V4.address, KeyType::Protocol],
        &[V4.address, KeyType::Port],
    ];
    const ALL: (Self, Self) = (Self::UNSPECIFIED, Self::BROADCAST);

    fn bytes(self) -> Vec<u8> {
        self.octets().to_vec()
    }
}

impl Address for Ipv6Addr {
    const LAYOUT: Layout = V6;
    const KEYS: [&'static [KeyType]; 3] = [
        &[V6.address, KeyType::Protocol, KeyType::Port],
        &[V6.address, KeyType::Protocol],
        &[V6.address, KeyType::Port],
    ];
    const ALL: (Self, Self) = (Self::UNSPECIFIED, Self::from_bits(u128::MAX));

    fn bytes(self) -> Vec<u8> {
        self.octets().to_vec()
    }
}

impl Program {
    /// The program of a container; `None` when it has no egress rules.
    pub(super) fn of(member: &Member) -> Option<Self> {
        if member.egress.is_empty() {
            return None;
        }
        let mut program = Self { sets: Vec::new(), rules: Vec::new(), logs: false };
        for step in &member.egress {
            match step {
                Step::Allow(boxes) => program.allow(&member.id, boxes),
                Step::Log(boxes) => program.log(&member.id, boxes),
            }
        }
        program.rules.push(Rule::new().verdict(&Verdict::Goto(DEFAULT.into())));
        Some(program)
    }

    fn allow(&mut self, id: &str, boxes: &Boxes) {
        self.family(id, &boxes.v4, &boxes.v4_icmp);
        self.family(id, &boxes.v6, &boxes.v6_icmp);
    }

    /// Boxes of all ports have sets of their own: a packet without a transport header would not match a key with a
    /// port.
    fn family<A: Address>(&mut self, id: &str, transport: &[TransportBox<A>], icmp: &[IcmpBox<A>]) {
        let layout = A::LAYOUT;
        let (all, some): (Vec<&TransportBox<A>>, Vec<_>) =
            transport.iter().partition(|one| one.ports == ALL_PORTS);
        let range = |first, last| Element { key: first, last: Some(last), value: Value::None };
        let some = some.iter().map(|one| {
            let end = |ip: A, protocol, port| Fields::new().ip(ip.into()).protocol(protocol).port(port);
            range(
                end(one.addresses.0, one.protocols.0, one.ports.0),
                end(one.addresses.1, one.protocols.1, one.ports.1),
            )
        });
        let all = all.iter().map(|one| {
            let end = |ip: A, protocol| Fields::new().ip(ip.into()).protocol(protocol);
            range(end(one.addresses.0, one.protocols.0), end(one.addresses.1, one.protocols.1))
        });
        let icmp = icmp.iter().map(|one| {
            let end = |ip: A, types| Fields::new().ip(ip.into()).port(types);
            range(end(one.addresses.0, one.messages.0), end(one.addresses.1, one.messages.1))
        });
        let family = || Rule::new().within(Load::NetworkProtocol, &[layout.family], &[layout.family]);
        let of_icmp = || family().within(Load::TransportProtocol, &[layout.icmp], &[layout.icmp]);
        let keys: [&[Load]; 3] = [
            &[layout.destination, Load::TransportProtocol, DESTINATION_PORT],
            &[layout.destination, Load::TransportProtocol],
            &[layout.destination, ICMP_TYPE_AND_CODE],
        ];
        self.lookup(id, family(), keys[0], A::KEYS[0], some.collect());
        self.lookup(id, family(), keys[1], A::KEYS[1], all.collect());
        self.lookup(id, of_icmp(), keys[2], A::KEYS[2], icmp.collect());
    }

    fn lookup(
        &mut self,
        id: &str,
        rule: Rule,
        key: &[Load],
        fields: &'static [KeyType],
        elements: Vec<Element>,
    ) {
        if elements.is_empty() {
            return;
        }
        let set = set_name(id, self.sets.len());
        self.sets.push(ProgramSet { fields, elements });
        self.rules.push(rule.lookup(key, &set).verdict(&Verdict::Accept));
    }

    /// A rule for each box: few rules ask for a log.
    fn log(&mut self, id: &str, boxes: &Boxes) {
        let v4 = boxes.v4.iter().map(transport_rule).chain(boxes.v4_icmp.iter().map(icmp_rule));
        let v6 = boxes.v6.iter().map(transport_rule).chain(boxes.v6_icmp.iter().map(icmp_rule));
        for rule in v4.chain(v6) {
            self.rules.push(rule.verdict(&Verdict::Goto(log_chain(id))));
            self.logs = true;
        }
    }

    /// Appends what makes the program, but not the elements that lead to it.
    pub(super) fn add(
        &self,
        batch: &mut Batch,
        table: Table<'_>,
        member: &Member,
        log_group: u16,
    ) -> Footprint {
        /// NEW, INVALID and UNTRACKED (`NF_CT_STATE_BIT`, `NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_UNTRACKED_BIT`).
        const BEGINS: u32 = 1 << 3 | 1 << 0 | 1 << 6;
        /// What Garden gives of the handle.
        const PREFIX_LIMIT: usize = 28;
        let comment = shown(&member.handle, COMMENT);
        let name = chain(&member.id);
        let mut rules = self.rules.len();
        if self.logs {
            let prefix = format!("{} ", shown(&member.handle, PREFIX_LIMIT));
            let log = log_chain(&member.id);
            batch.add_chain(table, &log, &comment);
            batch.add_rule(table, &log, &Rule::new().state(BEGINS).log(log_group, &prefix), &comment);
            batch.add_rule(table, &log, &Rule::new().verdict(&Verdict::Accept), &comment);
            rules += 2;
        }
        for (index, set) in self.sets.iter().enumerate() {
            let name = set_name(&member.id, index);
            batch.add_set(table, &name, set.fields, set.elements.len(), &comment);
            batch.add_elements(table, &name, set.elements.iter().map(|element| (element, None)));
        }
        batch.add_chain(table, &name, &comment);
        for rule in &self.rules {
            batch.add_rule(table, &name, rule, &comment);
        }
        Footprint { sets: self.sets.len(), rules, logs: self.logs }
    }
}

impl Footprint {
    /// Appends the deletion of a program that no element leads to any more.
    pub(super) fn delete(self, batch: &mut Batch, table: Table<'_>, id: &str) {
        let name = chain(id);
        batch.flush_chain(table, &name);
        batch.delete_chain(table, &name);
        for index in 0..self.sets {
            batch.delete_set(table, &set_name(id, index));
        }
        if self.logs {
            let log = log_chain(id);
            batch.flush_chain(table, &log);
            batch.delete_chain(table, &log);
        }
    }
}

/// The length of a comment in characters.
pub(super) const COMMENT: usize = 64;

fn set_name(id: &str, index: usize) -> String {
    format!("{PREFIX}{id}-{index}")
}

fn log_chain(id: &str) -> String {
    format!("{PREFIX}{id}{LOG}")
}

fn destination<A: Address>(addresses: (A, A)) -> Rule {
    let layout = A::LAYOUT;
    let rule = Rule::new().within(Load::NetworkProtocol, &[layout.family], &[layout.family]);
    if addresses == A::ALL {
        return rule;
    }
    rule.within(layout.destination, &addresses.0.bytes(), &addresses.1.bytes())
}

fn transport_rule<A: Address>(one: &TransportBox<A>) -> Rule {
    let mut rule = destination(one.addresses);
    if one.protocols != ALL_PROTOCOLS {
        rule = rule.within(Load::TransportProtocol, &[one.protocols.0], &[one.protocols.1]);
    }
    if one.ports != ALL_PORTS {
        rule = rule.within(DESTINATION_PORT, &one.ports.0.to_be_bytes(), &one.ports.1.to_be_bytes());
    }
    rule
}

fn icmp_rule<A: Address>(one: &IcmpBox<A>) -> Rule {
    let icmp = A::LAYOUT.icmp;
    let (first, last) = (one.messages.0.to_be_bytes(), one.messages.1.to_be_bytes());
    destination(one.addresses).within(Load::TransportProtocol, &[icmp], &[icmp]).within(
        ICMP_TYPE_AND_CODE,
        &first,
        &last,
    )
}
