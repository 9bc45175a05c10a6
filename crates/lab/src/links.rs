//! Finds what instances have left in the network namespace of this process: links, and firewalls.

use crate::ground::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use wardian_network::{bridge_name, group, host};
use wardian_sys::directory::Directory;

/// What instances there are.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Tags of instances with a record, and whether their servers run.
    pub(crate) servers: BTreeMap<String, bool>,
    /// Tags of instances that something else names.
    pub(crate) tags: BTreeSet<String>,
    /// Directories of recorded containers, and the tags of their instances.
    pub(crate) containers: Vec<(PathBuf, Option<String>)>,
}

/// Something that nobody uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    /// `link` or `firewall`.
    pub(crate) kind: &'static str,
    /// The name of a link, or of tables.
    pub(crate) what: String,
    /// Why nobody uses it.
    pub(crate) why: String,
    /// The tag of the instance that has made it.
    pub(crate) instance: Option<String>,
}

/// A link of an instance, as far as its owner is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    name: String,
    group: u32,
}

impl Known {
    /// Finds links and firewalls of instances without a server that no recorded container uses. Finds nothing where
    /// only root can look.
    pub(crate) fn find(&self) -> Vec<Left> {
        let links = host::links().unwrap_or_default();
        let tables = host::tables().unwrap_or_default();
        if links.is_empty() && tables.is_empty() {
            return Vec::new();
        }
        let links: Vec<Link> =
            links.into_iter().map(|link| Link { name: link.name, group: link.group }).collect();
        self.sort(&self.used(), &links, &tables)
    }

    /// The links of all recorded containers, by the tags of their instances: other instances, in other network
    /// namespaces, have links of the same names.
    fn used(&self) -> BTreeSet<(String, String)> {
        let links = |dir: &PathBuf| {
            let record = json(&Directory::open(dir).ok()?, "state.json");
            // Only the driver of bridges has links that are ours.
            let network = &record["network"]["bridged"];
            let id = network["id"].as_str()?;
            let bridge = network["subnet"].as_str().and_then(|subnet| subnet.parse().ok()).map(bridge_name);
            Some([Some(format!("w{id}-0")), Some(format!("w{id}-2")), bridge])
        };
        let owned = self.containers.iter().filter_map(|(dir, owner)| Some((owner.as_ref()?, links(dir)?)));
        let each =
            |(owner, names): (&String, [Option<String>; 3])| names.map(|name| Some((owner.clone(), name?)));
        owned.flat_map(each).flatten().collect()
    }

    fn sort(
        &self,
        used: &BTreeSet<(String, String)>,
        links: &[Link],
        tables: &BTreeMap<String, Vec<String>>,
    ) -> Vec<Left> {
        let lives = |tag: &str| self.servers.get(tag).copied().unwrap_or(false);
        let known = self.servers.keys().chain(&self.tags).chain(tables.keys());
        let by_group: BTreeMap<u32, &String> = known.map(|tag| (group(tag), tag)).collect();
        let unused = || "no server and no container uses it".to_owned();
        let mut left = Vec::new();
        for Link { name, group } in links {
            let instance = by_group.get(group).copied();
            let is_used = |tag: &String| lives(tag) || used.contains(&(tag.clone(), name.clone()));
            if instance.is_some_and(is_used) {
                continue;
            }
            let why = match instance {
                Some(_) => unused(),
                None => format!(
                    "named as wardian names its links, of a group ({group:#x}) that is of no instance known here: if \
                     nobody uses it, `ip link delete {name}` removes it"
                ),
            };
            left.push(Left { kind: "link", what: name.clone(), why, instance: instance.cloned() });
        }
        for (tag, names) in tables {
            let is_used = self.containers.iter().any(|(_, owner)| owner.as_ref() == Some(tag));
            if !lives(tag) && !is_used {
                let what = format!("the tables {}", names.join(" and "));
                left.push(Left { kind: "firewall", what, why: unused(), instance: Some(tag.clone()) });
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "0a1b2c3d0a1b2c3d0a1b2c3d0a1b2c3d";

    /// What is left of an instance: the names, and whether it has an owner.
    fn left(known: &Known, used: &[&str]) -> Vec<(String, bool)> {
        let link = |name: &str, group| Link { name: name.into(), group };
        let links = [
            link("wqkss70he4db-0", group(TAG)),
            link("wbrdg-0afe0004", group(TAG)),
            link("wbrdg-0a090000", 0x7fff_ffff),
        ];
        let tables = [(TAG.to_owned(), vec![format!("inet wardian-{TAG}")])].into();
        let used = used.iter().map(|name| (TAG.to_owned(), (*name).to_owned())).collect();
        let left = known.sort(&used, &links, &tables);
        left.into_iter().map(|left| (left.what, left.instance.is_some())).collect()
    }

    #[test]
    fn links_and_firewalls_belong_to_servers_or_containers() {
        let port = ("wqkss70he4db-0".to_owned(), true);
        let bridge = ("wbrdg-0afe0004".to_owned(), true);
        let stranger = ("wbrdg-0a090000".to_owned(), false);
        let firewall = (format!("the tables inet wardian-{TAG}"), true);
        let all = [port, bridge.clone(), stranger.clone(), firewall];
        let mut known = Known::default();
        assert_eq!(left(&known, &[]), all);
        known.servers.insert(TAG.into(), false);
        assert_eq!(left(&known, &[]), all);
        // A living container keeps its links, and the firewall.
        known.containers.push(("/run/x/containers/a".into(), Some(TAG.into())));
        assert_eq!(left(&known, &["wqkss70he4db-0", "wbrdg-0afe0004"]), std::slice::from_ref(&stranger));
        assert_eq!(left(&known, &["wqkss70he4db-0"]), [bridge, stranger.clone()]);
        known.servers.insert(TAG.into(), true);
        assert_eq!(left(&known, &[]), [stranger]);
    }

    #[test]
    fn the_links_of_a_container_are_in_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let containers = vec![(dir.path().into(), Some(TAG.to_owned()))];
        let known = Known { containers, ..Known::default() };
        assert_eq!(known.used(), BTreeSet::new());
        let state = r#"{"network":{"bridged":{"id":"qkss70he4db","subnet":"10.254.0.4/30"}}}"#;
        std::fs::write(dir.path().join("state.json"), state).unwrap();
        let names = ["wqkss70he4db-0", "wqkss70he4db-2", "wbrdg-0afe0004"];
        assert_eq!(known.used(), names.map(|name| (TAG.to_owned(), name.to_owned())).into());
        // The same name is another instance's, in another namespace.
        let containers = vec![(dir.path().into(), Some("another".to_owned()))];
        let known = Known { containers, ..Known::default() };
        let bridge = Link { name: "wbrdg-0afe0004".into(), group: group(TAG) };
        let left = Known { tags: [TAG.to_owned()].into(), ..known };
        assert_eq!(left.sort(&left.used(), &[bridge], &BTreeMap::new()).len(), 1);
    }
}
