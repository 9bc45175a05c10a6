//! Network configuration lists of CNI (Container Network Interface specification, section 1).

use super::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use wardian_sys::directory;
use wardian_sys::text::{clip, tame};

/// The versions of the specification that a list may be of, the latest last. Their results are written in the same
/// way.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The most bytes of a list: it is kept in the record of each container.
const MOST: u64 = 256 << 10;
/// The most bytes of a value that an error repeats.
const TOLD: usize = 256;
/// The most plugins of a list.
const MOST_PLUGINS: usize = 32;
/// The endings of the files of a directory that are lists (`conflist`), or single plugins.
const ENDINGS: [&str; 3] = ["conflist", "conf", "json"];

/// A list of plugins, which together make the network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The version of the specification.
    pub version: String,
    /// The network's name.
    pub name: String,
    /// The configurations of the plugins, each with a valid `type`.
    pub plugins: Vec<Map<String, Value>>,
}

impl List {
    /// Reads a list from a file, or from the files of a directory: the one of this name, or the first one in the order
    /// of the files' names.
    ///
    /// # Errors
    /// There is none, it is not valid, or other users than root could change it: it says what is run as root.
    pub fn read(path: &Path, name: Option<&str>) -> Result<Self, Error> {
        let fail = |source| Error::Read { path: path.to_owned(), source };
        if !fs::metadata(path).map_err(fail)?.is_dir() {
            let list = Self::read_file(path)?;
            return match name.filter(|name| *name != list.name) {
                Some(name) => Err(Error::NoList { path: path.to_owned(), name: name.to_owned() }),
                None => Ok(list),
            };
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            if file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) {
                files.push(file);
            }
        }
        files.sort();
        for file in files {
            let list = Self::read_file(&file)?;
            if name.is_none_or(|name| name == list.name) {
                return Ok(list);
            }
        }
        Err(Error::NoList { path: path.to_owned(), name: name.unwrap_or_default().to_owned() })
    }

    fn read_file(path: &Path) -> Result<Self, Error> {
        let text =
            directory::read(path, MOST).map_err(|source| Error::Trust { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|why| Error::List { path: path.to_owned(), why })
    }

    /// Parses a list, or the configuration of a single plugin.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut list: Map<String, Value> = serde_json::from_slice(text).map_err(|error| told(&error))?;
        let name = text_of(&list, "name").ok_or("it has no name")?.to_owned();
        if !is_name(&name) {
            return Err(format!(
                "the name \"{}\" has other characters than letters, digits, '.', '_' and '-'",
                tame(&clip(&name, TOLD))
            ));
        }
        let version = version(&list)?;
        let plugins = match list.remove("plugins") {
            Some(plugins) => {
                serde_json::from_value(plugins).map_err(|error| format!("plugins: {}", told(&error)))?
            }
            None => vec![list],
        };
        if plugins.is_empty() || plugins.len() > MOST_PLUGINS {
            return Err(format!(
                "it has {} plugins, of which 1 to {MOST_PLUGINS} are allowed",
                plugins.len()
            ));
        }
        for plugin in &plugins {
            let kind = text_of(plugin, "type").ok_or("a plugin has no type")?;
            if !is_name(kind) {
                return Err(format!(
                    "the plugin type \"{}\" is not the name of a program",
                    tame(&clip(kind, TOLD))
                ));
            }
        }
        Ok(Self { version, name, plugins })
    }

    /// Returns the names of the plugins' programs.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().filter_map(|plugin| text_of(plugin, "type"))
    }

    /// Whether a plugin of the list takes this of the runtime's configuration.
    pub fn takes(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| takes(plugin, capability))
    }

    /// Returns what the plugin of this place is given: its own configuration with the list's name and version, what
    /// it takes of `runtime`, and the result of the plugins before it (section 3, "Deriving execution configuration").
    pub fn derive(
        &self,
        place: usize,
        runtime: &Map<String, Value>,
        before: Option<&Value>,
    ) -> Option<Value> {
        let plugin = self.plugins.get(place)?;
        let mut derived = plugin.clone();
        derived.remove("capabilities");
        derived.insert("name".to_owned(), self.name.as_str().into());
        derived.insert("cniVersion".to_owned(), self.version.as_str().into());
        let given: Map<String, Value> = runtime
            .iter()
            .filter(|(key, _)| takes(plugin, key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !given.is_empty() {
            derived.insert("runtimeConfig".to_owned(), given.into());
        }
        if let Some(before) = before {
            derived.insert("prevResult".to_owned(), before.clone());
        }
        Some(derived.into())
    }

    /// Finds the program of each plugin in these directories.
    ///
    /// # Errors
    /// One is missing, or other users than root could change it.
    pub fn find(&self, search: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
        let find = |name: &str| {
            let found = search.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
            let found =
                found.ok_or_else(|| Error::NoPlugin { name: name.to_owned(), search: search.to_vec() })?;
            directory::check_file(&found).map_err(|source| Error::Trust { path: found.clone(), source })?;
            Ok(found)
        };
        self.types().map(find).collect()
    }
}

fn told(error: &serde_json::Error) -> String {
    tame(&clip(&error.to_string(), TOLD)).into_owned()
}

fn takes(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(capability)).and_then(Value::as_bool).unwrap_or(false)
}

