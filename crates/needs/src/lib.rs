//! Declares what a test needs of its host, in one way, so that no test passes unnoticed by doing nothing.
//!
//! A test names its needs first:
//!
//! ```
//! use wardian_needs::needs;
//!
//! fn rules_of_v2() {
//!     needs!(Root, CgroupV2);
//!     // … what the test does.
//! }
//! ```
//!
//! On a host that lacks one of them the test returns and writes one line, which libtest does not capture:
//! `skipped: cgroup::tests::rules_of_v2: needs root`.
//!
//! The environment variable [`VARIABLE`] makes this strict. It lists what the host is known to have
//! (`WARDIAN_TESTS_MUST_HAVE=root,cgroup-v1`); a test that finds one of these missing fails. `./dev test` sets it to
//! what its own checks find, so that a broken probe cannot skip tests either.

use std::env::VarError;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::thread::CapabilitySet;

/// The variable with a comma-separated list of needs that fail a test, instead of skipping it, where they are not
/// met.
pub const VARIABLE: &str = "WARDIAN_TESTS_MUST_HAVE";

/// Returns from the test, with a message, unless the host meets all listed needs (variants of [`Need`]). For the
/// start of a test.
#[macro_export]
macro_rules! needs {
    ($($need:ident),+ $(,)?) => {
        if $crate::lacks(&[$($crate::Need::$need),+], None) {
            return;
        }
    };
}

/// A property that not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `root`: the effective user is 0. A root without the usual privileges makes tests fail, not skip.
    Root,
    /// `cgroup-v1`: mountinfo shows a cgroup v1 hierarchy with the devices controller.
    CgroupV1,
    /// `cgroup-v2`: mountinfo shows the cgroup v2 hierarchy, alone or beside those of v1.
    CgroupV2,
    /// `cgroup-memory`: mountinfo shows a v1 hierarchy with the memory controller, or the root of v2 delegates that
    /// controller (`cgroup.subtree_control`).
    CgroupMemory,
    /// `bpf`: the process has `CAP_BPF` or `CAP_SYS_ADMIN`, and the kernel has the system call, recognised by the
    /// sysctl `kernel.unprivileged_bpf_disabled`.
    Bpf,
    /// `mknod`: a block device can be created in the temporary directory; it is removed again.
    Mknod,
    /// `loop`: `/dev/loop-control` opens for reading and writing.
    Loop,
    /// `tracefs`: the effective user is 0 and `/proc/filesystems` lists tracefs. It need not be mounted.
    Tracefs,
    /// `pid-max`: each pid namespace has a `pid_max` of its own, as in kernels since 6.14, recognised by uname(2). A
    /// trial would change the host's value on an earlier one.
    PidMax,
    /// `nftables`: the effective user is 0, and the programs `nft` and `ip` run.
    Nftables,
    /// `traffic-control`: the effective user is 0, and in a network namespace of its own an `ifb` device can be made
    /// and given the queueing disciplines `tbf` and `ingress`.
    TrafficControl,
    /// `cni`: the CNI plugins `bridge`, `host-local`, `portmap` and `bandwidth` are in `/opt/cni/bin` or `/usr/lib/cni`,
    /// and the program `iptables` runs, which `portmap` uses.
    Cni,
    /// `chromium`: the program `chromium` runs (of Debian's package of this name).
    Chromium,
    /// `registry`: the program `docker-registry` runs (of Debian's package of this name).
    Registry,
    /// `podman`: the effective user is 0, and the program `podman` runs.
    Podman,
    /// `containerd`: the effective user is 0, and the programs `containerd`, `ctr` and `runc` run.
    Containerd,
    /// `guests`: the programs `qemu-system-x86_64`, `busybox` and `mkfs.ext4` run.
    Guests,
    /// `apt-download`: apt fetches a package: `busybox-static`, of 1 MB, which is removed again.
    AptDownload,
}

impl Need {
    /// All needs.
    pub const ALL: [Self; 18] = [
        Self::Root,
        Self::CgroupV1,
        Self::CgroupV2,
        Self::CgroupMemory,
        Self::Bpf,
        Self::Mknod,
        Self::Loop,
        Self::Tracefs,
        Self::PidMax,
        Self::Nftables,
        Self::TrafficControl,
        Self::Cni,
        Self::Chromium,
        Self::Registry,
        Self::Podman,
        Self::Containerd,
        Self::Guests,
        Self::AptDownload,
    ];

