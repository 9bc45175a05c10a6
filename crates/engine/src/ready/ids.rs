//! Host ids of containers: the owner of a container's user namespace, and the ids of its users.
//!
//! Each container's user namespace has an owner that no other container has (why, and why no one gains by
//! running as an owner: `wardian_sys::namespace`). Owners are ids from 2^31 upwards, which no one assigns:
//! systemd counts them as unusable, since some programs take them for negative numbers, and subordinate ids
//! end below. Where this user namespace has no such ids, owners come from the top of its ids. The first owner
//! is random and the others follow it, so that servers on one host hardly collide; if they did, two
//! containers would share what the kernel counts per owner (namespaces(7), `/proc/sys/user`).
//!
//! Users have the same host ids in all containers (Garden's mapping), unless the server has `--id-ranges`.

use crate::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;
use wardian_network::{Networks, Veth};
use wardian_sys::namespace::{self, IdMap, Pair};

/// The least size of a range: images know users up to `nobody`, 65534, and a file of a user beyond the range
/// could neither be changed nor copied.
const SMALLEST: u32 = 65_536;
/// The first id that no one assigns.
const NOBODYS: u32 = 1 << 31;
/// The overflow uid and gid (`nobody`), as which the kernel shows ids that it cannot map.
const OVERFLOW: u32 = 65_534;

/// How host ids are divided among containers: the first range begins at `start`, the next ones follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRanges {
    /// First host id of the first range; not 0.
    pub start: u32,
    /// Ids of each range; at least 65536.
    pub size: u32,
}

impl FromStr for IdRanges {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let Some((start, size)) = numbers else {
            return Err(format!("id-ranges: {text:?} is not START:SIZE, such as 100000:65536"));
        };
        if start == 0 {
            return Err("id-ranges: the host's root (id 0) cannot be a container's".to_owned());
        }
        if size < SMALLEST {
            return Err(format!("id-ranges: {size} ids are too few for a container, it needs {SMALLEST}"));
        }
        match u32::checked_add(start, size) {
            Some(end) if end <= NOBODYS => Ok(Self { start, size }),
            _ => Err(format!("id-ranges: the first range ends beyond {NOBODYS}")),
        }
    }
}

/// The host ids of one container's users: `first` is its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// Host id of container root.
    pub first: u32,
    /// The number of ids.
    pub size: u32,
}

/// The host ids of one container, reserved until this is dropped.
#[derive(Debug)]
pub struct Lease {
    ids: Ids,
    /// The owner of the container's user namespace; 0 for containers of earlier servers.
    pub owner: u32,
    /// The ids of the container's users; `None`: the common mapping.
    pub range: Option<IdRange>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = self.ids.lock();
        taken.owners.remove(&self.owner);
        if let Some(range) = self.range {
            taken.ranges.remove(&range.first);
        }
    }
}

/// Namespaces made ahead for a container. A privileged container has no lease.
#[derive(Debug)]
pub struct Home {
    pub pair: Pair,
    pub lease: Option<Lease>,
    /// Links the network namespace with the host's, unless containers have loopback alone.
    pub veth: Option<Veth>,
}

impl Home {
    pub fn new(pair: Pair, lease: Option<Lease>, networks: &Networks) -> std::io::Result<Self> {
        let veth = networks.veth(pair.network.as_fd()).map_err(std::io::Error::other)?;
        Ok(Self { pair, lease, veth })
    }
}

/// All host ids for containers; clones share the set of taken ones.
#[derive(Debug, Clone)]
pub struct Ids(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Ids that may become owners.
    owners: Range<u32>,
    /// Host id of container root in the common mapping.
    root: u32,
    ranges: Option<IdRanges>,
    /// Ranges end at or below this id.
    limit: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    /// Where the search for a free owner begins.
    next: u32,
    owners: HashSet<u32>,
    /// The sizes of the taken ranges by their first ids. The ranges do not overlap.
    ranges: BTreeMap<u32, u32>,
}

