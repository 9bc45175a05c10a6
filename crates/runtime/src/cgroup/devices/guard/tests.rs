//! Tests on the real hierarchies of the host.

use super::v1::{PAUSE, listed};
use super::v2::compile;
use super::*;
use crate::cgroup::devices::Allow;
use crate::cgroup::files::write_existing;
use crate::cgroup::v1::tasks;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use wardian_needs::needs;

/// Cgroups of one test, removed at its end.
struct Own(Cgroups);

impl Own {
    /// Opens the v1 hierarchies, or v2 as if there were no others.
    fn open(v2: bool, name: &str) -> Self {
        let mountinfo = fs::read("/proc/self/mountinfo").unwrap();
        let mut found = Hierarchies::parse(&mountinfo).unwrap();
        if v2 {
            found.v1.clear();
        }
        let own = Self(Cgroups::open(found, &format!("test-{name}-{}", std::process::id())).unwrap());
        if let Guard::Nobody(why) = &*own.0.guard {
            panic!("{why}");
        }
        own
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.0.dir(self.0.guard.hierarchy().unwrap(), id)
    }

    /// Runs a command in a cgroup. Returns how it ended.
    fn sh(&self, id: &str, command: &str) -> String {
        let enter = self.dir(id).join("cgroup.procs");
        let script = format!("echo 0 > {} && {{ {command}; }} 2>&1", enter.display());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn sleep(&self, id: &str) -> Child {
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        for hierarchy in self.0.hierarchies.all() {
            fs::write(self.0.dir(hierarchy, id).join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.0.kill("");
        for _ in 0..100 {
            if self.0.remove("") {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn rules(devices: Devices) -> BTreeSet<Allow> {
    devices.rules().into_iter().collect()
}

fn list(dir: &Path) -> BTreeSet<Allow> {
    listed(dir).unwrap().expect("everything is allowed").into_iter().collect()
}

const OPEN: &str = "head -c1 /dev/zero >/dev/null && echo yes";
/// Opened for reading only, so that a failing test does no harm: /dev/mem and the kernel's log.
const MEMORY: &str = "mknod $D/n c 1 1 && cat $D/n";
const LOG: &str = "mknod $D/n c 1 11 && dd if=$D/n bs=1 count=1 iflag=nonblock";

/// Runs a command with a directory of its own, which is removed.
fn with_directory(command: &str) -> String {
    format!("D=$(mktemp -d); {command}; rm -r $D")
}

fn check(own: &Own, id: &str) {
    assert_eq!(own.sh(id, OPEN), "yes");
    for denied in [MEMORY, LOG] {
        let said = own.sh(id, &with_directory(denied));
        assert!(said.contains("Operation not permitted"), "{denied}: {said}");
    }
}

#[test]
fn rules_of_v1() {
    needs!(Root, CgroupV1);
    let own = Own::open(false, "v1");
    assert_eq!(own.0.prepare().unwrap(), None);
    assert_eq!(list(&own.dir("")), rules(Devices::Privileged));
    own.0.make_ahead("c").unwrap();
    assert_eq!(list(&own.dir("c")), rules(Devices::Unprivileged));
    check(&own, "c");
    own.0.impose("c", Devices::Privileged).unwrap();
    assert_eq!(list(&own.dir("c")), rules(Devices::Privileged));
    check(&own, "c");
    // Rules in a child cgroup cannot exceed those of its parent.
    for file in ["c/devices.allow", "keepers/devices.allow"] {
        assert!(write_existing(&own.dir(file), "a").is_err());
        assert!(write_existing(&own.dir(file), "c 1:11 r").is_err());
    }
    own.0.make("c.pea", Limits::default(), Some(Devices::Unprivileged)).unwrap();
    assert_eq!(list(&own.dir("c.pea")), rules(Devices::Unprivileged));
    own.0.make("c/pea", Limits::default(), None).unwrap();
    assert_eq!(list(&own.dir("c/pea")), rules(Devices::Privileged));
    // Once more, with child cgroups.
    own.0.renew("c", Devices::Privileged).unwrap();
    assert_eq!(list(&own.dir("c.pea")), rules(Devices::Privileged));
    assert_eq!(own.0.prepare().unwrap(), None);
}

#[test]
fn what_had_no_rules_gets_them_while_it_runs() {
    needs!(Root, CgroupV1);
    let own = Own::open(false, "v1-tree");
    // The state that a server without device rules leaves.
    for id in ["keepers", "a", "a/pea", "a/narrow", "b", "b.pea"] {
        own.0.make(id, Limits::default(), None).unwrap();
    }
    for line in ["a", "c 1:11 r"] {
        let file = if line == "a" { "devices.deny" } else { "devices.allow" };
        write_existing(&own.dir("a/narrow").join(file), line).unwrap();
    }
    assert!(listed(&own.dir("a/pea")).unwrap().is_none());
    let ids = ["keepers", "a", "a/pea", "a/narrow", "b", "b.pea"];
    let mut children: Vec<(&str, Child)> = ids.iter().map(|id| (*id, own.sleep(id))).collect();
    assert_eq!(own.0.prepare().unwrap(), None);
    for (id, child) in &children {
        let tasks = tasks(&own.dir(id));
        assert_eq!(tasks, [i32::try_from(child.id()).unwrap()], "{id}");
    }
    own.0.renew("a", Devices::Unprivileged).unwrap();
    own.0.renew("b", Devices::Privileged).unwrap();
    for (id, devices) in [
        ("", Devices::Privileged),
        ("keepers", Devices::Privileged),
        ("a", Devices::Unprivileged),
        ("a/pea", Devices::Unprivileged),
        ("b", Devices::Privileged),
        ("b.pea", Devices::Privileged),
    ] {
        assert_eq!(list(&own.dir(id)), rules(devices), "{id}");
    }
    // The child keeps its narrower rules, and does not keep what the parent is not allowed.
    assert_eq!(list(&own.dir("a/narrow")), BTreeSet::new());
    check(&own, "a/pea");

    // A server that is killed meanwhile leaves threads in the top cgroup, and perhaps not the cgroups that they
    // belong to.
    for id in ["a/pea", "a/narrow", "a"] {
        for task in tasks(&own.dir(id)) {
            write_existing(&own.dir("tasks"), &task.to_string()).unwrap();
        }
        let started = std::time::Instant::now();
        while fs::remove_dir(own.dir(id)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(5), "{id}");
            std::thread::sleep(PAUSE);
        }
    }
    own.0.renew("a", Devices::Unprivileged).unwrap();
    for (id, child) in &children {
        assert_eq!(tasks(&own.dir(id)), [i32::try_from(child.id()).unwrap()], "{id}");
    }
    assert_eq!(list(&own.dir("a/pea")), rules(Devices::Unprivileged));
    for (_, child) in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn attached(own: &Own, id: &str) -> Vec<DeviceProgram> {
    DeviceProgram::attached(fs::File::open(own.dir(id)).unwrap()).unwrap()
}

#[test]
fn rules_of_v2() {
    needs!(Root, CgroupV2, Bpf);
    let own = Own::open(true, "v2");
    let Guard::V2 { privileged, unprivileged, .. } = &*own.0.guard else { panic!("no programs") };
    assert_eq!(own.0.prepare().unwrap(), None);
    own.0.make_ahead("c").unwrap();
    let is = |id: &str, program: &DeviceProgram| {
        let found = attached(&own, id);
        let found: Vec<_> = found.iter().map(DeviceProgram::identity).collect();
        assert_eq!(found, [program.identity()], "{id:?}");
    };
    is("", privileged);
    is("c", unprivileged);
    check(&own, "c");
    own.0.impose("c", Devices::Privileged).unwrap();
    is("c", privileged);
    check(&own, "c");
    // The rules of the parent cgroup apply as well, without any of the child's own.
    own.0.make("c/pea", Limits::default(), None).unwrap();
    check(&own, "c/pea");
    own.0.make("c.pea", Limits::default(), Some(Devices::Unprivileged)).unwrap();
    is("c.pea", unprivileged);

    // Another server finds the programs and attaches none.
    let again = Cgroups { guard: Arc::new(Guard::find(&own.0.hierarchies)), ..own.0.clone() };
    again.prepare().unwrap();
    again.renew("c", Devices::Privileged).unwrap();
    is("", privileged);
    is("c", privileged);
    is("c.pea", privileged);
    // A program of ours with other rules is replaced; one of another name stays attached.
    let other = DeviceProgram::load("wardian_devices", &compile(&[])).unwrap();
    let foreign = DeviceProgram::load("somebodys", &compile(&Devices::Privileged.rules())).unwrap();
    let dir = fs::File::open(own.dir("c")).unwrap();
    for program in [&other, &foreign] {
        program.attach(&dir, None).unwrap();
    }
    drop(dir);
    assert!(own.sh("c", OPEN).contains("not permitted"));
    again.renew("c", Devices::Privileged).unwrap();
    assert_eq!(attached(&own, "c").len(), 2);
    check(&own, "c");
}

#[test]
fn where_nobody_can_enforce_rules_nothing_is_made() {
    let guard = Guard::find(&Hierarchies::default());
    assert!(matches!(&guard, Guard::Nobody(why) if why.contains("devices controller")));
    let cgroups =
        Cgroups { hierarchies: Hierarchies::default(), top: "wardian-x".into(), guard: Arc::new(guard) };
    let error = cgroups.make_ahead("c").unwrap_err().to_string();
    assert!(error.starts_with("cannot enforce device rules in wardian-x/c: neither"), "{error}");
    cgroups.make("c/pea", Limits::default(), None).unwrap();
}
