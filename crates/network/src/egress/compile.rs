//! From rules to disjoint boxes.

use super::cover::{self, Rectangle};
use super::{ANY_TYPE, Error, MAX_STEPS, Protocol, Rule, at_most, check};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most boxes of a container.
pub const MAX_BOXES: usize = 65_536;

/// The most boxes of rules with logging: each is a rule of the firewall, which packets meet one by one.
pub const MAX_LOGGED: usize = 512;

/// Addresses as numbers, first to last.
pub type Span = (u128, u128);

/// All ports, all ICMP messages.
const ALL: (u16, u16) = (0, u16::MAX);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is done with a packet that is in one of the boxes; the first step that has it decides. A packet in none is
/// left to the rules for all containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The packet is allowed.
    Allow(Boxes),
    /// The packet is logged if it begins a connection, and allowed.
    Log(Boxes),
}

/// Packets by destination. In each list the boxes are pairwise disjoint and sorted by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boxes {
    /// IPv4 by protocol and port.
    pub v4: Vec<TransportBox<Ipv4Addr>>,
    /// ICMP by type and code. Messages that are in `v4` are not in here.
    pub v4_icmp: Vec<IcmpBox<Ipv4Addr>>,
    /// IPv6 by protocol and port.
    pub v6: Vec<TransportBox<Ipv6Addr>>,
    /// ICMPv6 by type and code. Messages that are in `v6` are not in here.
    pub v6_icmp: Vec<IcmpBox<Ipv6Addr>>,
}

/// Ranges of addresses, protocols and ports, first to last. All ports are meant where protocols have none, and
/// whatever stands at their place in the packet must then be ignored: it is in the range in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportBox<A> {
    /// Destination addresses.
    pub addresses: (A, A),
    /// Protocols by their number in the IP header.
    pub protocols: (u8, u8),
    /// Destination ports.
    pub ports: (u16, u16),
}

/// Ranges of addresses and ICMP messages, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpBox<A> {
    /// Destination addresses.
    pub addresses: (A, A),
    /// The first two bytes of a message as a number: `type << 8 | code`.
    pub messages: (u16, u16),
}

impl Boxes {
    /// The number of boxes.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v4_icmp.len() + self.v6.len() + self.v6_icmp.len()
    }

    /// Returns whether no packet is in a box.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Compiles the rules of a container into steps, which are to be evaluated from the first to the last: rules of
/// which the later ones take precedence, and neighbours that do the same as one step. IPv6 is included; where
/// containers have none, [`check`] refuses rules about it and those boxes match nothing.
///
/// # Errors
///
/// A rule is wrong, they are too many, or they need more than [`MAX_BOXES`].
pub fn compile(rules: &[Rule]) -> Result<Vec<Step>, Error> {
    check(rules, true)?;
    let runs = || rules.chunk_by(|a, b| a.log == b.log);
    at_most("alternations of logged and other rules", runs().count(), MAX_STEPS)?;
    let mut steps = Vec::new();
    let mut left = MAX_BOXES;
    let mut logged = 0;
    for run in runs().rev() {
        let boxes = boxes(run)?;
        if run[0].log {
            logged += boxes.len();
            at_most("networks and ports that are logged", logged, MAX_LOGGED)?;
        }
        left = left.checked_sub(boxes.len()).ok_or(Error::Boxes)?;
        if !boxes.is_empty() {
            steps.push(if run[0].log { Step::Log(boxes) } else { Step::Allow(boxes) });
        }
    }
    Ok(steps)
}

fn boxes(rules: &[Rule]) -> Result<Boxes, Error> {
    let (v4, v4_icmp) = family::<Ipv4Addr>(rules)?;
    let (v6, v6_icmp) = family::<Ipv6Addr>(rules)?;
    Ok(Boxes { v4, v4_icmp, v6, v6_icmp })
}

/// A family of addresses.
trait Address: Copy {
    /// The highest address.
    const LAST: u128;
    /// The family's control messages.
    const ICMP: Protocol;
    /// Their protocol number.
    const ICMP_NUMBER: u8;

    /// The number of an address of this family.
    fn number(address: IpAddr) -> Option<u128>;

    /// The address of a number up to `LAST`.
    fn from_number(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const LAST: u128 = u32::MAX as u128;
    const ICMP: Protocol = Protocol::Icmp;
    const ICMP_NUMBER: u8 = 1;

    fn number(address: IpAddr) -> Option<u128> {
        match address.to_canonical() {
            IpAddr::V4(address) => Some(u32::from(address).into()),
            IpAddr::V6(_) => None,
        }
    }

    fn from_number(number: u128) -> Self {
        u32::try_from(number).unwrap_or(u32::MAX).into()
    }
}

impl Address for Ipv6Addr {
    const LAST: u128 = u128::MAX;
    const ICMP: Protocol = Protocol::Icmp6;
    const ICMP_NUMBER: u8 = 58;