    /// The name in messages and in [`VARIABLE`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::CgroupV1 => "cgroup-v1",
            Self::CgroupV2 => "cgroup-v2",
            Self::CgroupMemory => "cgroup-memory",
            Self::Bpf => "bpf",
            Self::Mknod => "mknod",
            Self::Loop => "loop",
            Self::Tracefs => "tracefs",
            Self::PidMax => "pid-max",
            Self::Nftables => "nftables",
            Self::TrafficControl => "traffic-control",
            Self::Cni => "cni",
            Self::Chromium => "chromium",
            Self::Registry => "registry",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Guests => "guests",
            Self::AptDownload => "apt-download",
        }
    }

    /// Whether the host meets the need; each variant's comment describes the check.
    #[must_use]
    pub fn is_met(self) -> bool {
        let root = || rustix::process::geteuid().is_root();
        match self {
            Self::Root => root(),
            Self::CgroupV1 => mounts().is_some_and(|mounts| controls(&mounts, "devices")),
            Self::CgroupV2 => mounts().is_some_and(|mounts| v2(&mounts).is_some()),
            Self::CgroupMemory => mounts().is_some_and(|mounts| {
                let handed_on = |root: &str| fs::read_to_string(format!("{root}/cgroup.subtree_control"));
                controls(&mounts, "memory")
                    || v2(&mounts)
                        .and_then(|root| handed_on(root).ok())
                        .is_some_and(|on| has(&on, ' ', "memory"))
            }),
            Self::Bpf => {
                let either = CapabilitySet::BPF | CapabilitySet::SYS_ADMIN;
                rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.intersects(either))
                    && fs::exists("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap_or(false)
            }
            Self::Mknod => makes_devices(),
            Self::Loop => fs::File::options().read(true).write(true).open("/dev/loop-control").is_ok(),
            Self::Tracefs => {
                let listed = fs::read_to_string("/proc/filesystems").unwrap_or_default();
                root() && listed.lines().any(|line| line.ends_with("\ttracefs"))
            }
            Self::PidMax => from(&rustix::system::uname().release().to_string_lossy(), (6, 14)),
            Self::Nftables => root() && runs("nft", "--version") && runs("ip", "-V"),
            Self::TrafficControl => root() && shapes(),
            Self::Cni => {
                let has = |dir: &str| {
                    ["bridge", "host-local", "portmap", "bandwidth"]
                        .iter()
                        .all(|name| Path::new(dir).join(name).is_file())
                };
                ["/opt/cni/bin", "/usr/lib/cni"].into_iter().any(has) && runs("iptables", "--version")
            }
            Self::Chromium => runs("chromium", "--version"),
            Self::Registry => runs("docker-registry", "--version"),
            Self::Podman => root() && runs("podman", "--version"),
            Self::Containerd => {
                root() && ["containerd", "ctr", "runc"].into_iter().all(|program| runs(program, "--version"))
            }
            Self::Guests => {
                runs("qemu-system-x86_64", "--version")
                    && runs("busybox", "--help")
                    && runs("mkfs.ext4", "-V")
            }
            Self::AptDownload => fetches(),
        }
    }
}

/// The process's mountinfo (proc(5)).
fn mounts() -> Option<String> {
    fs::read_to_string("/proc/self/mountinfo").ok()
}

fn has(list: &str, between: char, name: &str) -> bool {
    list.trim().split(between).any(|one| one == name)
}

/// Whether a cgroup v1 hierarchy with this controller is mounted.
fn controls(mounts: &str, controller: &str) -> bool {
    mounts.lines().filter_map(|line| line.split_once(" - cgroup ")).any(|(_, rest)| {
        // The source, then the options of the superblock.
        rest.split_once(' ').is_some_and(|(_, options)| has(options, ',', controller))
    })
}

/// The mount point of cgroup v2.
fn v2(mounts: &str) -> Option<&str> {
    let (before, _) = mounts.lines().find_map(|line| line.split_once(" - cgroup2 "))?;
    before.split(' ').nth(4)
}

fn runs(program: &str, option: &str) -> bool {
    std::process::Command::new(program).arg(option).output().is_ok_and(|output| output.status.success())
}

fn shapes() -> bool {
    let script = "ip link add i type ifb && ip link set i up && tc qdisc add dev i ingress &&
        tc qdisc add dev i root tbf rate 1mbit burst 10k limit 10k";
    let mut shell = std::process::Command::new("unshare");
    shell.args(["-n", "sh", "-c", script]).output().is_ok_and(|output| output.status.success())
}

fn fetches() -> bool {
    let name = format!("wardian-needs-apt-{}-{:?}", std::process::id(), std::thread::current().id());
    let dir = std::env::temp_dir().join(name);
    if fs::create_dir(&dir).is_err() {
        return false;
    }
    let mut apt = std::process::Command::new("apt-get");
    apt.args(["-qq", "-o", "APT::Sandbox::User=root", "download", "busybox-static"]).current_dir(&dir);
    let fetched = apt.output().is_ok_and(|output| output.status.success());
    let _ = fs::remove_dir_all(dir);
    fetched
}

fn makes_devices() -> bool {
    let name = format!("wardian-needs-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    let made = mknodat(CWD, &path, FileType::BlockDevice, Mode::empty(), makedev(1, 0)).is_ok();
    if made {
        // The node is never opened, so one that remains does no harm.
        let _ = fs::remove_file(path);
    }
    made
}

/// Whether a kernel's release is this version or a later one.
fn from(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= version
}

/// Parses the value of [`VARIABLE`].
fn parse(text: &str) -> Result<Vec<Need>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            Need::ALL.into_iter().find(|need| need.name() == name).ok_or_else(|| {
                let known = Need::ALL.map(Need::name).join(", ");
                format!("{VARIABLE} names {name:?}, which is no need: there are {known}")
            })
        })
        .collect()
}

