//! The id mappings of a store, recorded in `meta/namespace.json` as GrootFS records them.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wardian_sys::namespace::{self, IdMap};

use super::error::{Error, go_error};

/// The kernel's limit of lines in a map (`UID_GID_MAP_MAX_EXTENTS`).
const MAX_EXTENTS: usize = 340;
/// What a directory of the store is called that GrootFS has too.
const META: &str = "meta";

/// The mappings of user and group ids; empty ones map nothing, and the host's root is the images' root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mappings {
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    uid_mappings: Vec<String>,
    gid_mappings: Vec<String>,
}

/// A user namespace with the mappings, and its root's ids on the host.
#[derive(Debug)]
pub struct Root {
    /// The user namespace.
    pub userns: OwnedFd,
    /// The host's id of its root user.
    pub uid: u32,
    /// The host's id of its root group.
    pub gid: u32,
}

/// Parses `<Namespace ID>:<Host ID>:<Size>`; an error is what Go's Sscanf says.
fn parse(text: &str) -> Result<IdMap, &'static str> {
    let mut parts = text.split(':');
    let mut next = || -> Result<u32, &'static str> {
        let part = parts.next().filter(|part| !part.is_empty()).ok_or("unexpected EOF")?;
        if !part.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') {
            return Err("expected integer");
        }
        let number = part.strip_prefix('+').unwrap_or(part);
        number.parse().map_err(|_| "integer out of range")
    };
    let map = IdMap { inside: next()?, outside: next()?, size: next()? };
    if parts.next().is_some() { Err("input does not match format") } else { Ok(map) }
}

/// The sorted texts of mappings, in which they are recorded and compared.
fn texts(maps: &[IdMap]) -> Vec<String> {
    let text = |map: &IdMap| format!("{}:{}:{}", map.inside, map.outside, map.size);
    let mut texts: Vec<String> = maps.iter().map(text).collect();
    texts.sort();
    texts
}

/// Refuses what the kernel would refuse, or what has no root.
fn check(kind: &'static str, maps: &[IdMap]) -> Result<(), Error> {
    let bad = |why| Err(Error::BadMapping { kind, why });
    if maps.is_empty() {
        return Ok(());
    }
    if maps.len() > MAX_EXTENTS {
        return bad("there are more than 340 of them");
    }
    if maps.iter().any(|map| map.size == 0) {
        return bad("the size is 0");
    }
    let end = |first: u32, size: u32| u64::from(first) + u64::from(size);
    // The last id is no id (-1).
    let over = |first, size| end(first, size) > u64::from(u32::MAX);
    if maps.iter().any(|map| over(map.inside, map.size) || over(map.outside, map.size)) {
        return bad("it ends beyond 4294967294");
    }
    let overlap = |first: fn(&IdMap) -> u32| {
        let mut ranges: Vec<_> = maps.iter().map(|map| (first(map), end(first(map), map.size))).collect();
        ranges.sort_unstable();
        ranges.windows(2).any(|pair| pair[0].1 > u64::from(pair[1].0))
    };
    if overlap(|map| map.inside) || overlap(|map| map.outside) {
        return bad("two of them overlap");
    }
    if maps.iter().all(|map| map.inside != 0) {
        return bad("none of them maps root (0), who owns the root directory");
    }
    Ok(())
}

impl Mappings {
    /// Parses the flags.
    ///
    /// # Errors
    /// One of them is no mapping.
    pub fn parse(uids: &[String], gids: &[String]) -> Result<Self, Error> {
        let all = |kind, texts: &[String]| {
            let maps: Result<Vec<_>, _> = texts.iter().map(|text| parse(text)).collect();
            maps.map_err(|why| Error::Mapping { kind, why })
        };
        Ok(Self { uids: all("uid", uids)?, gids: all("gid", gids)? })
    }

    /// Refuses what cannot be a store's mappings.
    fn check(&self) -> Result<(), Error> {
        check("uid", &self.uids)?;
        check("gid", &self.gids)?;
        if self.uids.is_empty() != self.gids.is_empty() {
            let kind = if self.uids.is_empty() { "uid" } else { "gid" };
            return Err(Error::BadMapping { kind, why: "there is none, but one of the other kind" });
        }
        Ok(())
    }

    fn path(store: &Path) -> PathBuf {
        store.join(META).join("namespace.json")
    }

    /// Whether mappings are recorded, as in every store that was initialized.
    pub fn are_recorded(store: &Path) -> bool {
        Self::path(store).exists()
    }

