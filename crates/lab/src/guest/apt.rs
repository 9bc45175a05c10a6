//! Kernels that apt offers. They are downloaded and never installed.

use super::children;
use anyhow::{Context, Result, bail, ensure};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// Prefix of the packages' names.
pub const PREFIX: &str = "linux-image-";
/// Time limit of a look into apt's lists.
const LOOK: Duration = Duration::from_secs(60);
/// Time limit of a download.
const DOWNLOAD: Duration = Duration::from_secs(900);
/// Limit of a package's size in bytes.
const MOST_DEB: u64 = 1 << 30;

/// The kernels that apt offers for 64-bit PCs, oldest first: those for clouds, which boot sooner, and the general ones.
///
/// # Errors
/// apt is missing or fails.
pub async fn offered() -> Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.args(["search", "--names-only", "^linux-image-[0-9].*amd64$"]);
    let output = children::output(command, "apt", LOOK).await.context("ask apt for its kernels")?;
    let text = String::from_utf8_lossy(&output);
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| is_image(name))
        .map(str::to_owned)
        .collect();
    names.sort_by(|a, b| natural(a, b));
    names.dedup();
    Ok(names)
}

/// Whether a package of this name has a kernel of one version: no metapackage, no kernel for real-time.
fn is_image(name: &str) -> bool {
    let Some(version) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix("-amd64")) else {
        return false;
    };
    // Metapackages are named 6.12-cloud-amd64.
    let numbers = version.split(['-', '+']).next().unwrap_or_default().split('.').count();
    numbers >= 3 && !version.ends_with("-rt") && is_package(name)
}

/// Whether this can be the name of a kernel package: apt's patterns and options are none.
pub fn is_package(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+.-~_".contains(c);
    name.len() <= 128
        && name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty() && rest.chars().all(plain))
}

/// The newest offered kernel of a short version: `6.12` or `6.1.0-50`, those for clouds first.
pub fn newest<'a>(offered: &'a [String], version: &str) -> Option<&'a str> {
    let of_version = |name: &&String| {
        let rest = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(version));
        rest.is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    };
    let matching = || offered.iter().filter(of_version);
    matching()
        .rfind(|name| name.ends_with("-cloud-amd64"))
        .or_else(|| matching().next_back())
        .map(String::as_str)
}

/// Downloads a package into an empty directory, and returns the file.
///
/// # Errors
/// apt is missing, does not know the package, or cannot fetch it.
pub async fn download(package: &str, into: &Path) -> Result<PathBuf> {
    ensure!(is_package(package), "{package:?} is no name of a kernel package");
    let mut command = Command::new("apt-get");
    // As root apt downloads as another user, who cannot write to our directory.
    command.args(["-qq", "-o", "APT::Sandbox::User=root", "download", "--", package]).current_dir(into);
    children::output(command, "apt", DOWNLOAD).await.with_context(|| {
        format!("fetch {package}: does `wardian lab bisect --list` have it, is the network there, are apt's lists new (apt-get update)?")
    })?;
    for entry in std::fs::read_dir(into).context("look at the download")? {
        let path = entry.context("look at the download")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let size = path.metadata().context("look at the download")?.len();
            ensure!(size <= MOST_DEB, "{package} is larger than 1 GiB");
            return Ok(path);
        }
    }
    bail!("apt-get download {package} has left no file")
}

/// Compares names as people do: runs of digits by their value.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while let ([x, ..], [y, ..]) = (a, b) {
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let ((p, rest_a), (q, rest_b)) = (a.split_at(digits(a)), b.split_at(digits(b)));
            let value = |text: &[u8]| {
                let zeros = text.iter().take_while(|byte| **byte == b'0').count();
                (text.len() - zeros, text[zeros..].to_vec())
            };
            match value(p).cmp(&value(q)) {
                Ordering::Equal => (a, b) = (rest_a, rest_b),
                different => return different,
            }
        } else if x == y {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return x.cmp(y);
        }
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_one_version_are_offered() {
        for (name, is) in [
            ("linux-image-6.1.0-57-cloud-amd64", true),
            ("linux-image-6.12.117+deb12-amd64", true),
            ("linux-image-6.12-cloud-amd64", false),
            ("linux-image-cloud-amd64", false),
            ("linux-image-6.1.0-57-rt-amd64", false),
            ("linux-image-6.1.0-57-amd64-unsigned", false),
            ("linux-image-amd64-signed-template", false),
            ("linux-headers-6.1.0-57-amd64", false),
        ] {
            assert_eq!(is_image(name), is, "{name}");
        }
    }

    #[test]
    fn names_of_packages() {
        assert!(is_package("linux-image-6.12.117+deb12-cloud-amd64"));
        for name in
            ["linux-image-", "--help", "linux-image-6.1 -o x", "linux-image-6.*", "bash", "linux-image-/x"]
        {
            assert!(!is_package(name), "{name}");
        }
    }

    #[test]
    fn the_newest_of_a_version() {
        let mut all: Vec<String> = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.12.107+deb12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.200+deb12-amd64",
            "linux-image-5.10.0-1-amd64",
        ]
        .map(str::to_owned)
        .into();
        all.sort_by(|a, b| natural(a, b));
        for (version, newest_of_it) in [
            ("6.1", Some("linux-image-6.1.0-50-cloud-amd64")),
            ("6.1.0-9", Some("linux-image-6.1.0-9-cloud-amd64")),
            ("6.12", Some("linux-image-6.12.107+deb12-cloud-amd64")),
            ("5.10", Some("linux-image-5.10.0-1-amd64")),
            ("6", Some("linux-image-6.12.107+deb12-cloud-amd64")),
            ("6.13", None),
            ("6.1.0-5", None),
        ] {
            assert_eq!(newest(&all, version), newest_of_it, "{version}");
        }
    }

    #[test]
    fn digits_compare_by_value() {
        for (smaller, larger) in
            [("a9", "a10"), ("6.1.0-9", "6.1.0-50"), ("a", "a1"), ("1.02", "1.3"), ("99", "100")]
        {
            assert_eq!(natural(smaller, larger), Ordering::Less, "{smaller} {larger}");
            assert_eq!(natural(larger, smaller), Ordering::Greater);
        }
        assert_eq!(natural("007", "7"), Ordering::Equal);
    }
}