fn text_of<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// Returns the latest version that both the list and this program know.
fn version(list: &Map<String, Value>) -> Result<String, String> {
    // Since 1.1.0 a list may name several.
    let named: Vec<&str> = match list.get("cniVersions").and_then(Value::as_array) {
        Some(versions) => {
            versions.iter().filter_map(Value::as_str).chain(text_of(list, "cniVersion")).collect()
        }
        None => text_of(list, "cniVersion").into_iter().collect(),
    };
    let known = VERSIONS.iter().rev().find(|version| named.contains(version));
    known.map(|version| (*version).to_owned()).ok_or_else(|| {
        let named = tame(&clip(&named.join(", "), TOLD)).into_owned();
        format!("its cniVersion is \"{named}\", and none of {}", VERSIONS.join(", "))
    })
}

/// Whether the specification allows this for the name of a network, and whether it is that of a file.
fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.len() <= 255 && name.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "apps", "plugins": [
        {"type": "bridge", "bridge": "b0", "capabilities": {"ips": true, "mac": false}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    #[test]
    fn a_plugin_is_given_what_it_takes() {
        let list = List::parse(LIST.as_bytes()).unwrap();
        assert_eq!(list.types().collect::<Vec<_>>(), ["bridge", "portmap"]);
        assert!(list.takes("portMappings") && !list.takes("mac") && !list.takes("bandwidth"));
        let runtime = Map::from_iter([
            ("portMappings".to_owned(), json!([1])),
            ("ips".to_owned(), json!(["10.0.0.1"])),
        ]);
        let first = list.derive(0, &runtime, None).unwrap();
        let runs = json!({"ips": ["10.0.0.1"]});
        assert_eq!(
            first,
            json!({"type": "bridge", "bridge": "b0", "name": "apps", "cniVersion": "1.0.0", "runtimeConfig": runs})
        );
        let second = list.derive(1, &Map::new(), Some(&json!({"ips": []}))).unwrap();
        assert_eq!(
            second,
            json!({"type": "portmap", "name": "apps", "cniVersion": "1.0.0", "prevResult": {"ips": []}})
        );
        assert!(list.derive(2, &runtime, None).is_none());
    }

    #[test]
    fn lists() {
        let version = |text: &str| List::parse(text.as_bytes()).map(|list| list.version);
        let single = r#"{"cniVersion": "0.4.0", "name": "n", "type": "ptp"}"#;
        assert_eq!(version(single).unwrap(), "0.4.0");
        let several = r#"{"cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "name": "n", "type": "ptp"}"#;
        assert_eq!(version(several).unwrap(), "1.1.0");
        for (bad, says) in [
            ("{", "EOF"),
            ("[]", "expected a map"),
            (r#"{"cniVersion": "1.0.0", "type": "a"}"#, "no name"),
            (r#"{"cniVersion": "1.0.0", "name": "../a", "type": "a"}"#, "other characters"),
            (r#"{"cniVersion": "2.0.0", "name": "a", "type": "a"}"#, "\"2.0.0\", and none of 0.3.0"),
            (r#"{"name": "a", "type": "a"}"#, "none of"),
            (r#"{"cniVersion": "1.0.0", "name": "a"}"#, "no type"),
            (r#"{"cniVersion": "1.0.0", "name": "a", "plugins": []}"#, "0 plugins"),
            (
                r#"{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "../../bin/sh"}]}"#,
                "not the name of a program",
            ),
            (r#"{"cniVersion": "1.0.0", "name": "a", "plugins": [1]}"#, "plugins: "),
        ] {
            let error = version(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_directory_is_searched_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let put = |file: &str, name: &str| {
            let text = format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "type": "ptp"}}"#);
            fs::write(folder.path().join(file), text).unwrap();
        };
        assert!(matches!(List::read(folder.path(), None), Err(Error::NoList { .. })));
        put("20-b.conflist", "b");
        put("10-a.conf", "a");
        put("00-c.txt", "c");
        assert_eq!(List::read(folder.path(), None).unwrap().name, "a");
        assert_eq!(List::read(folder.path(), Some("b")).unwrap().name, "b");
        assert!(matches!(List::read(folder.path(), Some("c")), Err(Error::NoList { .. })));
        assert!(matches!(List::read(&folder.path().join("10-a.conf"), Some("b")), Err(Error::NoList { .. })));
        let everybodys = fs::Permissions::from_mode(0o666);
        fs::set_permissions(folder.path().join("10-a.conf"), everybodys).unwrap();
        assert!(matches!(List::read(folder.path(), None), Err(Error::Trust { .. })));
    }

    use std::os::unix::fs::PermissionsExt as _;
}
