//! Parsers for the files of `/proc`. They take text, never files: the caller reads, so that tests and fuzz targets
//! can pass any input.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Why a file of `/proc` could not be parsed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A mountinfo line does not have the fields that proc_pid_mountinfo(5) names.
    #[error("mountinfo line {line}: {what}")]
    MountInfo {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A counter is missing or is not a number.
    #[error("{file} has no usable {field}")]
    Counter {
        /// The file of `/proc`.
        file: &'static str,
        /// The counter's name.
        field: &'static str,
    },
}

/// One mount, as in a line of `/proc/<pid>/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// The mount's id; reused after its unmount.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// The device of its file system, `major:minor`.
    pub device: String,
    /// The directory of its file system that the mount shows, unescaped.
    pub root: PathBuf,
    /// Where it is mounted, seen from the reading process's root; unescaped.
    pub mount_point: PathBuf,
    /// The mount's own options (`rw`, `nodev`, `idmapped`, …).
    pub mount_options: Vec<String>,
    /// The file system type, with its subtype where it has one (`fuse.sshfs`).
    pub fs_type: String,
    /// The source, unescaped: a device, or any name that the file system gives itself.
    pub source: PathBuf,
    /// The options of the superblock, still escaped because they are separated by commas.
    pub super_options: Vec<String>,
}

impl MountInfo {
    /// Whether this is a volatile overlay; kernels since about 6.6 write `fsync=volatile`, older ones `volatile`.
    pub fn is_volatile(&self) -> bool {
        self.super_options.iter().any(|option| option == "volatile" || option == "fsync=volatile")
    }
}

/// Sums up, from the text of `/proc/PID/net/dev`, the bytes that the links of a network namespace have received and
/// sent, Ethernet headers included and loopback left out. `None` if it is not such a text.
pub fn traffic(text: &str) -> Option<(u64, u64)> {
    let mut sum = (0_u64, 0_u64);
    for line in text.lines().skip(2) {
        // The name of a link has no white space, but may have a colon.
        let (name, counters) = line.rsplit_once(':')?;
        if name.trim() == "lo" {
            continue;
        }
        // Eight counters of what was received, then eight of what was sent; the first ones are bytes.
        let counters: Vec<u64> =
            counters.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let (received, sent) = counters.first().zip(counters.get(8))?;
        sum = (sum.0.wrapping_add(*received), sum.1.wrapping_add(*sent));
    }
    Some(sum)
}

/// Parses a whole `mountinfo` file, in its order. Names in it are bytes: a user who may mount something with
/// fusermount(1) or udisks chooses the mount point's name, which need not be UTF-8.
pub fn mountinfo(text: impl AsRef<[u8]>) -> Result<Vec<MountInfo>, Error> {
    text.as_ref()
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| mountinfo_line(line).map_err(|what| Error::MountInfo { line: index + 1, what }))
        .collect()
}

fn mountinfo_line(line: &[u8]) -> Result<MountInfo, &'static str> {
    // The number of optional fields varies; a lone hyphen ends them.
    let separator = b" - ";
    let at = line.windows(separator.len()).position(|part| part == separator).ok_or("no separator")?;
    let (own, rest) = (&line[..at], &line[at + separator.len()..]);
    let fields = |text| <[u8]>::split(text, |byte| *byte == b' ');
    let mut own = fields(own);
    let mut next = |what| own.next().ok_or(what);
    let number = |field, what| str::from_utf8(field).ok().and_then(|field| field.parse().ok()).ok_or(what);
    let id = number(next("no id")?, "the id is not a number")?;
    let parent = number(next("no parent")?, "the parent is not a number")?;
    let device = word(next("no device")?);
    let root = unescape(next("no root")?);
    let mount_point = unescape(next("no mount point")?);
    let mount_options = options(next("no options")?);
    let mut rest = fields(rest);
    let fs_type = rest.next().filter(|name| !name.is_empty()).map(word).ok_or("no file system type")?;
    // An empty source is printed as nothing at all, between two blanks.
    let source = unescape(rest.next().ok_or("no source")?);
    let super_options = options(rest.next().unwrap_or_default());
    Ok(MountInfo { id, parent, device, root, mount_point, mount_options, fs_type, source, super_options })
}

/// Decodes a word of the kernel's own, or an option: there a byte that is not UTF-8 only makes it an unknown one.
fn word(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn options(text: &[u8]) -> Vec<String> {
    text.split(|byte| *byte == b',').filter(|option| !option.is_empty()).map(word).collect()
}

/// Undoes the kernel's `\ooo` escapes (blank, tab, newline, backslash, hash). Anything that only looks like an escape
/// stays as it is.
fn unescape(field: &[u8]) -> PathBuf {
    let mut rest = field;
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&first, tail)) = rest.split_first() {
        let octal = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Memory of the host, and its pages that wait for writeback, from `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemInfo {
    /// All memory (`MemTotal`).
    pub total: u64,
    /// The kernel's estimate of what a program could use without swapping (`MemAvailable`).
    pub available: u64,
    /// Dirty pages that are not under writeback yet.
    pub dirty: u64,
    /// Pages under writeback.
    pub writeback: u64,
}

/// Parses `/proc/meminfo`.
pub fn meminfo(text: &str) -> Result<MemInfo, Error> {
    let kibibytes = |field: &'static str| {
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024))
            .ok_or(Error::Counter { file: "meminfo", field })
    };
    Ok(MemInfo {
        total: kibibytes("MemTotal")?,
        available: kibibytes("MemAvailable")?,
        dirty: kibibytes("Dirty")?,
        writeback: kibibytes("Writeback")?,
    })
}

/// Page counts of the whole host since boot, from `/proc/vmstat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmStat {
    /// Pages made dirty (`nr_dirtied`).
    pub dirtied: u64,
    /// Pages written to disks (`nr_written`).
    pub written: u64,
}

/// Parses `/proc/vmstat`.
pub fn vmstat(text: &str) -> Result<VmStat, Error> {
    let pages = |field: &'static str| {
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse().ok())
            .ok_or(Error::Counter { file: "vmstat", field })
    };
    Ok(VmStat { dirtied: pages("nr_dirtied")?, written: pages("nr_written")? })
}

