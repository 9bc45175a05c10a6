//! The guest's disk: a sparse file with an empty file system, whose speed QEMU holds down.

use super::children;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// Time limit of mkfs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A type of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filesystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

/// Features of ext4 that kernels since 3.18 know. Everything is initialised by mkfs: a thread of the kernel that does it
/// later would write during the experiment.
const EXT4: [&str; 8] = [
    "-q",
    "-F",
    "-O",
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
    "-N",
    "65536",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
];
/// A newer mkfs.xfs sets features that older kernels refuse; an older one does not know the options that unset these. The
/// first that works is taken.
const XFS: [&[&str]; 4] = [
    &[
        "-q",
        "-f",
        "-K",
        "-m",
        "bigtime=0,inobtcount=0,rmapbt=0",
        "-i",
        "nrext64=0,exchange=0",
        "-n",
        "parent=0",
    ],
    &["-q", "-f", "-K", "-m", "bigtime=0,inobtcount=0,rmapbt=0", "-i", "nrext64=0"],
    &["-q", "-f", "-K", "-m", "bigtime=0,inobtcount=0"],
    &["-q", "-f", "-K"],
];

impl Filesystem {
    /// Its name for mount(8), which is that of its module.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn mkfs(self) -> (&'static str, &'static str) {
        match self {
            Self::Ext4 => ("mkfs.ext4", "e2fsprogs"),
            Self::Xfs => ("mkfs.xfs", "xfsprogs"),
        }
    }

    /// Checks that the host can make one.
    ///
    /// # Errors
    /// mkfs is missing; the error names its package.
    pub(super) fn check(self) -> Result<()> {
        let (program, package) = self.mkfs();
        children::find(program, package).map(drop)
    }
}

/// Makes a sparse file of this size with an empty file system.
///
/// # Errors
/// mkfs is missing or fails, or the disk is full.
pub(super) async fn make(path: &Path, bytes: u64, fs: Filesystem) -> Result<()> {
    let file = std::fs::File::create_new(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("make {}", path.display()))?;
    let (program, package) = fs.mkfs();
    let attempts: &[&[&str]] = match fs {
        Filesystem::Ext4 => &[&EXT4],
        Filesystem::Xfs => &XFS,
    };
    let mut result = Ok(Vec::new());
    for options in attempts {
        let mut command = Command::new(program);
        command.args(*options).arg(path);
        result = children::output(command, package, PATIENCE).await;
        if result.is_ok() {
            break;
        }
    }
    result.map(drop).with_context(|| format!("make a disk with {}", fs.name()))
}

/// Parses a number of bytes: `50M` is 50 million, `4G` 4 billion.
///
/// # Errors
/// It is no such number.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = || format!("{text:?} is no number of bytes such as 50M (50 million) or 4G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => anyhow::bail!(wrong()),
    };
    ensure!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()), wrong());
    let number: u64 = digits.parse().with_context(wrong)?;
    number.checked_mul(unit).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_and_sizes() {
        for (text, bytes) in
            [("50M", 50_000_000), ("4G", 4_000_000_000), ("1k", 1000), ("7", 7), ("2MB", 2_000_000)]
        {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for bad in
            ["", "M", "-1M", "1.5G", "50MiB", "5 M", "99999999999999999999", "18446744073709551615G", "é"]
        {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_disk_has_a_file_system() {
        let dir = tempfile::tempdir().unwrap();
        for (fs, at, magic) in
            [(Filesystem::Ext4, 0x438, &b"\x53\xef"[..]), (Filesystem::Xfs, 0, &b"XFSB"[..])]
        {
            if fs.check().is_err() {
                continue;
            }
            let path = dir.path().join(fs.name());
            make(&path, 1_000_000_000, fs).await.unwrap();
            let mut found = vec![0; magic.len()];
            let file = std::fs::File::open(&path).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, at).unwrap();
            assert_eq!(found, magic);
            // A second one does not overwrite it.
            assert!(make(&path, 1_000_000_000, fs).await.is_err());
        }
        if Filesystem::Ext4.check().is_ok() {
            let small = make(&dir.path().join("small"), 4096, Filesystem::Ext4).await.unwrap_err();
            assert!(format!("{small:#}").contains("mkfs.ext4"), "{small:#}");
        }
    }
}
