//! The whole of wardian from outside, on real containers. Needs root.
//!
//! Each test has a server with a store of its own, and ends with [`support::Server::finish`], which looks whether
//! anything of it is left on this host.

mod attacks;
mod bad_input;
mod bounded;
mod cli;
mod client_bounds;
mod commands;
mod devices;
mod doctor;
mod door;
mod equipped;
mod escape;
mod failpoints;
mod go_client;
mod grace;
mod host_files;
mod hostile_dirs;
mod hostile_images;
mod images;
mod inherited;
mod inside;
mod isolation;
mod keepers;
mod lifecycle;
mod load;
mod log;
mod metrics;
mod narrow;
mod oci_mode;
mod peas;
mod player;
mod quotas;
mod record;
mod reset;
mod rootfs;
mod run;
mod scale;
mod seccomp;
mod siege;
mod soak;
mod store;
mod strangers;
mod streams;
mod support;
mod survival;
mod systemd;
mod teardown;
mod terminals;
mod told;
mod transfers;
mod tty;
mod web;
mod why;
mod wire;
