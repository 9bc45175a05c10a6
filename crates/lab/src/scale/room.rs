//! Checks whether this host has room for a story: one that obviously does not fit is refused before anything is made.

use super::{Mode, Options};
use crate::doctor::dirty::Dirty;
use crate::host::filesystem_of;
use crate::report::bytes;
use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;
use wardian_garden::Client;

/// Maximum number of the server's descriptors per instance, while all peas are started at once (22 were observed).
const DESCRIPTORS_EACH: u64 = 32;
/// Descriptors for everything else.
const DESCRIPTORS: u64 = 128;

/// Raises the descriptor limit of this process, which the server that it starts inherits.
pub(super) fn descriptors(instances: usize) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(new) = raised(current, maximum, instances) else { return Ok(()) };
    setrlimit(Resource::Nofile, Rlimit { current: new, maximum: new }).with_context(|| {
        format!(
            "{instances} instances need up to {} open files; the limit (ulimit -Hn: {}) cannot be raised to that",
            new.unwrap_or_default(),
            maximum.unwrap_or_default()
        )
    })
}

/// The limit to be set, if the present one is too low; `None` as a limit means unlimited. The hard limit is raised
/// only if necessary.
fn raised(current: Option<u64>, maximum: Option<u64>, instances: usize) -> Option<Option<u64>> {
    let wanted = DESCRIPTORS + DESCRIPTORS_EACH * instances as u64;
    current.is_some_and(|current| current < wanted).then(|| maximum.map(|maximum| maximum.max(wanted)))
}

/// Checks the memory, in which the code is generated.
pub(super) fn memory(options: &Options) -> Result<()> {
    let available = available()?;
    let code = options.code_bytes();
    ensure!(
        code <= available / 2,
        "--code-mb: {} of code are made in memory, of which {} are free",
        bytes(code),
        bytes(available)
    );
    Ok(())
}

/// Checks the file system of the store, for a server of our own.
pub(super) fn disk(options: &Options, mode: Mode) -> Result<()> {
    let at = options.location.as_deref().unwrap_or(Path::new("/var/tmp"));
    let stat = rustix::fs::statvfs(at).with_context(|| format!("--root: look at {}", at.display()))?;
    let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let kind = std::fs::canonicalize(at).ok().and_then(|path| filesystem_of(&mountinfo, &path));
    let mut free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if kind.is_some_and(|(kind, _)| kind == "tmpfs" || kind == "ramfs") {
        // A tmpfs is limited by the available memory as well as by its size.
        free = free.min(available()?);
    }
    fits(options, mode, free, &at.display().to_string())
}

/// Checks the disk of another server, if it reports its size.
pub(super) async fn disk_of(client: &Client, options: &Options, mode: Mode) -> Result<()> {
    match client.capacity().await.context("ask the server for its capacity")?.disk_in_bytes {
        0 => Ok(()),
        all => fits(options, mode, all, "the server's disk"),
    }
}

/// A warning in advance if the story will wait for the disk.
pub(super) fn note(options: &Options) -> Result<Option<String>> {
    let limit = Dirty::probe()?.threshold_bytes;
    let all = needed(options, Mode::Stream);
    Ok((options.modes.contains(&Mode::Stream) && all > limit).then(|| {
        format!(
            "note: {} will be streamed, more than may be dirty on this machine ({}): the kernel will hold the writers \
             back for the disk",
            bytes(all),
            bytes(limit)
        )
    }))
}

/// Disk space for the instances' code.
fn needed(options: &Options, mode: Mode) -> u64 {
    match mode {
        Mode::Stream => options.code_bytes().saturating_mul(options.most() as u64),
        // The fetched file and the layer.
        Mode::Oci => options.code_bytes().saturating_mul(2),
    }
}

fn fits(options: &Options, mode: Mode, free: u64, at: &str) -> Result<()> {
    let wanted = needed(options, mode);
    ensure!(
        wanted <= free,
        "--mode {mode}: {} instances with {} MB of code take {}, and {at} has {}: smaller --to or --code-mb, or \
         another --root",
        options.most(),
        options.code_mb,
        bytes(wanted),
        bytes(free)
    );
    Ok(())
}

/// Memory available without swapping.
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    Ok(wardian_sys::procfs::meminfo(&text)?.available)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_code_is_there_once_for_each_and_a_layer_once_for_all() {
        let mut options = Options::new("wardian".into());
        options.to = vec![10, 100];
        let gigabyte = 1 << 30;
        assert!(fits(&options, Mode::Stream, 10 * gigabyte, "x").is_ok());
        let error = fits(&options, Mode::Stream, 9 * gigabyte, "/var/tmp").unwrap_err().to_string();
        for words in ["100 instances with 100 MB", "10.49 GB", "/var/tmp has 9.66 GB", "--code-mb"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(fits(&options, Mode::Oci, gigabyte / 4, "x").is_ok());
        assert!(fits(&options, Mode::Oci, gigabyte / 8, "x").is_err());
    }

    #[test]
    fn the_limit_of_open_files_is_raised_only_if_it_must_be() {
        assert_eq!(raised(Some(4096), Some(8192), 100), None);
        assert_eq!(raised(None, None, 1000), None);
        assert_eq!(raised(Some(1024), Some(8192), 100), Some(Some(8192)));
        assert_eq!(raised(Some(1024), None, 100), Some(None));
        assert_eq!(raised(Some(1024), Some(1024), 100), Some(Some(3328)));
    }
}
