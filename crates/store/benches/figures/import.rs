//! Importing a large layer, beside what everybody does without us.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wardian_store::{Progress, Store};

use crate::create::{cpu, settle};
use crate::images::Images;
use crate::place::Fs;
use crate::report::{Goal, Report, median, ms};
use crate::sample::{self, Result};

const ROUNDS: usize = 3;
/// Of four layers at once.
const MEMORY_MB: f64 = 64.0;
/// Compressions with the part of the pipe's time that we may take.
const GOALS: [(&str, f64); 2] = [("zstd", 0.75), ("gzip", 0.6)];

pub fn run(fs: &Fs, images: &Images, report: &mut Report) -> Result<()> {
    let store = fs.store("import")?;
    let layout = images.large.as_deref().ok_or("the large layer was not made")?;
    let mut section = report.section(&fs.name);
    let (mut ours, mut pipes) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let (mut cpus, mut durable) = ([Vec::new(), Vec::new()], Vec::new());
    for round in 0..=ROUNDS {
        for (index, (tool, _)) in GOALS.into_iter().enumerate() {
            let uri = images.large(tool)?;
            let (start, before) = (Instant::now(), cpu());
            store.image(&uri)?;
            let (took, own) = (ms(start.elapsed()), cpu() - before);
            // So that the disk is at rest when it is the pipe's turn.
            store.wait_durable(&Progress::default());
            let until_durable = ms(start.elapsed());
            store.collect(0)?;
            settle(&store)?;

            let into = fs.dir.join("into");
            fs::create_dir(&into)?;
            let before = children()?;
            let piped = ms(sample::pipe(layout, tool, &into)?);
            let childrens = children()? - before;
            fs::remove_dir_all(&into)?;
            // The first round fills the page cache.
            if round > 0 {
                ours[index].push(took);
                pipes[index].push(piped);
                cpus[index].push(own.as_secs_f64() / childrens.as_secs_f64());
                durable.push(until_durable);
            }
        }
    }
    store.close();
    for (index, (tool, most)) in GOALS.into_iter().enumerate() {
        section.samples(&format!("import, 392 MB in 31,000 entries, {tool}"), "ms", &ours[index], None);
        section.samples(&format!("  {tool} -dc | tar x"), "ms", &pipes[index], None);
        let ratio = median(&ours[index]) / median(&pipes[index]);
        section.value(&format!("import : {tool} -dc | tar x"), "×", ratio, Some(Goal::AtMost(most)));
        section.samples(&format!("  processor time of it : {tool} -dc | tar x"), "×", &cpus[index], None);
    }
    section.samples("  until the layer is durable", "ms", &durable, None);
    section.finish();
    Ok(())
}

/// Processor time of the children that have ended.
fn children() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5): cutime and cstime, 16 and 17; the second field is a name in parentheses.
    let (_, fields) = stat.rsplit_once(')').ok_or("no stat")?;
    let mut ticks = 0.0;
    for field in fields.split_whitespace().skip(13).take(2) {
        ticks += field.parse::<f64>()?;
    }
    Ok(Duration::from_secs_f64(ticks / rustix::param::clock_ticks_per_second() as f64))
}

/// Peak memory of a process that imports four layers at once, and nothing else.
pub fn memory(fs: &Fs, images: &Images, report: &mut Report) -> Result<()> {
    let mut section = report.section(&fs.name);
    for (tool, _) in GOALS {
        let config = fs.config("four");
        let output = Command::new(std::env::current_exe()?)
            .arg("--import")
            .args([&config.root, &config.run])
            .arg(images.large(&format!("{tool}-4"))?)
            .stderr(Stdio::inherit())
            .output()?;
        let kb: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        fs::remove_dir_all(&config.root)?;
        let name = format!("peak memory, four layers at once, {tool}");
        section.value(&name, "MB", kb / 1024.0, Some(Goal::AtMost(MEMORY_MB)));
    }
    section.finish();
    Ok(())
}

/// The process whose memory it is; prints kB.
pub fn only_import(root: &str, run: &str, uri: &str) -> Result<()> {
    let store = Store::serve(&wardian_store::Config::new(root, run), &|_| false)?;
    let image = store.image(uri)?;
    if image.chain_ids().len() != 4 {
        return Err("not four layers".into());
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    println!("{}", peak.trim().trim_end_matches(" kB"));
    Ok(())
}
