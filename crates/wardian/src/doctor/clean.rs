//! Leaks by their owner, and their removal.

use super::LEAKS;
use crate::print;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use wardian_engine::Cleared;
use wardian_lab::instances::{Instance, Survey};
use wardian_lab::leaks::{self, Leak};
use wardian_lab::leftovers;
use wardian_sys::directory::Directory;
use wardian_sys::lock;

/// The kinds of leaks that experiments and recorders leave.
const OF_EXPERIMENTS: [&str; 3] = ["directory", "sysctl", "trace"];
/// The prefix of a mounted run directory in the list of leaks.
const TMPFS: &str = "tmpfs on ";

/// Formats a line for each instance and for each leak without one; with `all`, also for each leak of an instance.
pub fn text(found: &Survey, all: bool) -> String {
    let mut text = String::new();
    for instance in &found.instances {
        text += &format!("{}\n", line(instance, found.doubt.as_deref()));
        if all {
            text.extend(instance.leaks.iter().map(|leak| format!("  {}\n", one(leak))));
        }
    }
    text.extend(found.others().into_iter().map(|leak| format!("{}{}\n", one(leak), remedy(leak))));
    text
}

fn one(leak: &Leak) -> String {
    format!("{:<10} {}  ({})", leak.kind, leak.what, leak.why)
}

fn remedy(leak: &Leak) -> String {
    if is_cleanable(leak) { ": `wardian doctor --clean` removes it".to_owned() } else { String::new() }
}

/// Whether a leak has no instance and no owner, and so may be removed.
fn is_cleanable(leak: &Leak) -> bool {
    leak.instance.is_none() && (OF_EXPERIMENTS.contains(&leak.kind) || run_directory(leak).is_some())
}

fn run_directory(leak: &Leak) -> Option<&Path> {
    let path = leak.what.strip_prefix(TMPFS).filter(|_| leak.kind == "mount");
    path.map(Path::new)
}

/// Counts the leaks of each kind, as `wardian reset` does: a cgroup of v1, which has a directory in each hierarchy,
/// counts once, and the instance's own parent cgroup only if nothing else is left.
fn counted(instance: &Instance) -> String {
    let own = format!("wardian-{}", instance.tag);
    let mut kinds = BTreeMap::<&str, BTreeSet<&OsStr>>::new();
    for leak in &instance.leaks {
        let path = Path::new(&leak.what);
        let name = if leak.kind == "cgroup" { path.file_name() } else { None };
        kinds.entry(leak.kind).or_default().insert(name.unwrap_or(path.as_os_str()));
    }
    if let Some(cgroups) = kinds.get_mut("cgroup").filter(|cgroups| cgroups.len() > 1) {
        cgroups.remove(OsStr::new(&own));
    }
    let left: Vec<String> = kinds.into_iter().map(|(kind, of)| print::count(of.len(), kind)).collect();
    left.join(", ")
}

fn line(instance: &Instance, doubt: Option<&str>) -> String {
    let (left, tag) = (counted(instance), &instance.tag);
    let Some(place) = &instance.place else {
        let remedy = match doubt {
            _ if instance.abandoned => "`wardian doctor --clean` removes it".to_owned(),
            Some(doubt) => format!("whose it is is not known, for {doubt}"),
            None => "something of it is in use: whose it is is not known".to_owned(),
        };
        return format!("instance   {tag} of nobody: {left}: {remedy}");
    };
    let run = place.run.display();
    if place.lives {
        return format!(
            "instance   {tag} of {run}, whose server runs: {left}: the next start of its server removes it"
        );
    }
    let root = place.root.as_ref().map(|root| format!("--root {} ", root.display())).unwrap_or_default();
    format!(
        "instance   {tag} of {run}, which has no server: {left}: `wardian serve {root}--run {run}` removes it and recovers what \
         lives; `wardian reset {root}--run {run}` ends that as well"
    )
}

/// Removes leaks without an owner.
pub fn run(runs: &[PathBuf], yes: bool) -> Result<ExitCode> {
    ensure!(rustix::process::geteuid().is_root(), "what was left behind is root's: try sudo");
    let found = leaks::survey(runs)?;
    let mut wanted = Survey { leaks: found.leaks.clone(), ..Survey::default() };
    wanted.leaks.retain(is_cleanable);
    wanted.instances.extend(found.instances.iter().filter(|instance| instance.abandoned).cloned());
    let somewhere = !wanted.leaks.is_empty() || !wanted.instances.is_empty();
    if somewhere {
        if !yes && !agreed(&wanted)? {
            print::note("nothing was done");
            return Ok(ExitCode::FAILURE);
        }
        remove(&wanted, runs)?;
    } else {
        print::text("there is nothing that belongs to nobody\n")?;
    }
    let left = leaks::survey(runs)?;
    if left.leaks.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    print::text(&format!("this is still there:\n{}", text(&left, false)))?;
    Ok(ExitCode::from(LEAKS))
}

fn agreed(wanted: &Survey) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this ends processes and removes what is left of them: say --yes if it is meant");
    }
    print::text(&text(wanted, false))?;
    crate::watch::asked("Remove all this, and end its processes?")
}

