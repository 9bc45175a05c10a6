//! Which subnets and addresses containers have (Garden server §4.2).
//!
//! A container that asks for nothing gets a /30 of its own from the pool, the lowest free one. Others name a subnet
//! outside of the pool and share it with all that name the same. In each subnet the first address after the
//! network's is the gateway, and the last one the broadcast address.
//!
//! Each operation costs a few searches in ordered maps, however many subnets there are.

use crate::ranges::Ranges;
use crate::spec::{self, Request};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The prefix length of a dynamic subnet.
const DYNAMIC_PREFIX: u8 = 30;
/// The number of addresses of a dynamic subnet.
const DYNAMIC_SIZE: u32 = 1 << (32 - DYNAMIC_PREFIX);

/// Why a subnet or an address is not given. The texts are Garden's, except for the first two and the last.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Subnets cannot be taken from this pool.
    #[error("network pool {pool}: {source}")]
    Pool {
        /// The pool.
        pool: Ipv4Net,
        /// What is wrong with it.
        #[source]
        source: spec::Error,
    },
    /// Containers cannot be in this subnet.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// The subnet is, or contains, a part of the pool.
    #[error("the requested subnet ({subnet}) overlaps the dynamic allocation range ({pool})")]
    OverlapsPool {
        /// The subnet asked for.
        subnet: Ipv4Net,
        /// The pool.
        pool: Ipv4Net,
    },
    /// The subnet overlaps one in use and is not the same.
    #[error("the requested subnet ({subnet}) overlaps an existing subnet ({existing})")]
    OverlapsSubnet {
        /// The subnet asked for.
        subnet: Ipv4Net,
        /// The one in use.
        existing: Ipv4Net,
    },
    /// All subnets of the pool are in use or withheld.
    #[error("insufficient subnets remaining in the pool")]
    NoSubnet,
    /// All addresses of the subnet are in use.
    #[error("insufficient IPs remaining in the pool")]
    NoAddress,
    /// The address is the subnet's last.
    #[error("a container IP must not equal the broadcast IP")]
    Broadcast,
    /// The address is the bridge's.
    #[error("a container IP must not equal the gateway IP")]
    Gateway,
    /// Another container has the address.
    #[error("the requested IP is already allocated")]
    Taken,
    /// The address is the subnet's first, or not in the subnet.
    #[error("the requested IP ({ip}) is no host of the subnet {subnet}")]
    Outside {
        /// The address.
        ip: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
}

/// An address in a subnet, given to one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The container's address.
    pub ip: Ipv4Addr,
    /// The address of the subnet's bridge.
    pub gateway: Ipv4Addr,
}

/// All subnets of a server.
#[derive(Debug)]
pub struct Subnets {
    pool: Ipv4Net,
    /// Which dynamic subnets are free, by their place in the pool.
    free: Ranges,
    /// Which dynamic subnets the host uses otherwise, by their place in the pool.
    withheld: Ranges,
    /// The subnets with a lease, by their first address; they do not overlap.
    used: BTreeMap<u32, Used>,
}

/// A subnet with at least one lease.
#[derive(Debug)]
struct Used {
    subnet: Ipv4Net,
    /// The addresses that containers may still get.
    free: Ranges,
    leases: u32,
}

impl Used {
    fn new(subnet: Ipv4Net) -> Self {
        let (first, last) = bounds(subnet);
        Self { subnet, free: Ranges::new(first + 2, last - 1), leases: 0 }
    }
}

impl Subnets {
    /// Makes the pool, from which dynamic subnets of four addresses each are taken.
    ///
    /// # Errors
    ///
    /// The pool is smaller than such a subnet, or containers cannot be in it.
    pub fn new(pool: Ipv4Net) -> Result<Self, Error> {
        let pool = pool.trunc();
        spec::check_subnet(pool).map_err(|source| Error::Pool { pool, source })?;
        let (first, last) = bounds(pool);
        let free = Ranges::new(0, (last - first) / DYNAMIC_SIZE);
        Ok(Self { pool, free, withheld: Ranges::default(), used: BTreeMap::new() })
    }

    /// The number of dynamic subnets that the pool has, free or not.
    pub fn capacity(&self) -> u64 {
        1 << (DYNAMIC_PREFIX - self.pool.prefix_len())
    }