    fn number(address: IpAddr) -> Option<u128> {
        match address.to_canonical() {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    fn from_number(number: u128) -> Self {
        number.into()
    }
}

/// The boxes of one family.
#[expect(clippy::type_complexity, reason = "two lists, which the caller names")]
fn family<A: Address>(rules: &[Rule]) -> Result<(Vec<TransportBox<A>>, Vec<IcmpBox<A>>), Error> {
    let (mut all, mut icmp) = (Vec::new(), Vec::new());
    let (mut tcp, mut udp, mut messages) = (Vec::new(), Vec::new(), Vec::new());
    for rule in rules {
        let spans = spans::<A>(rule);
        match (rule.protocol, rule.icmp) {
            (Protocol::All, _) => all.extend(spans),
            (Protocol::Tcp, _) => tcp.extend(rectangles(&spans, &rule.ports)),
            (Protocol::Udp, _) => udp.extend(rectangles(&spans, &rule.ports)),
            (protocol, _) if protocol != A::ICMP => {}
            (_, None | Some((ANY_TYPE, _))) => icmp.extend(spans),
            (_, Some((kind, code))) => {
                let message = |code| u16::from_be_bytes([kind, code]);
                let range =
                    code.map_or((message(0), message(u8::MAX)), |code| (message(code), message(code)));
                messages.extend(rectangles(&spans, &[range]));
            }
        }
    }
    let all = joined(all);
    let every_message = joined(all.iter().copied().chain(icmp.iter().copied()).collect());
    let mut boxes: Vec<(Span, (u8, u8), (u16, u16))> = Vec::new();
    boxes.extend(all.iter().map(|span| (*span, (0, u8::MAX), ALL)));
    let protocol = |number| move |(span, ports)| (span, (number, number), ports);
    let icmp = without(&every_message, &all);
    boxes.extend(icmp.into_iter().map(|span| (span, ALL)).map(protocol(A::ICMP_NUMBER)));
    boxes.extend(disjoint(tcp, &all)?.into_iter().map(protocol(TCP)));
    boxes.extend(disjoint(udp, &all)?.into_iter().map(protocol(UDP)));
    boxes.sort_unstable();
    let addresses = |(first, last)| (A::from_number(first), A::from_number(last));
    let boxes = boxes.into_iter().map(|(span, protocols, ports)| TransportBox {
        addresses: addresses(span),
        protocols,
        ports,
    });
    let messages = disjoint(messages, &every_message)?;
    let messages =
        messages.into_iter().map(|(span, messages)| IcmpBox { addresses: addresses(span), messages });
    Ok((boxes.collect(), messages.collect()))
}

/// The networks of a rule that are of this family.
fn spans<A: Address>(rule: &Rule) -> Vec<Span> {
    if rule.networks.is_empty() {
        return vec![(0, A::LAST)];
    }
    let span = |&(start, end): &(IpAddr, IpAddr)| A::number(start).zip(A::number(end));
    rule.networks.iter().filter_map(span).filter(|(first, last)| first <= last).collect()
}

/// Each span with each range; without ranges with all ports.
fn rectangles(spans: &[Span], ranges: &[(u16, u16)]) -> Vec<Rectangle> {
    let ranges = if ranges.is_empty() { &[ALL] } else { ranges };
    let ranges = ranges.iter().filter(|(first, last)| first <= last);
    ranges.flat_map(|range| spans.iter().map(|span| (*span, *range))).collect()
}

/// Disjoint rectangles that cover the same as `rectangles`, except for what the `covered` addresses have already.
fn disjoint(mut rectangles: Vec<Rectangle>, covered: &[Span]) -> Result<Vec<Rectangle>, Error> {
    if rectangles.is_empty() {
        return Ok(rectangles);
    }
    // These addresses get a range of all ports too, which swallows all others there and is then taken out again.
    rectangles.extend(covered.iter().map(|span| (*span, ALL)));
    let most = 2 * MAX_BOXES;
    let (whole, mut parts): (Vec<_>, Vec<_>) = cover::disjoint(rectangles, most)
        .ok_or(Error::Boxes)?
        .into_iter()
        .partition(|(_, range)| *range == ALL);
    let whole: Vec<Span> = whole.into_iter().map(|(span, _)| span).collect();
    parts.extend(without(&whole, covered).into_iter().map(|span| (span, ALL)));
    parts.sort_unstable();
    Ok(parts)
}

/// Sorted spans with gaps between them, of the same addresses.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for (first, last) in spans {
        match joined.last_mut() {
            Some(before) if before.1.checked_add(1).is_none_or(|next| first <= next) => {
                before.1 = before.1.max(last);
            }
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// The addresses of `spans` that are not in `holes`. Both are sorted and disjoint.
fn without(spans: &[Span], holes: &[Span]) -> Vec<Span> {
    let mut rest = Vec::new();
    let mut holes = holes.iter().peekable();
    for &(first, last) in spans {
        let mut from = Some(first);
        while let (Some(first), Some(&&(begin, end))) = (from, holes.peek())
            && begin <= last
        {
            if first < begin {
                rest.push((first, begin - 1));
            }
            if end < last {
                from = Some(first.max(end + 1));
                holes.next();
            } else {
                // The hole may reach into the next span.
                from = None;
            }
        }
        rest.extend(from.map(|first| (first, last)));
    }
    rest
}
