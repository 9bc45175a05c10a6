//! `./dev bench store [--fs root,ext4,xfs,btrfs,btrfs-simple] [--only PART] [--json FILE] [--dir DIR]`: the store's figures
//! with their goals, in one process, as root. PART is one of create, ready, limits, limits-create (the creates of limits
//! alone), delete, import, memory and churn.
//!
//! What is compared is measured by turns. The stores lie on the file system of DIR (default /var/tmp), which is called
//! `root`, and on new ones on loop devices in it; imports are measured on these only. Those of btrfs have quota, or simple
//! quota, and are for limits alone. Needs mkfs.ext4, mkfs.xfs, mkfs.btrfs, btrfs, mount, zstd, gzip and tar in the PATH,
//! and some 20 GB. Everything is removed at the end, also after Ctrl-C.
#![forbid(unsafe_code)]

mod churn;
mod create;
mod delete;
mod images;
mod import;
mod limits;
mod place;
mod ready;
mod report;
#[path = "../../../image/benches/sample/mod.rs"]
mod sample;

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit};

use images::Images;
use place::{Fs, Place};
use report::{Host, Report};
use sample::Result;

const PARTS: [&str; 8] =
    ["create", "ready", "limits", "limits-create", "delete", "churn", "import", "memory"];
/// A thousand root file systems are a descriptor each.
const DESCRIPTORS: u64 = 8192;

struct Args {
    fs: Vec<String>,
    only: Option<String>,
    json: Option<String>,
    dir: String,
}

fn args(mut args: impl Iterator<Item = String>) -> Result<Args> {
    let fs = ["root", "ext4", "xfs", "btrfs", "btrfs-simple"].map(str::to_owned).into();
    let mut parsed = Args { fs, only: None, json: None, dir: "/var/tmp".to_owned() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--fs" => parsed.fs = value()?.split(',').map(str::to_owned).collect(),
            "--only" => parsed.only = Some(value()?).filter(|only| !only.is_empty()),
            "--json" => parsed.json = Some(value()?),
            "--dir" => parsed.dir = value()?,
            // Cargo's.
            "--bench" => {}
            _ => return Err(format!("{arg}: what is that?").into()),
        }
    }
    if let Some(only) = &parsed.only
        && !PARTS.contains(&only.as_str())
    {
        return Err(format!("--only {only}: one of {}", PARTS.join(", ")).into());
    }
    Ok(parsed)
}

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--remove", dir] => return place::remove_later(Path::new(dir)),
        ["--import", root, run, uri] => return import::only_import(root, run, uri),
        _ => {}
    }
    let args = args(given.into_iter())?;
    if !rustix::process::geteuid().is_root() {
        return Err("root file systems are mounted by root only".into());
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.map(|limit| limit.max(DESCRIPTORS));
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: enough(limit.current), maximum: enough(limit.maximum) },
    )?;
    let place = Place::make(Path::new(&args.dir))?;
    let missed = measure(&args, &place)?;
    drop(place);
    println!(
        "{}",
        if missed == 0 { "all goals hold".to_owned() } else { format!("{missed} goals are missed") }
    );
    Ok(())
}

fn measure(args: &Args, place: &Place) -> Result<usize> {
    let wants = |part: &str| args.only.as_deref().is_none_or(|only| only == part);
    let images = Images::make(&place.dir, ["delete", "import", "memory"].into_iter().any(wants))?;
    let limits = wants("limits") || args.only.as_deref() == Some("limits-create");
    let names = args.fs.iter().filter(|name| limits || !place::is_for_limits(name));
    let all = names.map(|name| Fs::make(place, name)).collect::<Result<Vec<_>>>()?;
    let mut report = Report::new(Host::probe()?);
    if limits {
        for fs in &all {
            limits::run(fs, &images, &mut report, wants("limits"))?;
        }
    }
    let (limited, all): (Vec<Fs>, Vec<Fs>) = all.into_iter().partition(|fs| place::is_for_limits(&fs.name));
    limited.iter().try_for_each(Fs::unmount)?;
    for fs in &all {
        if wants("create") {
            create::run(fs, &images, &mut report)?;
        }
        if wants("ready") {
            ready::run(fs, &images, &mut report)?;
        }
        if wants("delete") {
            delete::run(fs, &images, &mut report)?;
        }
    }
    if wants("churn") {
        churn::run(&all, &images, &mut report)?;
    }
    for fs in all.iter().filter(|fs| fs.is_new && wants("import")) {
        import::run(fs, &images, &mut report)?;
    }
    // The same on every file system.
    if let Some(fs) = all.iter().rfind(|fs| fs.is_new && wants("memory")) {
        import::memory(fs, &images, &mut report)?;
    }
    if let Some(path) = &args.json {
        fs::write(path, report.json()?)?;
    }
    for fs in &all {
        fs.unmount()?;
    }
    Ok(report.missed())
}
