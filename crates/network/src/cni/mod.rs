//! CNI plugins: programs that add a network namespace to a network, and take it out again (Container Network Interface
//! specification 0.3 to 1.1).
//!
//! A list of plugins is run in its order (ADD), each with the result of the ones before, and in the opposite order at
//! the end (DEL). What DEL needs is kept in the container's record: the list as it was at ADD, and its result.
//!
//! Three operations of the specification are not used. CHECK would only repeat what DEL and a new ADD mend. GC removes
//! all attachments to a network that its caller does not name: other programs of this host may use the same list. STATUS
//! says no more than an ADD that fails.

mod config;
mod result;

pub use config::List;
pub use result::{Made, parse};
#[cfg(fuzzing)]
pub use result::{failure, versions};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wardian_sys::directory;
use wardian_sys::program::Program;
use wardian_sys::text::{chain, clip, tame};

/// The name of the interface in a container.
const INTERFACE: &str = "eth0";
/// The first version of the specification in which DEL is given the result of ADD.
const WITHOUT_RESULT_AT_THE_END: [&str; 2] = ["0.3.0", "0.3.1"];

/// Why CNI does not do what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error("CNI: read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than root could change the configuration, or a plugin.
    #[error("CNI: {path}: {}", chain(source))]
    Trust {
        /// The file.
        path: PathBuf,
        /// Why.
        source: directory::Error,
    },
    /// The configuration is not valid.
    #[error("CNI: {path}: {why}")]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is no configuration.
    #[error(
        "CNI: {path}: no network {name:?} is configured here (files *.conflist, *.conf and *.json are read)"
    )]
    NoList {
        /// The file or directory.
        path: PathBuf,
        /// The network's name; empty: any.
        name: String,
    },
    /// A plugin is not installed.
    #[error(
        "CNI: there is no plugin {name} in {search:?}; install it (Debian: containernetworking-plugins), or name its directory with --cni-bin-dir"
    )]
    NoPlugin {
        /// The plugin.
        name: String,
        /// Where it was looked for.
        search: Vec<PathBuf>,
    },
    /// A plugin cannot be used with the list.
    #[error(
        "CNI: the plugin {name} does not support version {version} of the specification, but {supported}"
    )]
    Version {
        /// The plugin.
        name: String,
        /// The list's version.
        version: String,
        /// What the plugin says.
        supported: String,
    },
    /// A plugin cannot be run, or has failed.
    #[error("CNI: plugin {name}: {command}: {why}")]
    Plugin {
        /// The plugin.
        name: String,
        /// ADD, DEL or VERSION.
        command: &'static str,
        /// Why.
        why: String,
    },
    /// The list takes no such thing.
    #[error(
        "CNI: the network {network} gives no {what}: no plugin of its list has the capability {capability}"
    )]
    Capability {
        /// The network's name.
        network: String,
        /// What was asked for.
        what: &'static str,
        /// The capability.
        capability: &'static str,
    },
}

/// A container's place in a network, as its record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container's id, `CNI_CONTAINERID`.
    pub id: String,
    /// The plugins.
    pub list: List,
    /// Where their programs are, `CNI_PATH`.
    pub search: Vec<PathBuf>,
    /// What the plugins are told if they take it, by capability.
    pub runtime: Map<String, Value>,
    /// The number of the network namespace, 0 before ADD.
    pub namespace: u64,
    /// The result of the last plugin; `None` before ADD, or if it has failed.
    pub result: Option<Value>,
}

/// How the plugins are run for a container.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The container's handle, for the plugins and the log.
    pub handle: &'a str,
    /// After this time a plugin is killed.
    pub patience: Duration,
}

impl Attachment {
    /// Adds the container to the network. If a plugin fails, the others have been told to undo what they did.
    pub(crate) fn add(&mut self, namespace: BorrowedFd<'_>, call: Call<'_>) -> Result<Made, Error> {
        let added = self.add_all(namespace, call);
        if added.is_err()
            && let Err(error) = self.delete(Some(namespace), call)
        {
            tracing::warn!(handle = call.handle, %error, "network.undo-failed");
        }
        added
    }

