//! `wardian events`.

use super::session::{End, Signals};
use super::{Server, block_on};
use crate::print;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};
use wardian_garden::Error;
use wardian_garden::wire::Event;

/// What to hear of.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Of one container only
    #[arg(long, value_name = "HANDLE")]
    handle: Option<String>,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Prints events, until Ctrl-C or the end of the server.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, handle, json } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let tell = async {
            let mut events = client.events(handle.as_deref()).await.map_err(|error| match error {
                Error::Status { .. } => anyhow::Error::new(error)
                    .context("this server tells no events: it is no wardian, or an earlier one"),
                error => server.explain(error),
            })?;
            if let Some(handle) = &handle {
                // A container that is still being created counts.
                let all = std::iter::once(("garden.state".to_owned(), "all".to_owned())).collect();
                if !client.list(&all).await.map_err(|error| server.explain(error))?.contains(handle) {
                    print::note(&format!("there is no container {handle:?} now: waiting until one is made"));
                }
            }
            loop {
                let event = events.next().await.map_err(|error| server.explain(error))?;
                let event = event.context("the server has ended")?;
                if !(if json { print::json_line(&event)? } else { print::line(&describe(&event))? }) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        };
        signals.until(tell).await.unwrap_or_else(|number| Ok(End::Left(number).code()))
    })
}

fn describe(event: &Event) -> String {
    if let Some(lost) = event.lost {
        return format!(
            "{}  {lost} events were lost: this reader is too slow",
            print::clock(std::time::SystemTime::now())
        );
    }
    let since = Duration::try_from_secs_f64(event.time).unwrap_or_default();
    let then = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
    let mut line =
        format!("{}  {:<13}  {}", print::clock(then), print::tame(&event.event), print::tame(&event.handle));
    if let Some(process) = &event.process {
        line += &format!("  {}", print::tame(process));
    }
    if let Some(status) = event.status {
        line += &format!("  status {status}");
    }
    if let Some(reason) = &event.reason {
        line += &format!("  {}", print::tame(reason));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            event: "process-exit".into(),
            time: 1.25,
            handle: "h\n".into(),
            process: Some("p".into()),
            status: Some(3),
            ..Event::default()
        };
        assert_eq!(describe(&event), "1970-01-01T00:00:01.250Z  process-exit   h\\n  p  status 3");
        assert!(describe(&Event { lost: Some(7), ..Event::default() }).contains("7 events were lost"));
    }
}
