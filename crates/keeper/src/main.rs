//! The keeper: one small program per container, parent of all its processes.
//!
//! The keeper owns their stdio, their exit statuses and the last reference to the root file system, and outlives the
//! server. It has one poll loop, and a second thread that only clones ([`parked`]). It never blocks on a child: container
//! root can stop a process before its exec, so handshakes have a deadline, then SIGKILL. The same binary is the
//! containers' pid 1.

mod child;
mod dirs;
mod exec;
mod handed;
mod hard_links;
mod inside;
mod keeper;
mod launches;
mod mount_points;
mod pack;
mod parked;
mod process;
mod report;
mod rights;
mod transfer;
mod users;

fn main() -> std::process::ExitCode {
    match std::env::args().next().as_deref() {
        Some("garden-init") => child::init(),
        Some("wardian-keeper") => match keeper::Keeper::start() {
            Ok(keeper) => keeper.run(),
            Err(_) => std::process::ExitCode::FAILURE,
        },
        // A container may execute this program through `/proc/self/exe`: it does nothing then.
        _ => std::process::ExitCode::FAILURE,
    }
}
