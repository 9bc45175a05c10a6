//! OCI bundles, the keeper's protocol and its client, seccomp and cgroups.

pub mod bundle;
pub mod caps;
pub mod cgroup;
pub mod failpoints;
pub mod oci;
pub mod rights;
pub mod seccomp;
pub mod stats;
pub mod wire;