    fn add_all(&mut self, namespace: BorrowedFd<'_>, call: Call<'_>) -> Result<Made, Error> {
        self.namespace = number(namespace);
        let programs = self.list.find(&self.search)?;
        let mut before: Option<Value> = None;
        for (place, program) in programs.iter().enumerate() {
            let out = self.run("ADD", place, program, before.as_ref(), Some(namespace), call)?;
            let answer: Result<Map<String, Value>, _> = serde_json::from_slice(&out);
            let answer = answer.map_err(|error| failed(program, "ADD", &format!("its result: {error}")))?;
            before = Some(answer.into());
        }
        let result = before.unwrap_or_else(|| json!({}));
        let made = parse(&result).map_err(|why| {
            let last = programs.last().map_or(Path::new(""), PathBuf::as_path);
            failed(last, "ADD", &format!("its result: {why}"))
        })?;
        self.result = Some(result);
        Ok(made)
    }

    /// Takes the container out of the network. It succeeds if it is not in it any more.
    pub(crate) fn delete(&self, namespace: Option<BorrowedFd<'_>>, call: Call<'_>) -> Result<(), Error> {
        let programs = self.list.find(&self.search)?;
        let knows = !WITHOUT_RESULT_AT_THE_END.contains(&&*self.list.version);
        let before = self.result.as_ref().filter(|_| knows);
        for (place, program) in programs.iter().enumerate().rev() {
            self.run("DEL", place, program, before, namespace, call)?;
        }
        Ok(())
    }

    fn run(
        &self,
        command: &'static str,
        place: usize,
        program: &Path,
        before: Option<&Value>,
        namespace: Option<BorrowedFd<'_>>,
        call: Call<'_>,
    ) -> Result<Vec<u8>, Error> {
        let input = self.list.derive(place, &self.runtime, before).unwrap_or_default().to_string();
        // Plugins, and programs that they ask, reach the namespace through this process.
        let path = namespace.map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
        let search = joined(&self.search);
        let mut args = "IgnoreUnknown=1".to_owned();
        if !call.handle.contains([';', '=']) {
            args += &format!(";WARDIAN_HANDLE={}", call.handle);
        }
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &self.id),
            ("CNI_NETNS", path.as_deref().unwrap_or_default()),
            ("CNI_IFNAME", INTERFACE),
            ("CNI_ARGS", &args),
            ("CNI_PATH", &search),
        ];
        execute(program, command, &env, &input, call)
    }
}

/// Returns the number of a namespace (namespaces(7)); 0 if the kernel does not tell it.
pub(crate) fn number(namespace: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(namespace).map_or(0, |stat| stat.st_ino)
}

fn joined(search: &[PathBuf]) -> String {
    let joined = search.iter().map(|folder| folder.as_os_str().to_owned()).collect::<Vec<OsString>>();
    joined.join(":".as_ref()).to_string_lossy().into_owned()
}

fn failed(program: &Path, command: &'static str, why: &str) -> Error {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Error::Plugin { name, command, why: tame(&clip(why, 2048)).into_owned() }
}

fn execute(
    program: &Path,
    command: &'static str,
    env: &[(&str, &str)],
    input: &str,
    call: Call<'_>,
) -> Result<Vec<u8>, Error> {
    let run = Program { path: program, args: &[], env, input: input.as_bytes(), patience: call.patience };
    let output = run.run().map_err(|error| failed(program, command, &error.to_string()))?;
    crate::outside::log(program, command, call.handle, &output);
    if output.status.success() {
        return Ok(output.out);
    }
    let why = result::failure(&output.out, &output.said);
    let why = if why.is_empty() { output.status.to_string() } else { why };
    Err(failed(program, command, &why))
}

/// Checks that all plugins of a list are there and support its version.
///
/// # Errors
/// What is missing.
pub(crate) fn check(list: &List, search: &[PathBuf], patience: Duration) -> Result<(), Error> {
    let programs: BTreeSet<PathBuf> = list.find(search)?.into_iter().collect();
    for program in programs {
        let input = json!({"cniVersion": list.version}).to_string();
        let search = joined(search);
        let env = [("CNI_COMMAND", "VERSION"), ("CNI_PATH", &*search)];
        let answer = execute(&program, "VERSION", &env, &input, Call { handle: "", patience })?;
        let supported = result::versions(&answer).map_err(|why| failed(&program, "VERSION", &why))?;
        if !supported.contains(&list.version) {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let supported = tame(&clip(&supported.join(", "), 256)).into_owned();
            return Err(Error::Version { name, version: list.version.clone(), supported });
        }
    }
    Ok(())
}