/// Returns the processor time of a process, in ticks, from its `/proc/PID/stat` (`utime` and `stime`); `None`: the text
/// is none. The name in it, which the process chooses, may have any characters but ends at the last `)`.
pub fn processor_ticks(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(user.saturating_add(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_a_process_that_calls_itself_something_odd() {
        let text = "7 (a) R 1) S 1 7 7 0 -1 4194560 1 2 3 4 50 6 7 8 20 0 1 0 9 0 0";
        assert_eq!(processor_ticks(text), Some(56));
        assert_eq!((processor_ticks("7 (a"), processor_ticks("7 (a) S 1")), (None, None));
    }

    #[test]
    fn traffic_of_all_links_but_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     900      10    0    0    0     0          0         0      900      10    0    0    0     0       0          0
  eth0:    1500       3    0    0    0     0          0         0      700       2    0    0    0     0       0          0
eth0:1:      20       1    0    0    0     0          0         0       30       1    0    0    0     0       0          0
";
        assert_eq!(traffic(text), Some((1520, 730)));
        assert_eq!(traffic(""), Some((0, 0)));
        assert_eq!(traffic("a\nb\nno such line\n"), None);
        assert_eq!(traffic("a\nb\neth0: 1 2 3\n"), None);
    }

    #[test]
    fn mountinfo_lines() {
        let text = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
90 22 0:40 / /a\\040b\\134\\012\\9 ro - overlay over\\040lay rw,lowerdir+=/,upperdir=/upper,fsync=volatile
91 22 0:41 / /c rw - tmpfs  rw
";
        let mounts = mountinfo(text).unwrap();
        assert_eq!(mounts.len(), 4);
        assert_eq!((mounts[0].id, mounts[0].parent), (22, 1));
        assert_eq!(mounts[0].source, PathBuf::from("/dev/vda"));
        assert_eq!(mounts[1].root, PathBuf::from("/mnt1"));
        assert_eq!(mounts[1].fs_type, "ext3");
        assert_eq!(mounts[1].super_options, ["rw", "errors=continue"]);
        assert_eq!(mounts[2].mount_point, PathBuf::from("/a b\\\n\\9"));
        assert_eq!(mounts[2].source, PathBuf::from("over lay"));
        assert!(mounts[2].is_volatile());
        assert!(!mounts[1].is_volatile());
        assert_eq!(mounts[3].source, PathBuf::new());
        assert_eq!(mounts[3].super_options, ["rw"]);
    }

    #[test]
    fn a_mount_point_is_bytes() {
        let text = b"22 1 0:25 / /bad\xff rw - ramfs none\xfe rw,x=\xff\n36 22 0:26 /\xff /mnt rw - tmpfs wardian rw\n";
        let mounts = mountinfo(text).unwrap();
        let bytes = |path: &PathBuf| path.as_os_str().as_encoded_bytes().to_vec();
        assert_eq!(bytes(&mounts[0].mount_point), b"/bad\xff");
        assert_eq!(bytes(&mounts[0].source), b"none\xfe");
        assert_eq!(mounts[0].super_options[0], "rw");
        assert_eq!((mounts[1].device.as_str(), bytes(&mounts[1].root)), ("0:26", b"/\xff".to_vec()));
        assert_eq!(mounts[1].mount_point, PathBuf::from("/mnt"));
    }

    #[test]
    fn broken_mountinfo_lines() {
        for (text, what) in [
            ("22 1 254:0 / / rw,relatime ext4 /dev/vda rw", "no separator"),
            ("x 1 254:0 / / rw - ext4 /dev/vda rw", "the id is not a number"),
            ("22 1 - ext4 /dev/vda rw", "no device"),
            ("22 1 254:0 / / rw - ext4", "no source"),
        ] {
            assert_eq!(mountinfo(text), Err(Error::MountInfo { line: 1, what }), "{text}");
        }
    }

    #[test]
    fn counters() {
        let text = "MemTotal: 10 kB\nMemAvailable:    7 kB\nDirty:               104 kB\n\
                    Writeback:             8 kB\nWritebackTmp: 1 kB\n";
        let read = MemInfo { total: 10 * 1024, available: 7 * 1024, dirty: 104 * 1024, writeback: 8 * 1024 };
        assert_eq!(meminfo(text), Ok(read));
        for (good, bad) in
            [("104 kB", "many kB"), ("104 kB", "18446744073709551615 kB"), ("MemAvailable", "Mem")]
        {
            assert!(meminfo(&text.replace(good, bad)).is_err(), "{bad}");
        }
        let text = "nr_dirty 3\nnr_dirtied 7\nnr_written 5\nnr_dirty_threshold 9\n";
        assert_eq!(vmstat(text), Ok(VmStat { dirtied: 7, written: 5 }));
        assert!(vmstat("nr_dirtied 7").is_err());
    }

    #[test]
    fn this_kernels_files() {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap();
        assert!(!mountinfo(std::fs::read("/proc/self/mountinfo").unwrap()).unwrap().is_empty());
        meminfo(&read("meminfo")).unwrap();
        vmstat(&read("vmstat")).unwrap();
    }
}
