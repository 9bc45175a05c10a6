//! Checks what a request for a container or a pea carries against its bundle, and builds from it.

use crate::inside;
use crate::launches::{Fail, other};
use std::os::fd::OwnedFd;
use wardian_runtime::bundle::{self, Plan};
use wardian_runtime::rights::Rights;
use wardian_runtime::wire::{Boxed, Exec};

/// Puts the container's own files (hosts, resolv.conf), which lie outside its root file system, into a tmpfs.
pub fn own_files(boxed: &Boxed<OwnedFd>, plan: &Plan) -> Result<Option<inside::OwnFiles>, Fail> {
    let mut contents = Vec::new();
    for (destination, fd) in &boxed.files {
        contents.push((destination.as_str(), read_all(fd)?));
    }
    inside::own_files(plan, &contents).map_err(other)
}

/// Parses and checks the bundle of a container or a pea.
pub fn plan(boxed: &Boxed<OwnedFd>) -> Result<Plan, Fail> {
    let plan = bundle::plan(&read_all(&boxed.config)?).map_err(other)?;
    agree(&plan, &boxed.binds)?;
    Ok(plan)
}

/// Fails unless the bind mounts of the request are the first ones of the bundle, in its order.
fn agree(plan: &Plan, binds: &[(String, OwnedFd)]) -> Result<(), Fail> {
    let mut said = plan.mounts.iter().filter(|mount| mount.kind == "bind");
    for (destination, _) in binds {
        if said.next().is_none_or(|said| said.destination != *destination) {
            return Err(other(format!("config.json: mounts: none for {destination} at its place")));
        }
    }
    Ok(())
}

/// Fails unless the bundle's namespaces are those that the container gets.
pub fn fits_container(plan: &Plan, user: bool) -> Result<(), Fail> {
    if plan.joins.is_some() {
        return Err(other("config.json: linux.namespaces: a container that joins another is not supported"));
    }
    if plan.user != user {
        return Err(other(
            "config.json: linux.namespaces: there is a user namespace in it or along with it, not both",
        ));
    }
    Ok(())
}

/// Fails unless the pea's bundle has the namespaces of its container and the rights that the request gives it.
pub fn fits_pea(plan: &Plan, exec: &Exec, pid: i32, user: bool) -> Result<(), Fail> {
    if plan.joins != Some(pid) || plan.user != user {
        return Err(other("config.json: linux.namespaces: they are not those of the pea's container"));
    }
    let Rights { capabilities, no_new_privileges, .. } = plan.rights;
    for (key, same) in [
        ("capabilities", capabilities == exec.capabilities),
        ("noNewPrivileges", no_new_privileges == exec.no_new_privileges),
    ] {
        if !same {
            return Err(other(format!(
                "config.json: process.{key}: the request for the pea says something else"
            )));
        }
    }
    Ok(())
}

/// Reads all of a memory file, by absolute offsets because the file offset may be shared.
pub fn read_all(fd: &OwnedFd) -> Result<Vec<u8>, Fail> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = rustix::io::pread(fd, &mut chunk, bytes.len() as u64).map_err(other)?;
        if n == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&chunk[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_runtime::bundle::{Extra, Settings};

    fn planned(settings: Settings) -> Plan {
        let mapping = vec![(0, 100_000, 65_536)];
        let settings = Settings { mapping, cgroups_path: "/x".to_owned(), ..settings };
        bundle::plan(bundle::text(&settings).as_bytes()).unwrap()
    }

    #[test]
    fn a_bundle_must_say_what_is_done() {
        let container = planned(Settings::default());
        assert!(fits_container(&container, true).is_ok() && fits_container(&container, false).is_err());
        let privileged = planned(Settings { privileged: true, ..Settings::default() });
        assert!(fits_container(&privileged, false).is_ok() && fits_container(&privileged, true).is_err());
        let pea = planned(Settings { joins: Some(7), ..Settings::default() });
        assert!(fits_container(&pea, true).is_err());
        let exec = Exec { capabilities: pea.rights.capabilities, ..Exec::default() };
        assert!(fits_pea(&pea, &exec, 7, true).is_ok());
        assert!(fits_pea(&pea, &exec, 8, true).is_err() && fits_pea(&pea, &exec, 7, false).is_err());
        assert!(fits_pea(&container, &exec, 7, true).is_err());
        let more = Exec { capabilities: exec.capabilities | 1 << 21, ..exec.clone() };
        assert!(fits_pea(&pea, &more, 7, true).unwrap_err().1.contains("process.capabilities"));
        let other = Exec { no_new_privileges: true, ..exec };
        assert!(fits_pea(&pea, &other, 7, true).unwrap_err().1.contains("process.noNewPrivileges"));
    }

    #[test]
    fn bind_mounts_must_be_those_of_the_bundle() {
        let bind = |name: &str| Extra::Bind {
            source: "/src".to_owned(),
            destination: name.to_owned(),
            writable: true,
        };
        let between = Extra::Tmpfs { destination: "/t".to_owned(), bytes: 1, mode: 0o1777, exec: false };
        let extra = vec![bind("/a"), between, bind("/b")];
        let plan = planned(Settings { extra, ..Settings::default() });
        let given = |names: &[&str]| {
            let mount = |name: &&str| ((*name).to_owned(), std::fs::File::open("/").unwrap().into());
            agree(&plan, &names.iter().map(mount).collect::<Vec<_>>())
        };
        // The bind mounts after the given ones are the container's own files.
        assert!(given(&[]).is_ok() && given(&["/a"]).is_ok() && given(&["/a", "/b"]).is_ok());
        for names in [&["/b", "/a"][..], &["/a", "/c"], &["/b"], &["/a", "/b", "/c"]] {
            assert!(given(names).unwrap_err().1.contains("mounts: none for"), "{names:?}");
        }
    }
}