impl Ids {
    /// Finds the usable ids in the id maps of this user namespace (`user_namespaces(7)`).
    ///
    /// # Errors
    /// There are not enough ids; in words.
    pub fn new(uid_map: &str, gid_map: &str, ranges: Option<IdRanges>) -> std::result::Result<Self, String> {
        let root = highest(uid_map);
        let both = common(&extents(uid_map), &extents(gid_map));
        let longest = |lowest: u32| {
            let cut = |part: &Range<u32>| part.start.max(lowest)..part.end.min(root);
            both.iter().map(cut).filter(|part| part.start < part.end).max_by_key(ExactSizeIterator::len)
        };
        // In a small user namespace owners come from the upper quarter, where the namespace's own users are
        // few.
        let owners = longest(NOBODYS).or_else(|| longest(root - root / 4));
        let owners = owners.ok_or("this user namespace has no ids to spare for the owners of containers")?;
        let mut limit = owners.start;
        if let Some(IdRanges { start, size }) = ranges {
            let part = both.iter().find(|part| part.contains(&start)).cloned().unwrap_or_default();
            limit = limit.min(part.end);
            if limit.checked_sub(start).is_none_or(|room| room < size) {
                return Err(format!("id-ranges: there is no room for {size} ids from {start} to {limit}"));
            }
        }
        let random = uuid::Uuid::new_v4().as_u64_pair().1 % u64::from(owners.end - owners.start);
        let next = owners.start + random as u32;
        let taken = Mutex::new(Taken { next, owners: HashSet::new(), ranges: BTreeMap::new() });
        Ok(Self(Arc::new(Inner { owners, root, ranges, limit, taken })))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock()
    }

    /// Marks the ids of an earlier server's container as taken. It is called before any lease is given out.
    pub fn keep(&self, owner: u32, range: Option<IdRange>) {
        let mut taken = self.lock();
        if owner != 0 {
            taken.owners.insert(owner);
        }
        taken.ranges.extend(range.map(|range| (range.first, range.size)));
    }

    /// Returns the lease of a container whose ids were [kept](Ids::keep).
    pub fn kept(&self, owner: u32, range: Option<IdRange>) -> Lease {
        Lease { ids: self.clone(), owner, range }
    }

    /// Leases ids for a new container.
    ///
    /// # Errors
    /// All ids are taken; in words.
    fn lease(&self) -> std::result::Result<Lease, String> {
        let mut guard = self.lock();
        let (taken, inner) = (&mut *guard, &self.0);
        let range = match inner.ranges {
            None => None,
            Some(ranges) => {
                let free = inner.free_range(ranges, &taken.ranges);
                Some(free.ok_or("all of --id-ranges is taken by containers")?)
            }
        };
        let owner = inner.free_owner(taken).ok_or("all ids for owners of containers are taken")?;
        taken.owners.insert(owner);
        taken.ranges.extend(range.map(|range| (range.first, range.size)));
        drop(guard);
        Ok(Lease { ids: self.clone(), owner, range })
    }

    /// Makes namespaces for an unprivileged container, with ids that no other container has.
    ///
    /// # Errors
    /// The kernel refuses, or all ids are taken.
    pub fn make(&self, networks: &Networks) -> std::io::Result<Home> {
        let lease = self.lease().map_err(std::io::Error::other)?;
        let maps = self.maps(lease.range);
        Home::new(namespace::pair(&maps, &maps, lease.owner)?, Some(lease), networks)
    }

    /// Returns the id mapping of a container with this range.
    pub fn maps(&self, range: Option<IdRange>) -> Vec<IdMap> {
        match range {
            Some(IdRange { first, size }) => vec![IdMap { inside: 0, outside: first, size }],
            None => {
                let root = self.0.root;
                vec![
                    IdMap { inside: 0, outside: root, size: 1 },
                    IdMap { inside: 1, outside: 1, size: root - 1 },
                ]
            }
        }
    }

    /// Returns the host uid and gid of the root of a container with this range.
    pub fn root(&self, range: Option<IdRange>) -> u32 {
        range.map_or(self.0.root, |range| range.first)
    }

    /// Returns, in words, users and subordinate ids of the host that overlap with ids that containers could
    /// be given. `passwd` is the text of /etc/passwd, `subordinate` that of /etc/subuid or /etc/subgid,
    /// `most` the largest number of containers (0: no bound), and `spares` the number of ranges that are
    /// leased ahead of them.
    pub fn overlaps(
        &self,
        passwd: &str,
        subordinate: &[(&str, String)],
        most: u64,
        spares: u64,
    ) -> Vec<String> {
        let Some(IdRanges { start, size }) = self.0.ranges else { return Vec::new() };
        let (start, limit) = (u64::from(start), u64::from(self.0.limit));
        let count = most.saturating_add(spares);
        let end = if most == 0 {
            limit
        } else {
            limit.min(count.saturating_mul(size.into()).saturating_add(start))
        };
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let number = |fields: &[String], at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let mut found = Vec::new();
        for user in passwd.lines().map(fields) {
            if let Some(uid) = number(&user, 2)
                && (start..end).contains(&uid)
            {
                found.push(format!("user {} ({uid}) of /etc/passwd", user[0]));
            }
        }
        for (name, text) in subordinate {
            for line in text.lines().map(fields) {
                if let (Some(first), Some(count)) = (number(&line, 1), number(&line, 2))
                    && first < end
                    && first.saturating_add(count) > start
                {
                    found.push(format!("{first}:{count} of {} in {name}", line[0]));
                }
            }
        }
        found
    }
}

