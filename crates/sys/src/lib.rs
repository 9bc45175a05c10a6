//! Safe wrappers of system calls: mounts, namespaces, memory files, processes, descriptors over sockets.
//!
//! Every function takes and returns owned descriptors. This is the only library that may use `unsafe`.
#![allow(unsafe_code)]

pub mod bpf;
pub mod btrfs;
pub mod children;
pub mod directory;
pub mod ext4;
pub mod failpoint;
pub mod hard_link;
pub mod heap;
pub mod layer_ns;
pub mod lock;
pub mod loop_device;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod pressure;
pub mod probe;
pub mod procfs;
pub mod program;
pub mod project_quota;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod stderr;
pub mod tether;
pub mod text;
