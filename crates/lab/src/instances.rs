//! Attributes leaks to instances: which servers on this host run, and which instances are abandoned.

use crate::leaks::{self, Leak, Records};
use crate::processes::{KEEPERS, Process};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An instance and its leaks.
#[derive(Debug, Clone, Serialize)]
pub struct Instance {
    /// The tag, which is part of the names of everything that the instance makes.
    pub tag: String,
    /// Its run directory and its store, if there is a record of them.
    pub place: Option<Place>,
    /// Whether nothing can take the instance up again: no server has its tag, and no record on this host names it.
    pub abandoned: bool,
    /// The leaks of the instance.
    pub leaks: Vec<Leak>,
}

/// The directories of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its run directory.
    pub run: PathBuf,
    /// Its store.
    pub root: Option<PathBuf>,
    /// Whether its server runs.
    pub lives: bool,
}

/// All leaks.
#[derive(Debug, Default)]
pub struct Survey {
    /// The single leaks.
    pub leaks: BTreeSet<Leak>,
    /// The leaks by instance; those without an instance are not included.
    pub instances: Vec<Instance>,
    /// Why it cannot be determined whether an instance is abandoned.
    pub doubt: Option<String>,
}

impl Survey {
    pub(crate) fn new(
        leaks: BTreeSet<Leak>,
        processes: &[Process],
        records: &Records,
        doubt: Option<String>,
    ) -> Self {
        let mut by_tag = BTreeMap::<String, Vec<Leak>>::new();
        for leak in &leaks {
            if let Some(tag) = &leak.instance {
                by_tag.entry(tag.clone()).or_default().push(leak.clone());
            }
        }
        let instances = by_tag.into_iter().map(|(tag, leaks)| Instance {
            place: records.places.get(&tag).cloned(),
            abandoned: doubt.is_none() && is_abandoned(&tag, processes, records),
            tag,
            leaks,
        });
        Self { instances: instances.collect(), leaks, doubt }
    }

    /// The leaks without an instance.
    pub fn others(&self) -> Vec<&Leak> {
        self.leaks.iter().filter(|leak| leak.instance.is_none()).collect()
    }
}

/// Whether no server has an instance or can take it up. Everything in its cgroups may be killed then, because only an
/// instance of that tag puts processes there.
fn is_abandoned(tag: &str, processes: &[Process], records: &Records) -> bool {
    // At least one thread of a server is in the cgroup of its keepers. A cgroup that cannot be read may have a
    // server.
    let server = || {
        leaks::groups(tag).iter().any(|top| {
            let members = match std::fs::read_to_string(top.join(KEEPERS).join("cgroup.procs")) {
                Ok(members) => members,
                Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
            };
            members.split_whitespace().any(|pid| {
                let keeper = processes.iter().any(|p| p.keeper && p.pid.to_string() == pid);
                !keeper && Path::new("/proc").join(pid).exists()
            })
        })
    };
    let recorded = || {
        let has = |id: &str| records.containers.contains_key(id);
        let named = |top: PathBuf| match std::fs::read_dir(top) {
            Ok(groups) => groups
                .into_iter()
                .any(|group| group.map_or(true, |group| has(&group.file_name().to_string_lossy()))),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        };
        leaks::groups(tag).into_iter().any(named)
            || processes.iter().any(|p| p.tag == tag && p.containers.iter().any(|id| has(id)))
    };
    !records.tags.contains_key(tag) && !records.claimed.contains(tag) && !server() && !recorded()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "0a1b2c3d0a1b2c3d0a1b2c3d0a1b2c3d";

    fn keeper(id: &str) -> Process {
        let containers = BTreeSet::from([id.to_owned()]);
        Process {
            pid: 1 << 30,
            keeper: true,
            tag: TAG.into(),
            containers,
            parent: true,
            ..Process::default()
        }
    }

    #[test]
    fn an_instance_with_a_server_or_a_record_is_somebodys() {
        let none = Records::default();
        assert!(is_abandoned(TAG, &[keeper("a")], &none));
        let mut tagged = Records::default();
        // Also true for an instance whose server does not run: the next server takes everything up.
        tagged.tags.insert(TAG.into(), false);
        assert!(!is_abandoned(TAG, &[keeper("a")], &tagged));
        let mut recorded = Records::default();
        recorded.containers.insert("a".into(), "/run/x/containers/a".into());
        assert!(!is_abandoned(TAG, &[keeper("a")], &recorded));
        assert!(is_abandoned(TAG, &[keeper("b")], &recorded));
    }

    #[test]
    fn doubt_makes_nothing_abandoned() {
        let leak =
            Leak { kind: "keeper", what: "process 1".into(), why: String::new(), instance: Some(TAG.into()) };
        let survey = |doubt| Survey::new(BTreeSet::from([leak.clone()]), &[], &Records::default(), doubt);
        assert!(survey(None).instances[0].abandoned);
        assert!(!survey(Some("x".into())).instances[0].abandoned);
    }
}