impl Inner {
    fn free_owner(&self, taken: &mut Taken) -> Option<u32> {
        // Enough tries to pass all taken owners and `nobody`.
        for _ in 0..taken.owners.len() + 2 {
            let owner = taken.next;
            taken.next = if owner + 1 < self.owners.end { owner + 1 } else { self.owners.start };
            if owner != OVERFLOW && !taken.owners.contains(&owner) {
                return Some(owner);
            }
        }
        None
    }

    /// Returns the lowest free range.
    fn free_range(&self, ranges: IdRanges, taken: &BTreeMap<u32, u32>) -> Option<IdRange> {
        let IdRanges { start, size } = ranges;
        let room = (self.limit - start) / size;
        let mut firsts = (0..room).map(|n| start + n * size);
        // Ranges of an earlier server may have had another size.
        let first = firsts.find(|first| {
            let below = taken.range(..first + size).next_back();
            below.is_none_or(|(other, length)| other.saturating_add(*length) <= *first)
        })?;
        Some(IdRange { first, size })
    }
}

/// Reads the id maps of this process.
///
/// # Errors
/// The maps cannot be read, or have not enough ids.
pub fn own(ranges: Option<IdRanges>) -> Result<Ids> {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).map_err(Error::system("id maps"));
    Ids::new(&read("uid_map")?, &read("gid_map")?, ranges).map_err(Error::IdMaps)
}

/// Logs users and subordinate ids of the host that overlap with ids of containers; `most` and `spares` as for
/// [`Ids::overlaps`].
pub fn warn(ids: &Ids, most: u64, spares: u64) {
    let read = |path: &'static str| (path, std::fs::read_to_string(path).unwrap_or_default());
    let (_, passwd) = read("/etc/passwd");
    for what in ids.overlaps(&passwd, &[read("/etc/subuid"), read("/etc/subgid")], most, spares) {
        tracing::warn!(what, "id-ranges.overlap");
    }
}

/// Parses the ids that a user namespace has: the first column of its map, and the sizes.
fn extents(map: &str) -> Vec<Range<u32>> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().ok());
        let (start, _, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(u32::try_from(start).ok()?..u32::try_from(start.checked_add(size)?).unwrap_or(u32::MAX))
    };
    map.lines().filter_map(line).collect()
}

fn common(a: &[Range<u32>], b: &[Range<u32>]) -> Vec<Range<u32>> {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.start.max(b.start)..a.end.min(b.end)));
    pairs.filter(|part| part.start < part.end).collect()
}

