//! `format.json`: which versions of the program may touch this store.
//!
//! It has three sets of features, as ext4 has: a program that does not know a *compat* feature may use the store, one
//! that does not know a *ro_compat* feature may only read it, one that does not know an *incompat* feature must leave
//! it alone. This program always writes, so it treats the last two alike.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The version that this program writes. It changes only when feature sets cannot express the change.
pub const VERSION: u32 = 1;

/// Root file systems have records in the run directory, which name their directories. A program that takes a
/// directory's name for the root file system's id would delete them.
const RECORDS: &str = "records";
/// Manifests and configs of named images lie in files beside their records. A program that looks for them inside the
/// records would take every image for one without a config, and run its processes as root.
const DOCUMENTS: &str = "documents";

/// The *incompat* features that this program knows.
const KNOWN_INCOMPAT: &[&str] = &[RECORDS, DOCUMENTS];
/// The *ro_compat* features that this program knows; none yet.
const KNOWN_RO_COMPAT: &[&str] = &[];

/// Why a store must be left alone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No version writes such a `format.json`.
    #[error("the store's format.json cannot be understood")]
    Parse(#[source] serde_json::Error),
    /// A later program made this store.
    #[error("the store has format version {found}, this program knows versions up to {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The store uses features that this program does not know.
    #[error("the store uses features that this program does not know: {}", .features.join(", "))]
    Features {
        /// Their names.
        features: Vec<String>,
    },
}

/// The contents of `format.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// The version of the layout as a whole.
    pub version: u32,
    /// Features that others may ignore.
    #[serde(default)]
    pub compat: BTreeSet<String>,
    /// Features that a writer must know.
    #[serde(default)]
    pub ro_compat: BTreeSet<String>,
    /// Features that everybody must know.
    #[serde(default)]
    pub incompat: BTreeSet<String>,
}

impl Default for Format {
    fn default() -> Self {
        let none = BTreeSet::new;
        Self { version: VERSION, compat: none(), ro_compat: none(), incompat: none() }.upgrade()
    }
}

impl Format {
    /// Adds the features that this program's stores have.
    #[must_use]
    pub fn upgrade(mut self) -> Self {
        self.incompat.extend([RECORDS, DOCUMENTS].map(str::to_owned));
        self
    }

    /// Parses a `format.json`, and refuses a store that this program must not touch.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let format: Self = serde_json::from_str(text).map_err(Error::Parse)?;
        if format.version == 0 || format.version > VERSION {
            return Err(Error::Version { found: format.version });
        }
        let unknown = |set: &BTreeSet<String>, known: &[&str]| {
            set.iter().filter(|name| !known.contains(&name.as_str())).cloned().collect::<Vec<_>>()
        };
        let mut features = unknown(&format.incompat, KNOWN_INCOMPAT);
        features.extend(unknown(&format.ro_compat, KNOWN_RO_COMPAT));
        if features.is_empty() { Ok(format) } else { Err(Error::Features { features }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_and_what_is_not() {
        let own = serde_json::to_string(&Format::default()).unwrap();
        assert_eq!(Format::parse(&own).unwrap(), Format::default());
        let older = Format::parse(r#"{"version":1,"compat":["tea"],"later":3}"#).unwrap();
        let newer = older.upgrade();
        assert!([RECORDS, DOCUMENTS].iter().all(|feature| newer.incompat.contains(*feature)));
        for (text, says) in [
            (r#"{"version":2}"#, "format version 2"),
            (r#"{"version":0}"#, "format version 0"),
            (r#"{"version":1,"incompat":["erofs"]}"#, "erofs"),
            (r#"{"version":1,"ro_compat":["quota"]}"#, "quota"),
            ("", "cannot be understood"),
        ] {
            let error = Format::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
