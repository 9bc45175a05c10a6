//! `wardian why`: what a container's last create and destroy were made of, and what made them slow.

use crate::print;
use crate::serve::RUN;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::fmt::Write as _;
use std::process::ExitCode;
use wardian_garden::Client;
use wardian_garden::wire::{History, Operation};

/// Whose phases.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A container's handle; it may have been destroyed already
    handle: String,
    /// Its server: unix:/PATH or tcp:HOST:PORT [default: unix:/run/wardian/garden.sock]
    #[arg(long, value_name = "ADDR", env = "WARDIAN_ADDR")]
    addr: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Ask the server and print.
pub fn run(args: Args) -> Result<ExitCode> {
    let addr = args.addr.unwrap_or_else(|| format!("unix:{RUN}/garden.sock"));
    let client = Client::new(&addr).context("--addr")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let history = runtime.context("start the runtime")?.block_on(client.history(&args.handle));
    let history = history.with_context(|| {
        format!("what a server does not know any more, or has never known, it cannot explain: ask {addr}")
    })?;
    if args.json {
        print::json(&history)?;
    } else {
        print::text(&text(&history)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(history: &History) -> Result<String> {
    let mut text = String::new();
    for operation in [&history.create, &history.destroy].into_iter().flatten() {
        if !text.is_empty() {
            text.push('\n');
        }
        describe(&mut text, operation)?;
    }
    Ok(text)
}

fn describe(text: &mut String, operation: &Operation) -> Result<()> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let age = print::age((operation.began * 1e3) as u64);
    let (kind, handle) = (&operation.kind, print::tame(&operation.handle));
    writeln!(text, "{kind} of {handle} ({}), {age}: {:.1} ms", print::short(&operation.id), operation.ms)?;
    let longest = operation.steps.iter().map(|step| step.ms).fold(0.0, f64::max);
    for step in &operation.steps {
        // A bar is read faster than a column of numbers.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bar = "#".repeat((step.ms / longest.max(f64::MIN_POSITIVE) * 40.0).round() as usize);
        writeln!(
            text,
            "{}",
            format!("  {:<18} {:>9.2} ms  {bar}", print::tame(&step.name), step.ms).trim_end()
        )?;
    }
    if let Some(error) = &operation.error {
        writeln!(text, "  failed: {}", print::tame(error))?;
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
        let drawn = text(&History { destroy: Some(operation), create: None }).unwrap();
        let lines: Vec<&str> = drawn.lines().collect();
        assert!(
            lines[0].starts_with("destroy of h (0123456789ab), ") && lines[0].ends_with(": 5.0 ms"),
            "{drawn}"
        );
        assert_eq!(lines[1], format!("  kill                    4.00 ms  {}", "#".repeat(40)));
        assert_eq!(lines[2], format!("  unmount                 1.00 ms  {}", "#".repeat(10)));
        assert_eq!(lines[3..], ["  forget                  0.00 ms", "  failed: no\\nway"]);
    }
}