/// The names of needs, as text.
fn list(needs: &[Need]) -> String {
    needs.iter().map(|need| need.name()).collect::<Vec<_>>().join(", ")
}

/// Whether a test, or a part of it, is run.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Run,
    /// It is skipped with this line.
    Skip(String),
    /// It fails with this message.
    Fail(String),
}

fn outcome(test: &str, part: Option<&str>, lacking: &[Need], must: &[Need]) -> Outcome {
    let part = part.map(|part| format!(" ({part})")).unwrap_or_default();
    let contradicted: Vec<Need> = lacking.iter().copied().filter(|need| must.contains(need)).collect();
    if !contradicted.is_empty() {
        let names = list(&contradicted);
        return Outcome::Fail(format!("{test}{part}: this host lacks {names}, though {VARIABLE} lists it"));
    }
    if lacking.is_empty() {
        return Outcome::Run;
    }
    Outcome::Skip(format!("skipped: {test}{part}: needs {}\n", list(lacking)))
}

/// Writes directly, because libtest captures what the print macros write; in one write, so that lines of several
/// threads do not mix.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn lacking(needs: &[Need]) -> Vec<Need> {
    needs.iter().copied().filter(|need| !need.is_met()).collect()
}

/// Whether the host lacks one of these; if so, writes the line. With a `part` only that part of the test is skipped;
/// [`needs!`] is for whole tests.
///
/// # Panics
/// The host lacks a need that [`VARIABLE`] lists, or the variable lists an unknown name.
#[must_use]
#[track_caller]
pub fn lacks(needs: &[Need], part: Option<&str>) -> bool {
    let must = match std::env::var(VARIABLE) {
        Ok(text) => parse(&text).unwrap_or_else(|error| panic!("{error}")),
        Err(VarError::NotPresent) => Vec::new(),
        Err(error) => panic!("{VARIABLE}: {error}"),
    };
    // libtest names a test's thread after the test.
    let thread = std::thread::current();
    match outcome(thread.name().unwrap_or("a test"), part, &lacking(needs), &must) {
        Outcome::Run => false,
        Outcome::Skip(line) => {
            say(&line);
            true
        }
        Outcome::Fail(message) => panic!("{message}"),
    }
}

/// Panics unless the host meets these needs, for tests that are pointless without them.
///
/// # Panics
/// The host lacks one of them.
#[track_caller]
pub fn demand(needs: &[Need]) {
    let lacking = lacking(needs);
    assert!(lacking.is_empty(), "none of these tests can do without: {}", list(&lacking));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_variable_is_a_list_of_names_and_of_nothing_else() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse("root, cgroup-v2,"), Ok(vec![Need::Root, Need::CgroupV2]));
        let all = Need::ALL.map(Need::name).join(",");
        assert_eq!(parse(&all), Ok(Need::ALL.to_vec()));
        let error = parse("root,cgroups").unwrap_err();
        assert!(error.contains("\"cgroups\"") && error.contains("cgroup-v1"), "{error}");
    }

    #[test]
    fn a_lack_is_told_in_one_line_and_fails_where_it_must_not_be() {
        let both = [Need::Root, Need::Loop];
        assert_eq!(outcome("a::b", None, &[], &both), Outcome::Run);
        assert_eq!(
            outcome("a::b", None, &both, &[Need::Bpf]),
            Outcome::Skip("skipped: a::b: needs root, loop\n".into())
        );
        assert_eq!(
            outcome("a::b", Some("devices"), &[Need::Mknod], &[]),
            Outcome::Skip("skipped: a::b (devices): needs mknod\n".into())
        );
        assert_eq!(
            outcome("a::b", None, &both, &[Need::Loop]),
            Outcome::Fail("a::b: this host lacks loop, though WARDIAN_TESTS_MUST_HAVE lists it".into())
        );
    }

    #[test]
    fn mounts_tell_what_cgroups_there_are() {
        let v1 = "31 27 0:28 / /sys/fs/cgroup/cpu rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
                  36 27 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup none rw,devices\n\
                  40 27 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=memory\n";
        assert!(controls(v1, "devices") && controls(v1, "cpuacct") && !controls(v1, "memory"));
        assert_eq!(v2(v1), None);
        let both = format!("{v1}41 27 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(v2(&both), Some("/sys/fs/cgroup/unified"));
        assert!(!controls(&both, "nsdelegate"));
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for (release, is) in [("6.14.0", true), ("6.9.12", false), ("7.0-rc1", true), ("5.15.0-6-x", false)] {
            assert_eq!(from(release, (6, 14)), is, "{release}");
        }
    }

    /// Not a test of its own: [`a_skip_is_seen_though_output_is_captured`] starts it.
    #[test]
    #[ignore = "another test starts it"]
    fn who_is_skipped() {
        println!("captured");
        eprintln!("captured");
        say("skipped: seen\n");
    }

    #[test]
    fn a_skip_is_seen_though_output_is_captured() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", "tests::who_is_skipped", "--ignored"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "skipped: seen\n");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("captured"), "{output:?}");
    }
}
