//! What one `grootfs create` and one `delete` take, as whole processes, from a warm cache. Needs root; leaves nothing.
//!
//! `./dev bench grootfs`, or `cargo bench --package wardian --bench grootfs`.
#![allow(clippy::print_stdout, reason = "it prints figures")]

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// How many root file systems are made and deleted.
const ROUNDS: usize = 100;
/// The goal for the median of each, in milliseconds.
const GOAL: f64 = 10.0;

fn grootfs(store: &Path, args: &[&str]) -> Duration {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wardian"));
    let output = command.arg0("grootfs").arg("--store").arg(store).args(args).output().expect("it starts");
    let took = started.elapsed();
    assert!(output.status.success(), "{args:?}: {output:?}");
    took
}

/// Prints the figures; whether the goal is held.
fn told(what: &str, mut times: Vec<Duration>) -> bool {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!("{what:32} p50 {:6.2} ms   p95 {:6.2} ms   most {:6.2} ms", at(50), at(95), at(100));
    at(50) <= GOAL
}

fn write_tar(path: &Path) {
    let mut tar = tar::Builder::new(File::create(path).expect("a file"));
    for n in 0..200 {
        let mut header = tar::Header::new_ustar();
        header.set_size(1000);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("file{n}"), &[0; 1000][..]).expect("an entry");
    }
    tar.finish().expect("a tar");
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: grootfs: needs root");
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::Builder::new().prefix("wardian-bench-").tempdir_in("/var/tmp").expect("a directory");
    let (store, image) = (dir.path().join("store"), dir.path().join("image.tar"));
    write_tar(&image);
    let image = image.to_str().expect("a plain path");
    let mapped = "--uid-mapping 0:4294967294:1 --uid-mapping 1:1:4294967293 --gid-mapping 0:4294967294:1 --gid-mapping \
                  1:1:4294967293";
    let mut held = true;
    for (name, flags) in [("privileged", ""), ("mapped", mapped)] {
        let init: Vec<_> = ["init-store"].into_iter().chain(flags.split_whitespace()).collect();
        grootfs(&store, &init);
        // Brings the layer in, and keeps the run directory.
        grootfs(&store, &["create", image, "first"]);
        for (how, flag) in [("mounted", "--with-mount"), ("in parts", "--without-mount")] {
            let ids: Vec<String> = (0..ROUNDS).map(|n| format!("r{n}")).collect();
            let each = |args: &dyn Fn(&str) -> Vec<String>| -> Vec<Duration> {
                let one = |id: &String| {
                    let args = args(id);
                    grootfs(&store, &args.iter().map(String::as_str).collect::<Vec<_>>())
                };
                ids.iter().map(one).collect()
            };
            let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
            held &= told(&format!("{name}, {how}: create"), each(&|id| owned(&["create", flag, image, id])));
            told(&format!("{name}, {how}: stats"), each(&|id| owned(&["stats", id])));
            held &= told(&format!("{name}, {how}: delete"), each(&|id| owned(&["delete", id])));
        }
        grootfs(&store, &["delete", "first"]);
        grootfs(&store, &["delete-store"]);
    }
    println!(
        "the goal, p50 of create and delete at most {GOAL} ms: {}",
        if held { "held" } else { "missed" }
    );
    ExitCode::SUCCESS
}
