//! The descriptors of a request, taken in the order that the protocol gives them ([`wardian_runtime::wire`]).

use crate::launch;
use crate::launches::{Fail, other};
use std::os::fd::OwnedFd;
use wardian_runtime::bundle::{self, Plan};
use wardian_runtime::wire::{Boxed, Placement};

/// Those that have not been taken yet.
pub type Fds = std::vec::IntoIter<OwnedFd>;

/// The `cgroup.procs` files of cgroup v1 and the directory of a v2 cgroup.
pub fn placement(place: &Placement, fds: &mut Fds) -> Result<(Vec<OwnedFd>, Option<OwnedFd>), Fail> {
    let v1: Vec<OwnedFd> = fds.by_ref().take(place.v1_procs).collect();
    let v2 = if place.v2_dir { fds.next() } else { None };
    if v1.len() < place.v1_procs || v2.is_some() != place.v2_dir {
        return Err(other("a cgroup is missing"));
    }
    Ok((v1, v2))
}

/// The files of a container that lie outside its root file system, in a file system of their own.
pub fn own_files(boxed: &Boxed, plan: &Plan, fds: &mut Fds) -> Result<Option<launch::OwnFiles>, Fail> {
    let files: Vec<_> = boxed.files.iter().zip(fds.by_ref().take(boxed.files.len())).collect();
    if files.len() < boxed.files.len() {
        return Err(other("a file is missing"));
    }
    let mut contents = Vec::new();
    for (destination, fd) in files {
        contents.push((destination.as_str(), read_all(&fd)?));
    }
    launch::own_files(plan, &contents).map_err(other)
}

/// The bundle, the root file system, and the detached bind mounts with their destinations.
pub type Unboxed = (Plan, OwnedFd, Vec<(String, OwnedFd)>);

/// What a container or a pea brings along.
pub fn unbox(boxed: &Boxed, fds: &mut Fds) -> Result<Unboxed, Fail> {
    let config = fds.next().ok_or_else(|| other("config.json is missing"))?;
    let plan = bundle::plan(&read_all(&config)?).map_err(other)?;
    let rootfs = fds.next().ok_or_else(|| other("the root file system is missing"))?;
    let binds: Vec<_> = boxed.binds.iter().cloned().zip(fds.by_ref().take(boxed.binds.len())).collect();
    if binds.len() < boxed.binds.len() {
        return Err(other("a bind mount is missing"));
    }
    Ok((plan, rootfs, binds))
}

/// Everything in a memory file, whose offset others may share.
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