    /// Gives an address to a container.
    ///
    /// # Errors
    ///
    /// The subnet cannot be used, or none or no address is left, or the address cannot be a container's or is taken.
    /// Nothing has changed then.
    pub fn acquire(&mut self, request: &Request) -> Result<Lease, Error> {
        let (subnet, ip) = match *request {
            Request::Dynamic => return self.reserve_dynamic(),
            Request::Subnet(subnet) => (subnet.trunc(), None),
            Request::Address { subnet, ip } => (subnet.trunc(), Some(ip)),
        };
        spec::check_subnet(subnet)?;
        if self.places(subnet).is_some() {
            return Err(Error::OverlapsPool { subnet, pool: self.pool });
        }
        self.lease(subnet, ip)
    }

    /// Takes the lowest free dynamic subnet, also for a bridge that is made ahead of its container.
    ///
    /// # Errors
    ///
    /// None is free.
    pub fn reserve_dynamic(&mut self) -> Result<Lease, Error> {
        let place = self.free.take_lowest().ok_or(Error::NoSubnet)?;
        let first = Ipv4Addr::from(bounds(self.pool).0 + place * DYNAMIC_SIZE);
        self.lease(Ipv4Net::new_assert(first, DYNAMIC_PREFIX), None)
    }

    /// Gives a container back the address it has. The subnet need not be one of the present pool: the pool may have
    /// been another one when the container was created.
    ///
    /// # Errors
    ///
    /// The address cannot be a container's, or is taken, or its subnet overlaps another one.
    pub fn restore(&mut self, subnet: Ipv4Net, ip: Ipv4Addr) -> Result<Lease, Error> {
        let subnet = subnet.trunc();
        spec::check_subnet(subnet)?;
        let lease = self.lease(subnet, Some(ip))?;
        if let Some((first, last)) = self.places(subnet) {
            self.free.remove(first, last);
            self.withheld.remove(first, last);
        }
        Ok(lease)
    }

    /// Takes an address back. Returns true when its subnet has no lease any more, so that the bridge can go; false
    /// also for a lease that is not known. A lease must be released only once, because the next container gets the
    /// same address.
    pub fn release(&mut self, lease: &Lease) -> bool {
        let first = bounds(lease.subnet).0;
        let Some(used) = self.used.get_mut(&first).filter(|used| used.subnet == lease.subnet) else {
            return false;
        };
        let ip = u32::from(lease.ip);
        if check_host(lease.subnet, lease.ip).is_err() || used.free.contains(ip) {
            return false;
        }
        used.free.insert(ip, ip);
        used.leases -= 1;
        if used.leases > 0 {
            return false;
        }
        self.used.remove(&first);
        if let Some((first, last)) = self.places(lease.subnet) {
            self.free.insert(first, last);
        }
        true
    }

    /// Returns whether a container has an address of exactly this subnet.
    pub fn is_used(&self, subnet: Ipv4Net) -> bool {
        self.used.get(&bounds(subnet).0).is_some_and(|used| used.subnet == subnet.trunc())
    }

    /// Takes all free dynamic subnets that overlap `foreign` out of the pool, because somebody else on the host uses
    /// that network. Subnets with a lease stay as they are: whoever finds that a lease cannot be used releases it
    /// first.
    pub fn withhold(&mut self, foreign: Ipv4Net) {
        if let Some((first, last)) = self.places(foreign) {
            for (first, last) in self.free.remove(first, last) {
                self.withheld.insert(first, last);
            }
        }
    }

    /// Returns all withheld subnets to the pool, to find out whether they are still in use.
    pub fn retry_withheld(&mut self) {
        for (first, last) in self.withheld.drain() {
            self.free.insert(first, last);
        }
    }

    fn lease(&mut self, subnet: Ipv4Net, ip: Option<Ipv4Addr>) -> Result<Lease, Error> {
        let (first, last) = bounds(subnet);
        // Subnets in use do not overlap: if any overlaps this one, the last that begins before its end does.
        let mut fresh = None;
        let used = match self.used.range_mut(..=last).next_back().map(|(_, used)| used) {
            Some(used) if used.subnet == subnet => used,
            Some(used) if bounds(used.subnet).1 >= first => {
                return Err(Error::OverlapsSubnet { subnet, existing: used.subnet });
            }
            _ => fresh.insert(Used::new(subnet)),
        };
        if let Some(ip) = ip {
            check_host(subnet, ip)?;
        }
        let ip = match ip.map(u32::from) {
            Some(ip) if used.free.take(ip) => ip,
            Some(_) => return Err(Error::Taken),
            None => used.free.take_lowest().ok_or(Error::NoAddress)?,
        };
        used.leases += 1;
        if let Some(used) = fresh {
            self.used.insert(first, used);
        }
        Ok(Lease { subnet, ip: ip.into(), gateway: (first + 1).into() })
    }

