//! Ports of the host that lead to ports of containers (Garden server §4.6, NetIn).
//!
//! A port is asked for by its number, or taken from the pool: the one that has been free for longest. TCP and UDP
//! have ports of their own, with the same pool of numbers.
//!
//! Two things differ from Garden. A port of the pool that is asked for by its number is taken out of the pool while it
//! is mapped, so that nobody else gets it. And a port that is mapped to one container is refused to all others: in
//! Garden both creates succeed and the later container receives nothing. The *same* container may map a port again, to
//! another port of its own: the reply names the new mapping, and packets keep going where the first one leads.
//!
//! One container gets at most a [share](share) of the pool, so that it cannot take the pool away from all others.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fmt;

/// The highest port number.
const LAST: u32 = u16::MAX as u32;
/// One container gets at most this part of the pool …
const PART: u16 = 16;
/// … or this many ports, whichever is more.
const LEAST_SHARE: u16 = 64;

/// The number of ports of a pool of `size` ports, for each protocol, from which on a container gets none without
/// naming it. Ports of the pool that it has named count as well.
fn share(size: u16) -> u32 {
    (size / PART).max(LEAST_SHARE).into()
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A port of the host that leads to a port of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mapping {
    /// The protocol.
    pub transport: Transport,
    /// The port on the host.
    pub host: u16,
    /// The port in the container.
    pub container: u16,
}

/// What a mapping changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The port was free: packets to it must now be sent to the container.
    First,
    /// The container has mapped the port before: packets keep going where that mapping leads.
    Repeated,
}

/// Why a port is not mapped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The pool has impossible ports.
    #[error("the port pool of {size} ports from {start} is not within the ports 1 to 65534")]
    Pool {
        /// The first port.
        start: u32,
        /// The number of ports.
        size: u32,
    },
    /// No port of the pool is free. The text is Garden's.
    #[error("port pool is exhausted")]
    Exhausted,
    /// The container has its share of the pool.
    #[error(
        "port pool: the container has {share} ports of the pool already, which is the most for one; name the port of the host, or give the server a larger pool (--port-pool-size)"
    )]
    Share {
        /// The most ports of the pool that one container gets.
        share: u32,
    },
    /// The number is no port.
    #[error("invalid {end} port: {port} is more than 65535")]
    Port {
        /// `host` or `container`.
        end: &'static str,
        /// The number.
        port: u32,
    },
    /// Another container has the port.
    #[error("{transport} port {port} of the host is already mapped to another container")]
    Mapped {
        /// The protocol.
        transport: Transport,
        /// The port.
        port: u16,
    },
}

/// All ports that are mapped, and the pool.
#[derive(Debug)]
pub struct Ports {
    start: u16,
    size: u16,
    tcp: Pool,
    udp: Pool,
}

#[derive(Debug)]
struct Pool {
    /// The free ports of the pool; the next one is in front.
    free: VecDeque<u16>,
    mapped: HashMap<u16, Mapped>,
    /// How many ports of the pool each container has that has any.
    taken: HashMap<Box<str>, u32>,
}

/// A mapped port.
#[derive(Debug)]
struct Mapped {
    owner: Box<str>,
    /// How often the owner has mapped it, at least once.
    times: u32,
}

impl Ports {
    /// Makes the pool of `size` ports from `start`. The first port taken is `start + offset`, what [`Ports::offset`]
    /// has returned before a restart; an offset beyond the pool counts as 0, because the pool was another one.
    ///
    /// # Errors
    ///
    /// `start` is 0, or `start + size` is more than 65535, as in Garden.
    pub fn new(start: u32, size: u32, offset: u32) -> Result<Self, Error> {
        let bad = Error::Pool { start, size };
        if start == 0 || start.saturating_add(size) > LAST {
            return Err(bad);
        }
        let (Ok(start), Ok(size)) = (u16::try_from(start), u16::try_from(size)) else { return Err(bad) };
        let mut free: VecDeque<u16> = (start..start + size).collect();
        if offset < u32::from(size) {
            free.rotate_left(offset as usize);
        }
        let pool = || Pool { free: free.clone(), mapped: HashMap::new(), taken: HashMap::new() };
        Ok(Self { start, size, tcp: pool(), udp: pool() })
    }

