//! Enforces device rules by the devices controller of cgroup v1.

use super::Allow;
use crate::cgroup::files::{Error, at, make, write_existing};
use crate::cgroup::v1::{move_tasks, tasks};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Reads `devices.list`; `None` if everything is allowed, perhaps with exceptions.
pub(super) fn listed(dir: &Path) -> Result<Option<Vec<Allow>>, Error> {
    let path = dir.join("devices.list");
    let text = fs::read_to_string(&path).map_err(at("read device rules", &path))?;
    Ok(text.lines().map(Allow::from_line).collect())
}

/// Sets the rules of a v1 cgroup. `alone`: no other controller is mounted with the devices controller.
pub(super) fn impose(dir: &Path, rules: &[Allow], alone: bool) -> Result<(), Error> {
    let deny = dir.join("devices.deny");
    let present = if let Some(present) = listed(dir)? {
        present
    } else {
        match write_existing(&deny, "a") {
            // EINVAL: the cgroup has child cgroups (`devcgroup_update_access`, security/device_cgroup.c).
            Err(error) if is_invalid(&error) && alone => return impose_on_tree(dir, rules),
            other => other.map_err(at("deny devices", &deny))?,
        }
        Vec::new()
    };
    change(dir, &present, rules)
}

fn change(dir: &Path, present: &[Allow], rules: &[Allow]) -> Result<(), Error> {
    let (deny, allow) = (dir.join("devices.deny"), dir.join("devices.allow"));
    for line in present.iter().filter(|line| !rules.contains(line)) {
        write_existing(&deny, &line.to_string()).map_err(at("deny devices", &deny))?;
    }
    for line in rules.iter().filter(|line| !present.contains(line)) {
        match write_existing(&allow, &line.to_string()) {
            // EPERM: the parent cgroup is not allowed this device itself, where the server runs in a container. It
            // stays denied.
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
            other => other.map_err(at("allow devices", &allow))?,
        }
    }
    Ok(())
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// A removed cgroup still counts as a child until the kernel has released it, after some RCU grace periods.
const PATIENCE: u32 = 200;
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// A child cgroup that is removed and recreated.
struct Taken {
    dir: PathBuf,
    tasks: Vec<i32>,
    rules: Option<Vec<Allow>>,
}

/// The kernel accepts "deny everything" only for a cgroup without child cgroups. So these are removed and recreated,
/// in this hierarchy alone, with the threads that were in them. Needed once per container of a server that had no
/// device rules.
fn impose_on_tree(dir: &Path, rules: &[Allow]) -> Result<(), Error> {
    let mut taken = Vec::new();
    let down = below(dir).into_iter().filter(|child| child != dir).try_for_each(|child| {
        let rules = listed(&child)?;
        let mut one = Taken { dir: child, tasks: Vec::new(), rules };
        let result = take_down(&mut one, dir);
        taken.push(one);
        result
    });
    let imposed = down.and_then(|()| {
        let deny = dir.join("devices.deny");
        let mut round = 0;
        loop {
            match write_existing(&deny, "a") {
                Err(error) if is_invalid(&error) && round < PATIENCE => {
                    std::thread::sleep(PAUSE);
                    round += 1;
                }
                other => break other.map_err(at("deny devices", &deny)),
            }
        }
    });
    let imposed = imposed.and_then(|()| change(dir, &[], rules));
    // Parents before children; all of them, even if one fails.
    taken.iter().rev().map(put_up).fold(imposed, Result::and)
}

fn put_up(one: &Taken) -> Result<(), Error> {
    make(&one.dir)?;
    // It may have had narrower rules than its parent, and must not gain any.
    let imposed = one.rules.as_ref().map_or(Ok(()), |rules| impose(&one.dir, rules, false));
    move_tasks(&one.tasks, &one.dir);
    imposed
}

/// Moves the threads of a cgroup without child cgroups to `to`, and removes it.
fn take_down(one: &mut Taken, to: &Path) -> Result<(), Error> {
    let mut result = Ok(());
    for _ in 0..PATIENCE {
        let tasks = tasks(&one.dir);
        move_tasks(&tasks, to);
        one.tasks.extend(tasks);
        result = fs::remove_dir(&one.dir).map_err(at("remove for a moment", &one.dir));
        if result.is_ok() {
            break;
        }
        // The cgroup is busy, because a process in it forks.
        std::thread::sleep(PAUSE);
    }
    result
}

/// A cgroup and all cgroups below it, the deepest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
    }
    found.push(dir.to_owned());
    found
}

/// Moves threads back to `home` and the cgroups below it that a server left in `top` when it was killed during
/// [`impose`]. `other` is the same cgroup in another hierarchy, which shows where they belong.
pub(super) fn bring_back(top: &Path, other: &Path, home: &Path) {
    let left: BTreeSet<i32> = tasks(top).into_iter().collect();
    if left.is_empty() {
        return;
    }
    for dir in below(other).into_iter().rev() {
        let Ok(relative) = dir.strip_prefix(other) else { continue };
        let home = home.join(relative);
        let tasks: Vec<i32> = tasks(&dir).into_iter().filter(|task| left.contains(task)).collect();
        // Threads that have ended need no rules.
        if !tasks.is_empty() && make(&home).is_ok() {
            move_tasks(&tasks, &home);
        }
    }
}
