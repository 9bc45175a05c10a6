//! `wardian why`: what a container's last create and destroy and the ends of its peas were made of, and what made them slow; or what a process
//! that runs already waits for.

use crate::container::Server;
use crate::print;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use wardian_garden::ErrorKind;
use wardian_garden::wire::{History, Operation};
use wardian_lab::{Interrupted, record};
use wardian_recorder::Diagnosis;

/// What to explain.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A container's handle: show the phases of its last create and destroy, and of the last ends of its peas. It may
    /// have been destroyed already
    #[arg(required_unless_present = "pid", conflicts_with = "pid")]
    handle: Option<String>,
    #[command(flatten)]
    server: Server,
    /// Watch this process and all that it starts, whoever's it is
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// For so long, or until it ends
    #[arg(long, value_name = "N", default_value_t = 10, requires = "pid",
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    seconds: u64,
    /// A directory on the file system of interest [default: the process's working directory]
    #[arg(long, value_name = "PATH", requires = "pid")]
    fs: Option<PathBuf>,
    /// Also who wrote and who waited, the kernel's stacks and settings
    #[arg(long)]
    verbose: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Explain it.
pub fn run(args: &Args) -> Result<ExitCode> {
    match args.pid {
        Some(pid) => watch(pid, args),
        None => phases(args),
    }
}

fn watch(pid: u32, args: &Args) -> Result<ExitCode> {
    let length = Duration::from_secs(args.seconds);
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let report = runtime.block_on(record::process(pid, args.fs.clone(), length))?;
    if args.json {
        print::json(&report)?;
    } else {
        print::text(&print::wrapped(&report.diagnosis.text(args.verbose)))?;
    }
    match report.interrupted {
        Some(signal) => Err(Interrupted(signal).into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn phases(args: &Args) -> Result<ExitCode> {
    let (handle, server) = (args.handle.as_deref().unwrap_or_default(), &args.server);
    let client = server.client()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let handle = runtime.block_on(server.named(&client, handle))?;
    let history = runtime.block_on(client.history(&handle)).map_err(|error| match error.kind() {
        Some(ErrorKind::ContainerNotFound) => anyhow::Error::new(error)
            .context(
            "the server remembers its last 4096 creates and destroys, and those of the last hour from before its \
             start: this is none of them",
        ),
        _ => server.explain(error),
    })?;
    if args.json {
        print::json(&history)?;
    } else {
        print::text(&print::wrapped(&text(&history, args.verbose)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(history: &History, verbose: bool) -> Result<String> {
    let mut text = String::new();
    for operation in history.create.iter().chain(&history.peas).chain(&history.destroy) {
        if !text.is_empty() {
            text.push('\n');
        }
        describe(&mut text, operation, verbose)?;
    }
    Ok(text)
}

fn describe(text: &mut String, operation: &Operation, verbose: bool) -> Result<()> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let age = print::age(operation.began_ms as u64);
    let (kind, handle) = (&operation.kind, print::tame(&operation.handle));
    let kind = match &operation.process {
        Some(process) => format!("end of {kind} {} of", print::tame(process)),
        None => format!("{kind} of"),
    };
    writeln!(text, "{kind} {handle} ({}), {age}: {:.1} ms", print::short(&operation.id), operation.ms)?;
    if let Some(error) = &operation.error {
        writeln!(text, "  failed: {}", print::tame(error))?;
    }
    if let Some(diagnosis) = &operation.diagnosis {
        let diagnosis: Diagnosis =
            serde_json::from_value(diagnosis.clone()).context("understand the server's diagnosis")?;
        writeln!(text, "  it was slow, and meanwhile:")?;
        for line in diagnosis.text(verbose).lines() {
            writeln!(text, "{}", format!("    {}", print::tame(line)).trim_end())?;
        }
    }
    let longest = operation.steps.iter().map(|step| step.ms).fold(0.0, f64::max);
    for step in &operation.steps {
        // A bar is easier to read than a column of numbers.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bar = "#".repeat((step.ms / longest.max(f64::MIN_POSITIVE) * 40.0).round() as usize);
        writeln!(
            text,
            "{}",
            format!("  {:<18} {:>9.2} ms  {bar}", print::tame(&step.name), step.ms).trim_end()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_garden::wire::Step;

    #[test]
    fn phases_are_drawn_beside_each_other() {
        let step = |name: &str, ms| Step { name: name.into(), begin_ms: 0.0, ms };
        let operation = Operation {
            kind: "destroy".into(),
            handle: "h".into(),
            id: "0123456789abcdef".into(),
            ms: 5.04,
            steps: vec![step("kill", 4.0), step("unmount", 1.0), step("forget", 0.0)],
            error: Some("no\nway".into()),
            ..Operation::default()
        };
        let drawn = text(&History { destroy: Some(operation.clone()), ..History::default() }, false).unwrap();
        let lines: Vec<&str> = drawn.lines().collect();
        assert!(
            lines[0].starts_with("destroy of h (0123456789ab), ") && lines[0].ends_with(": 5.0 ms"),
            "{drawn}"
        );
        assert_eq!(lines[1], "  failed: no\\nway");
        assert_eq!(lines[2], format!("  kill                    4.00 ms  {}", "#".repeat(40)));
        assert_eq!(lines[3], format!("  unmount                 1.00 ms  {}", "#".repeat(10)));
        assert_eq!(lines[4..], ["  forget                  0.00 ms"]);
        let pea = Operation { kind: "pea".into(), process: Some("check\u{1b}".into()), ..operation };
        let drawn = text(&History { peas: vec![pea], ..History::default() }, false).unwrap();
        assert!(drawn.starts_with("end of pea check\\u{1b} of h (0123456789ab), "), "{drawn}");
    }
}
