//! `wardian reset`: removes everything that the server has made on this host.

use crate::print;
use crate::store::{ROOT, RUN};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wardian_engine::Removed;
use wardian_store::erase::Parts;

/// What to remove.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Nothing is touched unless the two directories are wardian's own, or empty, and nothing of somebody else is mounted below them. \
Only what wardian has mounted there is unmounted.")]
pub struct Args {
    /// The store: images, layers, root file systems
    #[arg(long, value_name = "DIR", env = "WARDIAN_ROOT", default_value = ROOT)]
    root: PathBuf,
    /// Live state of the server
    #[arg(long, value_name = "DIR", env = "WARDIAN_RUN", default_value = RUN)]
    run: PathBuf,
    /// Remove the images and their layers too
    #[arg(long)]
    images: bool,
    /// Remove named volumes too, with all that is in them
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(rustix::process::geteuid().is_root(), "what the server has made is root's: try sudo");
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("find {}", path.display()));
    let (root, run) = (absolute(&args.root)?, absolute(&args.run)?);
    let parts = Parts { images: args.images, volumes: args.volumes };
    if !args.yes && !agreed(&root, &run, parts)? {
        print::note("nothing was done");
        return Ok(ExitCode::FAILURE);
    }
    let removed = wardian_engine::reset(&root, &run, parts, &|text| print::note(text))?;
    if args.json {
        print::json(&removed)?;
    } else {
        print::text(&told(&removed))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn agreed(root: &Path, run: &Path, parts: Parts) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this ends every container: say --yes if it is meant");
    }
    let store = match parts {
        Parts { images: true, volumes: true } => ", all images and all volumes",
        Parts { images: true, .. } => " and all images",
        Parts { volumes: true, .. } => " and all volumes",
        Parts { .. } => "",
    };
    let (run, root) = (run.display(), root.display());
    crate::watch::asked(&format!(
        "This ends every container of {run} and removes its data in {root}{store}. Go on?"
    ))
}

fn told(removed: &Removed) -> String {
    let mut lines = String::new();
    let names: Vec<String> = removed.containers.iter().map(|name| print::tame(name)).collect();
    if !names.is_empty() {
        lines += &format!("containers: {}\n", names.join(", "));
    }
    for (count, what) in [
        (removed.processes, "processes killed"),
        (removed.cgroups, "cgroups"),
        (removed.links, "network links"),
        (removed.mounts.len(), "mounts"),
        (removed.trees, "directories of root file systems and other trash"),
    ] {
        if count > 0 {
            lines += &format!("{count} {what}\n");
        }
    }
    if removed.firewall {
        lines += "the firewall of the containers\n";
    }
    if removed.run {
        lines += "the records of the run directory\n";
    }
    if removed.images {
        lines += if removed.kept_volumes > 0 {
            "the images of the store\n"
        } else {
            "the store with its images\n"
        };
    }
    if removed.volumes > 0 {
        lines += &format!("{}\n", print::count(removed.volumes, "volume"));
    }
    let mut text = if lines.is_empty() {
        "there was nothing to remove\n".to_owned()
    } else {
        format!("removed:\n{lines}")
    };
    if removed.kept_volumes > 0 {
        text += &format!("kept: {}; --volumes removes them\n", print::count(removed.kept_volumes, "volume"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_said() {
        assert_eq!(told(&Removed::default()), "there was nothing to remove\n");
        let removed =
            Removed { containers: vec!["a\u{1b}".into()], processes: 3, images: true, ..Removed::default() };
        let network = Removed { links: 2, firewall: true, ..Removed::default() };
        assert_eq!(told(&network), "removed:\n2 network links\nthe firewall of the containers\n");
        let volumes = Removed { images: true, kept_volumes: 2, ..Removed::default() };
        let kept = "removed:\nthe images of the store\nkept: 2 volumes; --volumes removes them\n";
        assert_eq!(told(&volumes), kept);
        let said = told(&removed);
        // Removed records are reported as well.
        let records = Removed { run: true, ..Removed::default() };
        assert_eq!(told(&records), "removed:\nthe records of the run directory\n");
        assert_eq!(said, "removed:\ncontainers: a\\u{1b}\n3 processes killed\nthe store with its images\n");
    }
}