    /// Maps a port of the host to a port of the container `owner`. Host port 0 stands for any port of the pool,
    /// container port 0 for the same port as on the host.
    ///
    /// # Errors
    ///
    /// A number is no port, the pool is exhausted, the container has its share of it, or another container has the port.
    /// Nothing has changed then.
    pub fn map(
        &mut self,
        owner: &str,
        transport: Transport,
        host: u32,
        container: u32,
    ) -> Result<(Mapping, Effect), Error> {
        let port = |end, port| u16::try_from(port).map_err(|_| Error::Port { end, port });
        let (host, container) = (port("host", host)?, port("container", container)?);
        let host = match host {
            0 => self.next(owner, transport)?,
            host => host,
        };
        let mapping = Mapping { transport, host, container: if container == 0 { host } else { container } };
        let effect = self.restore(owner, &mapping)?;
        Ok((mapping, effect))
    }

    /// Returns the port of the pool that a container gets next.
    fn next(&mut self, owner: &str, transport: Transport) -> Result<u16, Error> {
        let share = share(self.size);
        let pool = self.pool(transport);
        let next = pool.free.front().copied().ok_or(Error::Exhausted)?;
        if pool.taken.get(owner).is_some_and(|taken| *taken >= share) {
            return Err(Error::Share { share });
        }
        Ok(next)
    }

    /// Maps the port of a mapping that exists, after a restart.
    ///
    /// # Errors
    ///
    /// Another container has the port.
    pub fn restore(&mut self, owner: &str, mapping: &Mapping) -> Result<Effect, Error> {
        let Mapping { transport, host: port, .. } = *mapping;
        let pooled = self.is_pooled(port);
        let pool = self.pool(transport);
        if let Some(mapped) = pool.mapped.get_mut(&port) {
            if *mapped.owner != *owner {
                return Err(Error::Mapped { transport, port });
            }
            mapped.times += 1;
            return Ok(Effect::Repeated);
        }
        pool.mapped.insert(port, Mapped { owner: owner.into(), times: 1 });
        // Mostly the first one; a pool has at most 128 KB of numbers.
        if let Some(place) = pool.free.iter().position(|free| *free == port) {
            pool.free.remove(place);
        }
        if pooled {
            *pool.taken.entry(owner.into()).or_default() += 1;
        }
        Ok(Effect::First)
    }

    /// Ends a mapping of the container `owner`: when the container is destroyed, and when the mapping could not be
    /// put into effect. Returns true when nothing is mapped to the port any more; a port of the pool is then free,
    /// behind all others. False, and no change, if the container does not have the port.
    pub fn unmap(&mut self, owner: &str, mapping: &Mapping) -> bool {
        let pooled = self.is_pooled(mapping.host);
        let pool = self.pool(mapping.transport);
        let Some(mapped) = pool.mapped.get_mut(&mapping.host).filter(|mapped| *mapped.owner == *owner) else {
            return false;
        };
        mapped.times -= 1;
        if mapped.times > 0 {
            return false;
        }
        pool.mapped.remove(&mapping.host);
        if pooled {
            pool.free.push_back(mapping.host);
            if let Some(taken) = pool.taken.get_mut(owner) {
                *taken -= 1;
                if *taken == 0 {
                    pool.taken.remove(owner);
                }
            }
        }
        true
    }

    fn is_pooled(&self, port: u16) -> bool {
        (self.start..self.start + self.size).contains(&port)
    }

    /// Returns how far from the pool's start the next TCP port is: what a restart continues with. 0 when none is
    /// free.
    pub fn offset(&self) -> u32 {
        self.tcp.free.front().map_or(0, |port| u32::from(port - self.start))
    }