    /// Returns which dynamic subnets a network overlaps, by their first and last place in the pool.
    fn places(&self, net: Ipv4Net) -> Option<(u32, u32)> {
        let ((first, last), (begin, end)) = (bounds(self.pool), bounds(net));
        let (begin, end) = (begin.max(first), end.min(last));
        (begin <= end).then(|| ((begin - first) / DYNAMIC_SIZE, (end - first) / DYNAMIC_SIZE))
    }
}

/// The first and the last address of a network.
fn bounds(net: Ipv4Net) -> (u32, u32) {
    (net.network().into(), net.broadcast().into())
}

/// Checks that an address can be a container's in this subnet.
fn check_host(subnet: Ipv4Net, ip: Ipv4Addr) -> Result<(), Error> {
    let (first, last) = bounds(subnet);
    match u32::from(ip) {
        ip if ip == last => Err(Error::Broadcast),
        ip if ip == first + 1 => Err(Error::Gateway),
        address if address <= first || address > last => Err(Error::Outside { ip, subnet }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn pool(text: &str) -> Subnets {
        Subnets::new(net(text)).unwrap()
    }

    fn acquire(subnets: &mut Subnets, spec: &str) -> Result<Lease, Error> {
        subnets.acquire(&Request::parse(spec).unwrap())
    }

    fn lease(subnet: &str, address: &str, gateway: &str) -> Lease {
        Lease { subnet: net(subnet), ip: ip(address), gateway: ip(gateway) }
    }

    #[test]
    fn dynamic_subnets_are_the_lowest_free_ones() {
        let mut subnets = pool("10.254.0.0/28");
        assert_eq!(subnets.capacity(), 4);
        let first = acquire(&mut subnets, "").unwrap();
        assert_eq!(first, lease("10.254.0.0/30", "10.254.0.2", "10.254.0.1"));
        let second = acquire(&mut subnets, "").unwrap();
        assert_eq!(second, lease("10.254.0.4/30", "10.254.0.6", "10.254.0.5"));
        assert!(subnets.is_used(first.subnet) && subnets.release(&first) && !subnets.is_used(first.subnet));
        assert_eq!(subnets.reserve_dynamic(), Ok(first));
        for _ in 0..2 {
            subnets.reserve_dynamic().unwrap();
        }
        assert_eq!(
            acquire(&mut subnets, "").unwrap_err().to_string(),
            "insufficient subnets remaining in the pool"
        );
        assert!(subnets.release(&second));
        assert_eq!(acquire(&mut subnets, ""), Ok(second));
    }

    #[test]
    fn static_subnets_are_shared() {
        let mut subnets = pool("10.254.0.0/22");
        let a = acquire(&mut subnets, "10.253.0.0/29").unwrap();
        assert_eq!(a, lease("10.253.0.0/29", "10.253.0.2", "10.253.0.1"));
        let b = acquire(&mut subnets, "10.253.0.5/29").unwrap();
        assert_eq!(b, lease("10.253.0.0/29", "10.253.0.5", "10.253.0.1"));
        let rest: Vec<Lease> = (0..3).map(|_| acquire(&mut subnets, "10.253.0.0/29").unwrap()).collect();
        assert_eq!(rest.iter().map(|lease| lease.ip.octets()[3]).collect::<Vec<_>>(), [3, 4, 6]);
        let error = acquire(&mut subnets, "10.253.0.0/29").unwrap_err();
        assert_eq!(error.to_string(), "insufficient IPs remaining in the pool");
        assert!(
            !subnets.release(&b) && !subnets.release(&b) && rest.iter().all(|lease| !subnets.release(lease))
        );
        assert!(subnets.release(&a) && !subnets.release(&a));
        assert!(!subnets.is_used(a.subnet));
    }

    #[test]
    fn the_texts_are_gardens() {
        let mut subnets = pool("10.254.0.0/22");
        acquire(&mut subnets, "10.253.0.2").unwrap();
        for (spec, text) in [
            ("10.253.1.1/30", "a container IP must not equal the gateway IP"),
            ("10.253.1.3/30", "a container IP must not equal the broadcast IP"),
            (
                "10.254.0.0/30",
                "the requested subnet (10.254.0.0/30) overlaps the dynamic allocation range (10.254.0.0/22)",
            ),
            (
                "10.0.0.0/8",
                "the requested subnet (10.0.0.0/8) overlaps the dynamic allocation range (10.254.0.0/22)",
            ),
            (
                "10.253.0.0/28",
                "the requested subnet (10.253.0.0/28) overlaps an existing subnet (10.253.0.0/30)",
            ),
            // The subnet is looked at before the address.
            (
                "10.253.0.1/28",
                "the requested subnet (10.253.0.0/28) overlaps an existing subnet (10.253.0.0/30)",
            ),
            ("10.253.0.2/30", "the requested IP is already allocated"),
            ("10.253.0.0/30", "insufficient IPs remaining in the pool"),
        ] {
            assert_eq!(acquire(&mut subnets, spec).unwrap_err().to_string(), text);
        }
        // A refused address leaves no subnet behind.
        assert!(!subnets.is_used(net("10.253.1.0/30")));
        acquire(&mut subnets, "10.253.1.0/28").unwrap();
        let error = acquire(&mut subnets, "10.253.1.4").unwrap_err();
        assert!(matches!(error, Error::OverlapsSubnet { existing, .. } if existing == net("10.253.1.0/28")));
    }

    #[test]
    fn requests_that_were_not_parsed_are_checked_too() {
        let mut subnets = pool("10.254.0.0/22");
        let subnet = net("10.253.0.0/29");
        for address in ["10.253.0.0", "10.253.0.8", "9.0.0.1"] {
            let request = Request::Address { subnet, ip: ip(address) };
            assert_eq!(subnets.acquire(&request), Err(Error::Outside { ip: ip(address), subnet }));
        }
        let request = Request::Subnet(net("127.0.0.0/30"));
        assert!(matches!(subnets.acquire(&request), Err(Error::Spec(spec::Error::Reserved { .. }))));
        assert!(subnets.used.is_empty());
    }

    #[test]
    fn pools_without_room_are_refused() {
        for bad in ["10.0.0.0/31", "10.0.0.0/32", "0.0.0.0/0", "127.0.0.0/16", "10.0.0.0/4"] {
            assert!(matches!(Subnets::new(net(bad)), Err(Error::Pool { .. })), "{bad}");
        }
        assert_eq!(pool("10.0.0.7/30").capacity(), 1);
        assert_eq!(pool("10.0.0.0/8").capacity(), 1 << 22);
    }

    #[test]
    fn restored_leases_are_not_given_again() {
        let mut subnets = pool("10.254.0.0/28");
        let dynamic = subnets.restore(net("10.254.0.4/30"), ip("10.254.0.6")).unwrap();
        assert_eq!(dynamic, lease("10.254.0.4/30", "10.254.0.6", "10.254.0.5"));
        assert_eq!(subnets.restore(dynamic.subnet, dynamic.ip), Err(Error::Taken));
        subnets.restore(net("10.253.0.0/24"), ip("10.253.0.2")).unwrap();
        assert_eq!(acquire(&mut subnets, "10.253.0.0/24").unwrap().ip, ip("10.253.0.3"));
        let given: Vec<Ipv4Net> = (0..3).map(|_| subnets.reserve_dynamic().unwrap().subnet).collect();
        assert_eq!(given, [net("10.254.0.0/30"), net("10.254.0.8/30"), net("10.254.0.12/30")]);
        assert!(subnets.release(&dynamic));
        assert_eq!(subnets.reserve_dynamic(), Ok(dynamic));
        for (subnet, address) in
            [("10.254.1.0/30", "10.254.1.1"), ("10.254.1.0/30", "10.254.1.3"), ("127.0.0.0/30", "127.0.0.2")]
        {
            assert!(subnets.restore(net(subnet), ip(address)).is_err(), "{subnet} {address}");
        }
    }

    #[test]
    fn leases_of_an_earlier_pool_live_on() {
        let mut subnets = pool("10.254.0.0/27");
        let old = subnets.restore(net("10.254.0.8/29"), ip("10.254.0.10")).unwrap();
        subnets.restore(net("10.1.0.0/30"), ip("10.1.0.2")).unwrap();
        let overlapping = subnets.restore(net("10.254.0.12/30"), ip("10.254.0.14"));
        assert_eq!(
            overlapping,
            Err(Error::OverlapsSubnet { subnet: net("10.254.0.12/30"), existing: old.subnet })
        );
        let given: Vec<u8> = (0..6).map(|_| subnets.reserve_dynamic().unwrap().ip.octets()[3]).collect();
        assert_eq!(given, [2, 6, 18, 22, 26, 30]);
        assert_eq!(subnets.reserve_dynamic(), Err(Error::NoSubnet));
        assert!(subnets.release(&old));
        assert_eq!(subnets.reserve_dynamic().unwrap().ip, ip("10.254.0.10"));
        assert_eq!(subnets.reserve_dynamic().unwrap().ip, ip("10.254.0.14"));
    }

    #[test]
    fn what_the_host_uses_is_withheld_until_it_is_tried_again() {
        let mut subnets = pool("10.254.0.0/27");
        let first = subnets.reserve_dynamic().unwrap();
        subnets.withhold(net("10.254.0.0/28"));
        subnets.withhold(net("10.254.0.22/32"));
        subnets.withhold(net("192.168.0.0/16"));
        let given: Vec<u8> = (0..3).map(|_| subnets.reserve_dynamic().unwrap().ip.octets()[3]).collect();
        assert_eq!(given, [18, 26, 30]);
        assert_eq!(subnets.reserve_dynamic(), Err(Error::NoSubnet));
        assert!(subnets.is_used(first.subnet) && subnets.release(&first));
        assert_eq!(subnets.reserve_dynamic(), Ok(first));
        subnets.restore(net("10.254.0.8/30"), ip("10.254.0.10")).unwrap();
        subnets.retry_withheld();
        let given: Vec<u8> = (0..3).map(|_| subnets.reserve_dynamic().unwrap().ip.octets()[3]).collect();
        assert_eq!(given, [6, 14, 22]);
        subnets.withhold(net("0.0.0.0/0"));
        assert_eq!(subnets.reserve_dynamic(), Err(Error::NoSubnet));
    }

    /// Any order of operations against sets of addresses.
    #[test]
    fn no_address_is_given_twice() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..50 {
            let mut subnets = pool("10.254.0.0/27");
            let mut leases: Vec<Lease> = Vec::new();
            for _ in 0..200 {
                let prefix = random.u8(27..=30);
                let address = Ipv4Addr::from(u32::from(ip("10.253.255.192")) + random.u32(0..96));
                let wanted = Ipv4Net::new(address, prefix).unwrap();
                let got = match random.u32(0..8) {
                    0 | 1 => subnets.reserve_dynamic(),
                    2 => subnets.acquire(&Request::Subnet(wanted)),
                    3 => subnets.acquire(&Request::Address { subnet: wanted, ip: address }),
                    4 => subnets.restore(wanted, address),
                    5 => {
                        subnets.withhold(wanted);
                        continue;
                    }
                    6 => {
                        subnets.retry_withheld();
                        continue;
                    }
                    _ if leases.is_empty() => continue,
                    _ => {
                        let lease = leases.swap_remove(random.usize(0..leases.len()));
                        let last = leases.iter().all(|other| other.subnet != lease.subnet);
                        assert_eq!(subnets.release(&lease), last, "seed {seed}: {lease:?}");
                        assert_eq!(subnets.is_used(lease.subnet), !last, "seed {seed}: {lease:?}");
                        continue;
                    }
                };
                let Ok(lease) = got else { continue };
                assert!(leases.iter().all(|other| other.ip != lease.ip), "seed {seed}: {lease:?}");
                let apart = |other: &Lease| {
                    other.subnet == lease.subnet
                        || !(other.subnet.contains(&lease.subnet) || lease.subnet.contains(&other.subnet))
                };
                assert!(leases.iter().all(apart), "seed {seed}: {lease:?}");
                leases.push(lease);
            }
            for lease in leases.drain(..) {
                subnets.release(&lease);
            }
            subnets.retry_withheld();
            assert!(subnets.used.is_empty(), "seed {seed}");
            assert_eq!(subnets.free, Ranges::new(0, 7), "seed {seed}");
        }
    }

    #[test]
    #[ignore = "a measurement"]
    fn a_lease_costs_the_same_with_many_others() {
        let mut subnets = pool("10.0.0.0/8");
        for others in [0, 10_000, 100_000] {
            while subnets.used.len() < others {
                subnets.reserve_dynamic().unwrap();
            }
            let start = Instant::now();
            for _ in 0..1000 {
                let dynamic = subnets.reserve_dynamic().unwrap();
                let shared = subnets.acquire(&Request::Subnet(net("172.16.0.0/12"))).unwrap();
                subnets.release(&dynamic);
                subnets.release(&shared);
            }
            println!("{others} subnets: two leases taken and released in {:?}", start.elapsed() / 1000);
        }
    }
}
