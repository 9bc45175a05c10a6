//! Files that have several names, while an archive is written.

use std::collections::HashMap;

/// Inodes that are kept at a time; the names of others become files of their own.
const MAX_INODES: usize = 100_000;
/// Bytes that their names may take.
const MAX_NAMES: usize = 16 << 20;

/// The names in an archive of files that have others, so that a later name becomes a link to the first one. What does not
/// fit becomes a second file in the archive, as if it had nothing to do with the first one: its memory is bounded.
#[derive(Debug, Default)]
pub struct Linked {
    /// By device and inode: the name in the archive, and how many names may still come.
    first: HashMap<(u64, u64), (Vec<u8>, u64)>,
    bytes: usize,
}

impl Linked {
    /// The name under which a file is in the archive already; `inode` is its device and number, and `names` are all that it has.
    pub fn first(&mut self, inode: (u64, u64), names: u64) -> Option<Vec<u8>> {
        if names < 2 {
            return None;
        }
        let (name, left) = self.first.get_mut(&inode)?;
        let name = name.clone();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.first.remove(&inode);
            self.bytes -= name.len();
        }
        Some(name)
    }

    /// It is in the archive now, whole, and is called so.
    pub fn add(&mut self, inode: (u64, u64), names: u64, name: &[u8]) {
        let fits = self.first.len() < MAX_INODES && self.bytes + name.len() <= MAX_NAMES;
        if names < 2 || !fits || self.first.contains_key(&inode) {
            return;
        }
        self.bytes += name.len();
        self.first.insert(inode, (name.to_owned(), names - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_name_leads_to_the_first_one() {
        let mut linked = Linked::default();
        assert_eq!(linked.first((1, 2), 3), None);
        linked.add((1, 2), 3, b"a");
        assert_eq!((linked.first((2, 2), 3), linked.first((1, 2), 1)), (None, None));
        assert_eq!(linked.first((1, 2), 3).as_deref(), Some(&b"a"[..]));
        assert_eq!(linked.first((1, 2), 3).as_deref(), Some(&b"a"[..]));
        // All have come: the inode may be another file's next.
        assert_eq!((linked.first((1, 2), 3), linked.bytes), (None, 0));
        linked.add((1, 3), 1, b"alone");
        assert!(linked.first.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut linked = Linked::default();
        (0..MAX_INODES as u64 + 10).for_each(|n| linked.add((0, n), 2, b"name"));
        assert_eq!((linked.first.len(), linked.bytes), (MAX_INODES, 4 * MAX_INODES));
        let mut linked = Linked::default();
        (0..6000).for_each(|n| linked.add((0, n), 2, &[b'x'; 4000]));
        assert!(linked.bytes <= MAX_NAMES && linked.first.len() == MAX_NAMES / 4000);
    }
}
