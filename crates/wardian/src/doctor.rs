//! `wardian doctor`: what this host can do, and what was left behind on it.

use anyhow::Result;
use clap::Args as ClapArgs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wardian_lab::host::Host;
use wardian_lab::leaks;

/// Exit code when something was left behind.
const LEAKS: u8 = 3;

/// What to look at.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// List what belongs to no live container: keepers, mounts, cgroups, directories, records. Exit code 3 if there is any
    #[arg(long)]
    leaks: bool,
    /// Live state of a server to look at; may be given more than once [default: /run/wardian and those of running servers]
    #[arg(long, value_name = "DIR", requires = "leaks")]
    run: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print what was found.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.leaks {
        let leaks = leaks::find(&args.run)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&leaks)?);
        } else if leaks.is_empty() {
            println!("nothing is left behind");
        } else {
            for leak in &leaks {
                println!("{:<10} {}  ({})", leak.kind, leak.what, leak.why);
            }
        }
        return Ok(if leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(LEAKS) });
    }
    let host = Host::probe(Some(Path::new("/var/lib")));
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    let user_namespaces = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    let user_namespaces = user_namespaces.ok().and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
    if args.json {
        let found = serde_json::json!({
            "host": host,
            "root": rustix::process::geteuid().is_root(),
            "overlay": overlay,
            "max_user_namespaces": user_namespaces,
        });
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        let yes = |is: bool| if is { "yes" } else { "no" };
        println!("kernel           {}", host.kernel);
        println!("processors       {}", host.cpus);
        println!("memory           {}", wardian_lab::report::bytes(host.memory_bytes));
        println!("root             {}", yes(rustix::process::geteuid().is_root()));
        println!("overlay          {}", if overlay { "yes" } else { "not loaded: modprobe overlay" });
        println!("user namespaces  at most {user_namespaces}");
        println!("cgroups          {}", host.cgroups);
        println!("/var/lib is on   {} ({})", host.filesystem, host.mount_options);
    }
    Ok(ExitCode::SUCCESS)
}