/// Returns the highest id of a user namespace with this map (user_namespaces(7)): the host id of container root (Garden's
/// "maximus").
pub fn highest(uid_map: &str) -> u32 {
    extents(uid_map).iter().map(|part| part.end - 1).max().unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "         0          0 4294967295\n";
    const SMALL: &str = "0 100000 65536\n";

    fn ranges(text: &str) -> Option<IdRanges> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn container_root_is_the_highest_id() {
        assert_eq!(highest(WHOLE), 4_294_967_294);
        assert_eq!(highest("0 100000 65536\n65536 200000 10\n"), 65_545);
    }

    #[test]
    fn owners_are_nobodys_and_each_is_for_one() {
        let ids = Ids::new(WHOLE, WHOLE, None).unwrap();
        let leases: Vec<Lease> = (0..1000).map(|_| ids.lease().unwrap()).collect();
        let owners: HashSet<u32> = leases.iter().map(|lease| lease.owner).collect();
        assert_eq!(owners.len(), 1000);
        assert!(owners.iter().all(|owner| (NOBODYS..4_294_967_294).contains(owner)), "{owners:?}");
        drop(leases);
        assert!(ids.lock().owners.is_empty());
        // Another server begins at another owner.
        let other = Ids::new(WHOLE, WHOLE, None).unwrap().lease().unwrap();
        assert!(!owners.contains(&other.owner));
    }

    #[test]
    fn owners_in_a_small_user_namespace() {
        let ids = Ids::new(SMALL, SMALL, None).unwrap();
        assert_eq!(ids.0.owners, 49_152..65_535);
        let count = ids.0.owners.len() - 1;
        let leases: Vec<Lease> = (0..count).map(|_| ids.lease().unwrap()).collect();
        assert!(leases.iter().all(|lease| lease.owner != OVERFLOW && lease.owner < 65_535));
        assert!(ids.lease().unwrap_err().contains("owners"));
        drop(leases);
        ids.lease().unwrap();
        // An id must exist as a user and as a group.
        assert!(Ids::new(SMALL, "0 0 100\n", None).is_err());
        assert!(Ids::new(SMALL, SMALL, ranges("1000:65536")).unwrap_err().contains("no room"));
    }

    #[test]
    fn ranges_are_checked() {
        for (bad, why) in [
            ("", "START:SIZE"),
            ("100000", "START:SIZE"),
            ("100000:-1", "START:SIZE"),
            ("0:65536", "root"),
            ("100000:1000", "too few"),
            ("4294901760:65536", "beyond"),
            ("2147483647:65536", "beyond"),
            ("65536:4294967295", "beyond"),
        ] {
            let error = bad.parse::<IdRanges>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert_eq!("100000:65536".parse(), Ok(IdRanges { start: 100_000, size: 65_536 }));
    }

    #[test]
    fn each_container_has_the_lowest_range_that_nobody_has() {
        let ids = Ids::new(WHOLE, WHOLE, ranges("100000:65536")).unwrap();
        // A range of a server with other sizes, which overlaps the first and the second.
        let foreign = IdRange { first: 150_000, size: 70_000 };
        ids.keep(NOBODYS + 5, Some(foreign));
        let foreign = ids.kept(NOBODYS + 5, Some(foreign));
        let first = |lease: &Lease| lease.range.unwrap().first;
        let (a, b) = (ids.lease().unwrap(), ids.lease().unwrap());
        assert_eq!((first(&a), first(&b)), (100_000 + 2 * 65_536, 100_000 + 3 * 65_536));
        drop((a, foreign));
        let (a, c, d) = (ids.lease().unwrap(), ids.lease().unwrap(), ids.lease().unwrap());
        assert_eq!([&a, &c, &d].map(first), [100_000, 165_536, 231_072]);
        assert_eq!(ids.root(a.range), 100_000);
        assert_eq!(ids.maps(a.range), [IdMap { inside: 0, outside: 100_000, size: 65_536 }]);
        assert_eq!(ids.root(None), 4_294_967_294);
        // Two, and then no more.
        let few = Ids::new(WHOLE, WHOLE, ranges("2147352576:65536")).unwrap();
        let _both = (few.lease().unwrap(), few.lease().unwrap());
        assert!(few.lease().unwrap_err().contains("--id-ranges"));
    }

    #[test]
    fn what_has_the_ids_already_is_told() {
        let ids = Ids::new(WHOLE, WHOLE, ranges("100000:65536")).unwrap();
        let passwd = "root:x:0:0::/:/bin/sh\nfar:x:300000:1::/:/bin/sh\nodd\n";
        let subordinate = [("/etc/subuid", "u:99999:1\nv:99999:2\nodd:x:y\n".to_owned())];
        let told = ids.overlaps(passwd, &subordinate, 0, 2);
        assert_eq!(told, ["user far (300000) of /etc/passwd", "99999:2 of v in /etc/subuid"]);
        assert_eq!(ids.overlaps(passwd, &subordinate, 2, 0).len(), 1);
        assert!(Ids::new(WHOLE, WHOLE, None).unwrap().overlaps(passwd, &subordinate, 0, 0).is_empty());
        // The sixth range: spares are leased before it is needed, and lower ranges may be theirs.
        let sixth = [("/etc/subuid", "tester:427680:65536\n".to_owned())];
        assert!(ids.overlaps("", &sixth, 3, 0).is_empty());
        assert_eq!(ids.overlaps("", &sixth, 3, 12), ["427680:65536 of tester in /etc/subuid"]);
        assert!(ids.overlaps("", &sixth, u64::MAX, 12).len() == 1);
    }
}
