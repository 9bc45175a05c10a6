//! Checks that a server also makes at its start: whether it would accept the store's directory, and what clients will
//! reject in its certificate.

use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use wardian_sys::directory::{Directory, Error};

/// Size limit of a certificate file.
const MOST: u64 = 4 << 20;

/// Why the directory is refused: other users could redirect root to other files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doubt {
    /// The observation.
    pub evidence: String,
    /// The remedy.
    pub remedy: String,
}

/// What clients will reject in the certificates of this host's servers, with the files' names.
pub fn certificates() -> Vec<String> {
    let read = |file: &PathBuf| wardian_sys::directory::read(file, MOST).ok();
    let told = crate::leaks::certificates().into_iter().filter_map(|file| Some((read(&file)?, file)));
    let doubts = told.flat_map(|(pem, file)| {
        let found = wardian_garden::certificate::doubts(&pem, SystemTime::now());
        found.into_iter().map(move |doubt| format!("{}: {doubt}", file.display()))
    });
    doubts.collect()
}

/// Checks the store's directory, or the nearest one above it that exists.
pub fn probe(root: &Path, nearest: &Path) -> Option<Doubt> {
    let opened = match Directory::open_shared(root) {
        Err(error) if error.is_missing() => Directory::open_shared(nearest),
        opened => opened,
    };
    let (evidence, remedy) = match opened.err()? {
        Error::Owner { path, uid } => {
            let path = path.display();
            (format!("{path} belongs to user {uid}"), format!("chown root {path}"))
        }
        Error::Writable { path, mode } => {
            let path = path.display();
            (
                format!("{path} may be written to by other users (mode {mode:04o})"),
                format!("chmod go-w {path}"),
            )
        }
        // Not run as root, so the directory cannot be examined.
        _ => return None,
    };
    Some(Doubt {
        evidence: evidence + ", who could lead root to other files: no server takes it",
        remedy: format!("`{remedy}` and look at what is there, or give the store another place (--root)"),
    })
}
