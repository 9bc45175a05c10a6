//! Enforces device rules: by the devices controller of cgroup v1 where it is mounted, else by a program on cgroup v2.
//!
//! The rules of a container's cgroup are set before anything runs in it. The server's top cgroup has rules as well,
//! the wider ones: root of a privileged container can mount its own cgroup and change its rules, but never beyond
//! what the top cgroup allows.

use super::{Devices, v1, v2};
use crate::cgroup::files::{Error, at, make};
use crate::cgroup::{Cgroups, Hierarchies, Hierarchy, Limits};
use std::io;
use std::path::PathBuf;
use wardian_sys::bpf::DeviceProgram;

/// Name of our programs, as `bpftool cgroup tree` shows it.
const PROGRAM: &str = "wardian_devices";

/// The mechanism that enforces the rules.
#[derive(Debug)]
pub(in crate::cgroup) enum Guard {
    /// The devices controller of cgroup v1, in this hierarchy.
    V1(Hierarchy),
    /// Programs on cgroup v2, one for each kind of container, loaded once.
    V2 { hierarchy: Hierarchy, privileged: DeviceProgram, unprivileged: DeviceProgram },
    /// None is available, for this reason.
    Nobody(String),
}

impl Guard {
    pub(in crate::cgroup) fn find(hierarchies: &Hierarchies) -> Self {
        if let Some(hierarchy) = hierarchies.v1_of("devices") {
            return Self::V1(hierarchy.clone());
        }
        let Some(hierarchy) = hierarchies.v2.clone() else {
            return Self::Nobody(
                "neither the devices controller of cgroup v1 nor cgroup v2 is mounted".to_owned(),
            );
        };
        let load = |kind: Devices| DeviceProgram::load(PROGRAM, &v2::compile(&kind.rules()));
        match load(Devices::Privileged).and_then(|privileged| Ok((privileged, load(Devices::Unprivileged)?)))
        {
            Ok((privileged, unprivileged)) => Self::V2 { hierarchy, privileged, unprivileged },
            Err(error) => Self::Nobody(format!(
                "the devices controller of cgroup v1 is not mounted, and for v2: {error}"
            )),
        }
    }

    /// The hierarchy of the cgroups that have the rules.
    fn hierarchy(&self) -> Option<&Hierarchy> {
        match self {
            Self::V1(hierarchy) | Self::V2 { hierarchy, .. } => Some(hierarchy),
            Self::Nobody(_) => None,
        }
    }
}

impl Cgroups {
    /// Sets the rules of the top cgroup, and makes the keepers' cgroup. Returns why the rules could not be set, if
    /// they could not: containers still get their own rules.
    ///
    /// # Errors
    /// The keepers' cgroup cannot be made.
    pub fn prepare(&self) -> Result<Option<String>, Error> {
        // These rules allow what a keeper itself does: it makes nodes and opens ptmx.
        let imposed = self.impose("", Devices::Privileged);
        self.make("keepers", Limits::default(), None)?;
        self.bring_back("keepers");
        Ok(imposed.err().map(|error| error.to_string()))
    }

    /// Sets the rules of a cgroup, and replaces those that it had. An open device stays usable, so the rules are set
    /// before any process runs that they must restrict.
    ///
    /// # Errors
    /// No mechanism is available, or it fails.
    pub fn impose(&self, id: &str, devices: Devices) -> Result<(), Error> {
        match &*self.guard {
            Guard::V1(hierarchy) => {
                v1::impose(&self.dir(hierarchy, id), &devices.rules(), hierarchy.name == "devices")
            }
            Guard::V2 { hierarchy, privileged, unprivileged } => {
                let program = if devices == Devices::Privileged { privileged } else { unprivileged };
                v2::attach(&self.dir(hierarchy, id), program)
            }
            Guard::Nobody(why) => {
                let error = io::Error::new(io::ErrorKind::Unsupported, why.clone());
                Err(at("cannot enforce device rules in", &PathBuf::from(&self.top).join(id))(error))
            }
        }
    }

    /// Sets the rules of a container of an earlier server, and of its peas, which may not have had any. Cgroups with
    /// the right rules are unchanged; child cgroups inherit them.
    ///
    /// # Errors
    /// The rules cannot be enforced; the other cgroups of the container are done all the same.
    pub fn renew(&self, id: &str, devices: Devices) -> Result<(), Error> {
        let Some(hierarchy) = self.guard.hierarchy() else {
            return self.impose(id, devices);
        };
        let mut result = Ok(());
        let beside = format!("{id}.");
        let is_beside = |name: &String| name.starts_with(&beside);
        for name in std::iter::once(id.to_owned()).chain(self.list().into_iter().filter(is_beside)) {
            let one = make(&self.dir(hierarchy, &name)).and_then(|()| {
                self.bring_back(&name);
                self.impose(&name, devices)
            });
            result = result.and(one);
        }
        result
    }

    /// Moves threads back that a server left in the top cgroup when it was killed while it set the rules.
    fn bring_back(&self, id: &str) {
        let Guard::V1(hierarchy) = &*self.guard else { return };
        if let Some(other) = self.one_with_members().filter(|other| *other != hierarchy) {
            v1::bring_back(&self.dir(hierarchy, ""), &self.dir(other, id), &self.dir(hierarchy, id));
        }
    }
}

#[cfg(test)]
mod tests;
