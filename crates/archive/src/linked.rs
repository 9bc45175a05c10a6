//! Recognises files with several hard links while an archive is written.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

/// Limit of remembered inodes; further names become files of their own.
const MAX_INODES: usize = 100_000;
/// Limit in bytes of the remembered names.
const MAX_NAMES: usize = 16 << 20;

/// Identifies a file. A freed inode number is reused for another file: that one has a later birth time, or another
/// owner where the file system's clock is too coarse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Inode {
    device: u64,
    number: u64,
    owner: u32,
    born: SystemTime,
}

impl Inode {
    /// `None` if the file has one name only, or the file system does not report birth times.
    fn of(file: &Metadata) -> Option<Self> {
        if file.nlink() < 2 {
            return None;
        }
        let born = file.created().ok()?;
        Some(Self { device: file.dev(), number: file.ino(), owner: file.uid(), born })
    }
}

/// The names in an archive of files with several hard links, so that a later name becomes a link to the first one.
/// Memory is bounded: a name beyond the limits becomes an independent file in the archive.
#[derive(Debug, Default)]
pub struct Linked {
    /// The first name in the archive, and how many names may still come.
    first: HashMap<Inode, (Vec<u8>, u64)>,
    bytes: usize,
}

impl Linked {
    /// The name that a file already has in the archive. `file` must come from a descriptor, so that its values are
    /// consistent.
    pub fn first(&mut self, file: &Metadata) -> Option<Vec<u8>> {
        self.take(Inode::of(file)?)
    }

    /// Records that the whole file is in the archive under this name. `file` must come from the descriptor that was
    /// read.
    pub fn add(&mut self, file: &Metadata, name: &[u8]) {
        if let Some(inode) = Inode::of(file) {
            self.keep(inode, file.nlink(), name);
        }
    }

    fn take(&mut self, inode: Inode) -> Option<Vec<u8>> {
        let (name, left) = self.first.get_mut(&inode)?;
        let name = name.clone();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.first.remove(&inode);
            self.bytes -= name.len();
        }
        Some(name)
    }

    fn keep(&mut self, inode: Inode, names: u64, name: &[u8]) {
        let fits = self.first.len() < MAX_INODES && self.bytes + name.len() <= MAX_NAMES;
        if !fits || self.first.contains_key(&inode) {
            return;
        }
        self.bytes += name.len();
        self.first.insert(inode, (name.to_owned(), names - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn inode(number: u64) -> Inode {
        Inode { device: 1, number, owner: 0, born: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn a_later_name_leads_to_the_first_one() {
        let mut linked = Linked::default();
        assert_eq!(linked.take(inode(2)), None);
        linked.keep(inode(2), 3, b"a");
        assert_eq!(linked.take(Inode { device: 2, ..inode(2) }), None);
        assert_eq!(linked.take(inode(2)).as_deref(), Some(&b"a"[..]));
        assert_eq!(linked.take(inode(2)).as_deref(), Some(&b"a"[..]));
        // All names have come.
        assert_eq!((linked.take(inode(2)), linked.bytes), (None, 0));
    }

    #[test]
    fn a_number_that_another_file_has_got_leads_nowhere() {
        let mut linked = Linked::default();
        linked.keep(inode(2), 3, b"a");
        let later = SystemTime::UNIX_EPOCH + Duration::from_nanos(1);
        assert_eq!(linked.take(Inode { born: later, ..inode(2) }), None);
        assert_eq!(linked.take(Inode { owner: 1000, ..inode(2) }), None);
        assert!(linked.take(inode(2)).is_some());
    }

    #[test]
    fn a_file_of_one_name_is_not_kept() {
        let dir = std::env::temp_dir().join(format!("wardian-linked-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("a"), "").unwrap();
        let mut linked = Linked::default();
        linked.add(&dir.join("a").metadata().unwrap(), b"a");
        assert!(linked.first.is_empty());
        std::fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
        let metadata = dir.join("b").metadata().unwrap();
        linked.add(&metadata, b"a");
        // Without a birth time each name is a file of its own.
        let told = metadata.created().is_ok();
        assert_eq!(linked.first(&metadata).as_deref(), told.then_some(&b"a"[..]));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn memory_is_bounded() {
        let mut linked = Linked::default();
        (0..MAX_INODES as u64 + 10).for_each(|n| linked.keep(inode(n), 2, b"name"));
        assert_eq!((linked.first.len(), linked.bytes), (MAX_INODES, 4 * MAX_INODES));
        let mut linked = Linked::default();
        (0..6000).for_each(|n| linked.keep(inode(n), 2, &[b'x'; 4000]));
        assert!(linked.bytes <= MAX_NAMES && linked.first.len() == MAX_NAMES / 4000);
    }
}