fn remove(wanted: &Survey, runs: &[PathBuf]) -> Result<()> {
    for Instance { tag, .. } in &wanted.instances {
        // Checked again, because the user's answer may have taken long.
        let now = leaks::survey(runs)?;
        if !now.instances.iter().any(|instance| instance.tag == *tag && instance.abandoned) {
            print::note(&format!("instance {tag} is not abandoned any more, and stays"));
            continue;
        }
        let cleared = wardian_engine::clear(tag).with_context(|| format!("instance {tag}"))?;
        print::text(&format!("removed: instance {tag}: {}\n", removed(&cleared)))?;
    }
    let kinds: BTreeSet<&str> = wanted.leaks.iter().map(|leak| leak.kind).collect();
    if kinds.contains("directory") || kinds.contains("sysctl") {
        let program = std::env::current_exe().context("find this program")?;
        for said in leftovers::Records::usual().restore(&program) {
            print::text(&format!("{said}\n"))?;
        }
    }
    if kinds.contains("trace") {
        wardian_recorder::sweep();
    }
    for run in wanted.leaks.iter().filter_map(run_directory) {
        leave(run)?;
    }
    Ok(())
}

fn removed(cleared: &Cleared) -> String {
    let mut text = print::count(cleared.cgroups, "cgroup");
    if cleared.links > 0 {
        text += &format!(", {}", print::count(cleared.links, "link"));
    }
    if cleared.firewall {
        text += ", the firewall";
    }
    format!("{text}; processes that were ended: {}", cleared.processes)
}

/// Unmounts an unused run directory. Its lock keeps servers from starting meanwhile.
fn leave(run: &Path) -> Result<()> {
    let failed = || format!("unmount {}", run.display());
    let dir = Directory::open(run).with_context(failed)?;
    let _lock =
        lock::take(&dir, "lock", Duration::from_secs(1), &|text| print::note(text)).with_context(failed)?;
    wardian_store::run::leave(run);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_lab::instances::Place;

    fn leak(kind: &'static str, what: &str, instance: Option<&str>) -> Leak {
        Leak { kind, what: what.into(), why: "why".into(), instance: instance.map(str::to_owned) }
    }

    fn instance(place: Option<Place>, abandoned: bool) -> Instance {
        let leaks =
            (0..270).map(|n| leak(if n < 70 { "keeper" } else { "cgroup" }, &n.to_string(), Some("ab")));
        Instance { tag: "ab".into(), place, abandoned, leaks: leaks.collect() }
    }

    #[test]
    fn an_instance_is_a_line_with_what_to_do() {
        let lives = Place { run: "/run/x".into(), root: Some("/var/x".into()), lives: true };
        let dead = Place { lives: false, ..lives.clone() };
        let mut found = Survey { instances: vec![instance(None, true)], ..Survey::default() };
        assert_eq!(
            text(&found, false),
            "instance   ab of nobody: 200 cgroups, 70 keepers: `wardian doctor --clean` removes it\n"
        );
        assert_eq!(text(&found, true).lines().count(), 271);
        found.instances = vec![instance(Some(dead), false), instance(Some(lives), false)];
        let said = text(&found, false);
        assert!(
            said.contains("`wardian serve --root /var/x --run /run/x`") && !said.contains("--clean"),
            "{said}"
        );
        assert!(said.lines().nth(1).unwrap().contains("whose server runs"), "{said}");
        found.instances = vec![instance(None, false)];
        found.doubt = Some("X".into());
        assert!(text(&found, false).contains("not known, for X"));
    }

    #[test]
    fn what_was_removed_is_told() {
        let cleared = Cleared { processes: 1, cgroups: 2, ..Cleared::default() };
        assert_eq!(removed(&cleared), "2 cgroups; processes that were ended: 1");
        let cleared = Cleared { links: 3, firewall: true, ..cleared };
        assert_eq!(removed(&cleared), "2 cgroups, 3 links, the firewall; processes that were ended: 1");
    }

    #[test]
    fn a_cgroup_counts_once_in_all_hierarchies() {
        let leaks = [
            "cpu/wardian-ab/1",
            "memory/wardian-ab/1",
            "memory/wardian-ab/2",
            "memory/wardian-ab",
            "cpu/wardian-ab",
        ];
        let of = |leaks: &[&str]| Instance {
            tag: "ab".into(),
            place: None,
            abandoned: true,
            leaks: leaks
                .iter()
                .map(|path| leak("cgroup", &format!("/sys/fs/cgroup/{path}"), Some("ab")))
                .collect(),
        };
        assert_eq!(counted(&of(&leaks)), "2 cgroups");
        assert_eq!(counted(&of(&leaks[3..])), "1 cgroup");
    }

    #[test]
    fn what_may_be_somebodys_is_not_removed() {
        for kind in OF_EXPERIMENTS {
            assert!(is_cleanable(&leak(kind, "x", None)), "{kind}");
        }
        assert!(is_cleanable(&leak("mount", "tmpfs on /run/x", None)));
        assert!(!is_cleanable(&leak("mount", "overlay on /x", None)));
        for kind in ["keeper", "cgroup", "container", "rootfs"] {
            assert!(!is_cleanable(&leak(kind, "x", None)) && !is_cleanable(&leak(kind, "x", Some("ab"))));
        }
    }
}