    fn pool(&mut self, transport: Transport) -> &mut Pool {
        match transport {
            Transport::Tcp => &mut self.tcp,
            Transport::Udp => &mut self.udp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Effect::{First, Repeated};
    use super::Transport::{Tcp, Udp};
    use super::*;

    fn tcp(host: u16, container: u16) -> Mapping {
        Mapping { transport: Tcp, host, container }
    }

    #[test]
    fn the_replies_are_gardens() {
        let mut ports = Ports::new(61001, 4534, 3).unwrap();
        assert_eq!(ports.map("a", Tcp, 0, 8080), Ok((tcp(61004, 8080), First)));
        assert_eq!(ports.map("a", Tcp, 62001, 8081), Ok((tcp(62001, 8081), First)));
        assert_eq!(ports.map("a", Tcp, 0, 0), Ok((tcp(61005, 61005), First)));
        assert_eq!(ports.map("a", Tcp, 62001, 8082), Ok((tcp(62001, 8082), Repeated)));
        let error = ports.map("a", Tcp, 70000, 80).unwrap_err();
        assert_eq!(error.to_string(), "invalid host port: 70000 is more than 65535");
        let error = ports.map("a", Tcp, 0, 65536).unwrap_err();
        assert_eq!(error.to_string(), "invalid container port: 65536 is more than 65535");
        assert_eq!(ports.map("a", Tcp, 0, 1).unwrap().0.host, 61006, "an error takes no port");
    }

    #[test]
    fn ports_are_taken_in_the_order_of_their_release() {
        let mut ports = Ports::new(100, 3, 0).unwrap();
        let next = |ports: &mut Ports| ports.map("a", Tcp, 0, 1).map(|(mapping, _)| mapping.host);
        for port in [100, 101, 102] {
            assert_eq!(next(&mut ports), Ok(port));
        }
        assert_eq!(next(&mut ports).unwrap_err().to_string(), "port pool is exhausted");
        assert_eq!(ports.offset(), 0);
        assert!(ports.unmap("a", &tcp(102, 1)) && ports.unmap("a", &tcp(100, 1)));
        assert_eq!(ports.offset(), 2);
        assert_eq!((next(&mut ports), next(&mut ports)), (Ok(102), Ok(100)));
    }

    #[test]
    fn a_restart_continues_where_the_pool_was() {
        let order = |offset| {
            let mut ports = Ports::new(100, 4, offset).unwrap();
            ports.restore("old", &tcp(103, 1)).unwrap();
            std::iter::from_fn(|| ports.map("a", Tcp, 0, 1).ok())
                .map(|(mapping, _)| mapping.host)
                .collect::<Vec<_>>()
        };
        assert_eq!(order(0), [100, 101, 102]);
        assert_eq!(order(2), [102, 100, 101]);
        assert_eq!(order(3), [100, 101, 102]);
        assert_eq!(order(4), [100, 101, 102]);
        assert_eq!(order(u32::MAX), [100, 101, 102]);
    }

    #[test]
    fn a_port_asked_for_by_number_is_not_in_the_pool() {
        let mut ports = Ports::new(100, 3, 0).unwrap();
        assert_eq!(ports.map("a", Tcp, 101, 1).unwrap().1, First);
        assert_eq!(ports.map("b", Tcp, 0, 1).unwrap().0.host, 100);
        assert_eq!(ports.map("b", Tcp, 0, 1).unwrap().0.host, 102);
        assert_eq!(ports.map("b", Tcp, 0, 1), Err(Error::Exhausted));
        assert!(ports.unmap("a", &tcp(101, 1)));
        assert_eq!(ports.map("b", Tcp, 0, 1).unwrap().0.host, 101);
    }

    #[test]
    fn a_port_belongs_to_one_container() {
        let mut ports = Ports::new(100, 3, 0).unwrap();
        ports.map("a", Tcp, 80, 1).unwrap();
        let error = ports.map("b", Tcp, 80, 1).unwrap_err();
        assert_eq!(error.to_string(), "TCP port 80 of the host is already mapped to another container");
        assert_eq!(ports.restore("b", &tcp(80, 1)), Err(Error::Mapped { transport: Tcp, port: 80 }));
        assert_eq!(ports.restore("a", &tcp(80, 1)), Ok(Repeated));
        assert!(!ports.unmap("b", &tcp(80, 1)) && !ports.unmap("a", &tcp(81, 1)));
        assert!(
            !ports.unmap("a", &tcp(80, 1)) && ports.unmap("a", &tcp(80, 1)) && !ports.unmap("a", &tcp(80, 1))
        );
        assert_eq!(ports.map("b", Tcp, 80, 0), Ok((tcp(80, 80), First)));
    }

    #[test]
    fn each_protocol_has_its_ports() {
        let mut ports = Ports::new(100, 1, 0).unwrap();
        for transport in [Tcp, Udp] {
            assert_eq!(
                ports.map("a", transport, 0, 1).unwrap().0,
                Mapping { transport, host: 100, container: 1 }
            );
            assert_eq!(ports.map("b", transport, 80, 1).unwrap().1, First);
            assert_eq!(ports.map("a", transport, 0, 1), Err(Error::Exhausted));
        }
        assert!(ports.unmap("a", &Mapping { transport: Udp, host: 100, container: 1 }));
        assert_eq!(ports.map("a", Tcp, 0, 1), Err(Error::Exhausted));
    }

    #[test]
    fn one_container_gets_a_share_of_the_pool() {
        let mut ports = Ports::new(61001, 4534, 0).unwrap();
        for _ in 0..283 {
            ports.map("a", Tcp, 0, 1).unwrap();
        }
        let error = ports.map("a", Tcp, 0, 1).unwrap_err();
        assert_eq!(error, Error::Share { share: 283 });
        assert!(error.to_string().contains("--port-pool-size"), "{error}");
        // Ports that it names, those of the other protocol, and those of other containers are not concerned.
        assert!(ports.map("a", Tcp, 80, 1).is_ok() && ports.map("a", Udp, 0, 1).is_ok());
        let (mapping, _) = ports.map("a", Tcp, 65000, 1).unwrap();
        assert!(ports.map("b", Tcp, 0, 1).is_ok());
        // What goes makes room.
        assert!(ports.unmap("a", &mapping));
        assert_eq!(ports.map("a", Tcp, 0, 1), Err(Error::Share { share: 283 }));
        assert!(ports.unmap("a", &tcp(61001, 1)));
        assert!(ports.map("a", Tcp, 0, 1).is_ok());
        // A small pool is not divided, and a restart knows what each has.
        let mut ports = Ports::new(100, 70, 0).unwrap();
        for port in 100..164 {
            ports.restore("a", &tcp(port, 1)).unwrap();
        }
        assert_eq!(ports.map("a", Tcp, 0, 1), Err(Error::Share { share: 64 }));
        assert!(ports.map("b", Tcp, 0, 1).is_ok());
    }

    #[test]
    fn pools_beyond_the_last_port_are_refused() {
        for (start, size) in [(61001, 4535), (0, 10), (65536, 0), (u32::MAX, u32::MAX), (1, 65535)] {
            assert_eq!(Ports::new(start, size, 0).unwrap_err(), Error::Pool { start, size });
        }
        for (start, size) in [(61001, 4534), (1, 65534), (65535, 0)] {
            assert!(Ports::new(start, size, 0).is_ok(), "{start} {size}");
        }
        let mut none = Ports::new(100, 0, 0).unwrap();
        assert_eq!(none.map("a", Tcp, 0, 1), Err(Error::Exhausted));
        assert!(none.map("a", Tcp, 100, 1).is_ok() && none.unmap("a", &tcp(100, 1)));
        assert_eq!(none.offset(), 0);
    }

    #[test]
    fn mappings_are_kept_as_json() {
        let text = r#"{"transport":"tcp","host":62001,"container":8081}"#;
        assert_eq!(serde_json::to_string(&tcp(62001, 8081)).unwrap(), text);
        assert_eq!(serde_json::from_str::<Mapping>(text).unwrap(), tcp(62001, 8081));
    }
}
