//! The names of directories in `rootfs/` that this process has made.

use parking_lot::Mutex;
use std::collections::HashSet;

/// The names in use: these directories are no trash even without a record.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashSet<String>>);

impl Names {
    /// Returns a new name, and registers it as a directory of this process.
    pub(crate) fn new_name(&self) -> String {
        let name = uuid::Uuid::new_v4().simple().to_string();
        self.0.lock().insert(name.clone());
        name
    }

    /// Whether this process has made the directory and not given it up.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.0.lock().contains(name)
    }

    /// Gives the directory up: without a record it is trash from now on.
    pub(crate) fn disown(&self, name: &str) {
        self.0.lock().remove(name);
    }

    /// Gives all directories up, and returns their names.
    pub(crate) fn disown_all(&self) -> Vec<String> {
        self.0.lock().drain().collect()
    }
}