    /// Reads the mappings of a store.
    ///
    /// # Errors
    /// There are none, or they are damaged.
    pub fn read(store: &Path) -> Result<Self, Error> {
        let path = Self::path(store);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::ReadNamespace(go_error("open", &path, &error)))?;
        Self::of(&text)
    }

    fn of(text: &str) -> Result<Self, Error> {
        let file: File = serde_json::from_str(text).map_err(|error| Error::Namespace(error.to_string()))?;
        let all = |kind, texts: &[String]| -> Result<Vec<IdMap>, Error> {
            let one =
                |text: &String| parse(text).map_err(|_| Error::StoredMapping { kind, text: text.clone() });
            texts.iter().map(one).collect()
        };
        Ok(Self { uids: all("uid", &file.uid_mappings)?, gids: all("gid", &file.gid_mappings)? })
    }

    /// Records the mappings of a store, unless the same ones are recorded already. Waits for the disk.
    ///
    /// # Errors
    /// Others are recorded, they cannot be a store's mappings, or the file cannot be written.
    pub fn record(&self, store: &Path) -> Result<(), Error> {
        if Self::are_recorded(store) {
            let old = Self::read(store)?;
            if texts(&old.uids) != texts(&self.uids) {
                return Err(Error::OtherMappings("UID"));
            }
            return if texts(&old.gids) == texts(&self.gids) {
                Ok(())
            } else {
                Err(Error::OtherMappings("GID"))
            };
        }
        self.check()?;
        let path = Self::path(store);
        let file = File { uid_mappings: texts(&self.uids), gid_mappings: texts(&self.gids) };
        let written = || -> std::io::Result<()> {
            std::fs::create_dir_all(store.join(META))?;
            let new = store.join(META).join(format!(".namespace.{}", std::process::id()));
            let mut to = std::fs::File::create(&new)?;
            to.write_all(format!("{}\n", serde_json::to_string(&file)?).as_bytes())?;
            to.sync_all()?;
            // The first of several that initialize a store wins; the others compare.
            match std::fs::hard_link(&new, &path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            std::fs::remove_file(&new)?;
            std::fs::File::open(store.join(META))?.sync_all()
        };
        written().map_err(|error| Error::WriteNamespace(go_error("open", &path, &error)))?;
        if Self::read(store)? == Self::of(&serde_json::to_string(&file).unwrap_or_default())? {
            Ok(())
        } else {
            self.record(store)
        }
    }

    /// Returns the user namespace of the mappings; `None` without mappings.
    ///
    /// # Errors
    /// The recorded mappings are unusable, or the kernel refuses them.
    pub fn root(&self) -> Result<Option<Root>, Error> {
        if self.uids.is_empty() && self.gids.is_empty() {
            return Ok(None);
        }
        let root = |kind, maps: &[IdMap]| {
            check(kind, maps)?;
            let found = maps.iter().find(|map| map.inside == 0);
            found.map(|map| map.outside).ok_or(Error::BadMapping { kind, why: "there is none" })
        };
        let (uid, gid) = (root("uid", &self.uids)?, root("gid", &self.gids)?);
        let userns = namespace::user(&self.uids, &self.gids).map_err(Error::UserNamespace)?;
        Ok(Some(Root { userns, uid, gid }))
    }

    /// The mappings as the log shows them: user ids, group ids.
    pub fn shown(&self) -> [Value; 2] {
        [&self.uids, &self.gids].map(|maps| {
            let one =
                |map: &IdMap| json!({"HostID": map.outside, "NamespaceID": map.inside, "Size": map.size});
            maps.iter().map(one).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uids: &[&str], gids: &[&str]) -> Result<Mappings, Error> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mappings = Mappings::parse(&owned(uids), &owned(gids))?;
        mappings.check().map(|()| mappings)
    }

    #[test]
    fn mappings_are_of_a_store_for_ever() {
        let store = tempfile::tempdir().unwrap();
        let usual = ["0:4294967294:1", "1:1:4294967293"];
        let mappings = of(&usual, &usual).unwrap();
        assert!(Mappings::read(store.path()).is_err() && !Mappings::are_recorded(store.path()));
        mappings.record(store.path()).unwrap();
        mappings.record(store.path()).unwrap();
        let text = std::fs::read_to_string(store.path().join("meta/namespace.json")).unwrap();
        assert_eq!(
            text,
            "{\"uid-mappings\":[\"0:4294967294:1\",\"1:1:4294967293\"],\"gid-mappings\":[\"0:4294967294:1\",\"1:1:4294967293\"]}\n"
        );
        // The order does not count.
        of(&[usual[1], usual[0]], &usual).unwrap().record(store.path()).unwrap();
        let refused = |mappings: Mappings| mappings.record(store.path()).unwrap_err().to_string();
        let end = "mappings do not match those already configured in the store";
        assert_eq!(refused(Mappings::default()), format!("provided UID {end}"));
        assert_eq!(refused(of(&usual, &usual[..1]).unwrap()), format!("provided GID {end}"));
        // That they are others is said before what is wrong with them.
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let overlap = Mappings::parse(&texts(&["0:4294967294:1", "1:2:4294967293"]), &texts(&usual)).unwrap();
        assert_eq!(refused(overlap), format!("provided UID {end}"));
        assert_eq!(std::fs::read_dir(store.path().join("meta")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_mapping() {
        for (text, says) in [
            ("junk", "parsing uid-mapping: expected integer"),
            ("0:1", "parsing uid-mapping: unexpected EOF"),
            ("", "parsing uid-mapping: unexpected EOF"),
            ("0:1:1:1", "parsing uid-mapping: input does not match format"),
            ("-1:1:1", "parsing uid-mapping: integer out of range"),
            ("0:1:4294967296", "parsing uid-mapping: integer out of range"),
            ("0:1:0", "invalid uid-mapping: the size is 0"),
            ("0:4294967295:1", "invalid uid-mapping: it ends beyond 4294967294"),
            ("1:1:10", "invalid uid-mapping: none of them maps root (0), who owns the root directory"),
        ] {
            assert_eq!(of(&[text], &["0:1:1"]).unwrap_err().to_string(), says, "{text}");
        }
        assert!(of(&["0:1:10", "5:100:1"], &["0:1:1"]).unwrap_err().to_string().contains("overlap"));
        assert!(of(&["0:1:10", "20:5:1"], &["0:1:1"]).unwrap_err().to_string().contains("overlap"));
        assert!(of(&["0:1:1"], &[]).unwrap_err().to_string().contains("other kind"));
        for (text, says) in [
            ("junk", "invalid namespace file: "),
            ("{}", "invalid namespace file: "),
            (r#"{"uid-mappings":["a"],"gid-mappings":[]}"#, "invalid uid mappings format: a"),
            (r#"{"uid-mappings":[],"gid-mappings":["1"]}"#, "invalid gid mappings format: 1"),
        ] {
            let error = Mappings::of(text).unwrap_err().to_string();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }
}
