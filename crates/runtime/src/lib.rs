//! OCI bundles and who runs them: the keeper's protocol, its client, cgroups.

pub mod bundle;
pub mod caps;
pub mod cgroup;
pub mod oci;
pub mod rights;
pub mod seccomp;
pub mod stats;
pub mod wire;
