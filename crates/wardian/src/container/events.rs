//! `wardian events`.

use super::session::{End, Signals};
use super::{Server, block_on};
use crate::print;
use anyhow::{Result, ensure};
use clap::Args as ClapArgs;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
    /// Also earlier ones, since a time (2026-11-24T13:40:02Z, seconds since 1970) or so long ago (10m, 1h30m); the server
    /// remembers the newest 4096 since its start
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// End at this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Only such: event=oom, container=HANDLE. Of several with one key any will do
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = filter)]
    filters: Vec<(Key, String)>,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// What a filter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Event,
    Container,
}

/// The kinds of events, with docker's words for some of them.
const KINDS: [(&str, &str); 13] = [
    ("create", "create"),
    ("destroy", "destroy"),
    ("stop", "stop"),
    ("pause", "pause"),
    ("unpause", "unpause"),
    ("oom", "oom"),
    ("broken", "broken"),
    ("process-start", "process-start"),
    ("process-exit", "process-exit"),
    ("start", "process-start"),
    ("exec_start", "process-start"),
    ("die", "process-exit"),
    ("exec_die", "process-exit"),
];

/// Parses a filter.
fn filter(text: &str) -> Result<(Key, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected event=KIND or container=HANDLE")?;
    match key {
        "container" => Ok((Key::Container, value.to_owned())),
        "event" => match KINDS.iter().find(|(word, _)| *word == value) {
            Some((_, kind)) => Ok((Key::Event, (*kind).to_owned())),
            None => {
                let kinds: Vec<_> =
                    KINDS.iter().filter(|(word, kind)| word == kind).map(|(word, _)| *word).collect();
                Err(format!("there is no event {value:?}; there are: {}", kinds.join(", ")))
            }
        },
        "type" if value == "container" => Err("all events are of containers: leave it out".to_owned()),
        _ => Err(format!("there is no filter {key:?}: event=KIND or container=HANDLE")),
    }
}

/// Whether an event is wanted: for each key that is given, one of its values fits. What this listener has missed is
/// always told.
fn is_wanted(filters: &[(Key, String)], event: &Event) -> bool {
    let fits = |key: Key, text: &str| {
        let mut of_key = filters.iter().filter(|(known, _)| *known == key).peekable();
        of_key.peek().is_none() || of_key.any(|(_, value)| value == text)
    };
    let is_about_listener = event.lost.is_some() || event.event == "forgotten";
    is_about_listener || (fits(Key::Event, &event.event) && fits(Key::Container, &event.handle))
}

/// Parses a point in time; returns milliseconds since 1970.
fn time(text: &str) -> Result<u64, String> {
    let time = super::logs::time(text)?;
    Ok(millis(time))
}

/// Prints events, until Ctrl-C or the end of the server.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, handle, since, until, filters, json } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let tell = async {
            let mut events =
                client.events(handle.as_deref(), since, until).await.map_err(|error| match error {
                    Error::Status { .. } => anyhow::Error::new(error)
                        .context("this server tells no events: it is no wardian, or an earlier one"),
                    error => server.explain(error),
                })?;
            if let Some(handle) = handle.as_ref().filter(|_| since.is_none() && until.is_none()) {
                // A container that is still being created counts.
                let all = std::iter::once(("garden.state".to_owned(), "all".to_owned())).collect();
                if !client.list(&all).await.map_err(|error| server.explain(error))?.contains(handle) {
                    print::note(&format!("there is no container {handle:?} now: waiting until one is made"));
                }
            }
            loop {
                let event = events.next().await.map_err(|error| server.explain(error))?;
                let Some(event) = event else {
                    ensure!(
                        until.is_some_and(|until| until <= millis(SystemTime::now())),
                        "the server has ended"
                    );
                    return Ok(ExitCode::SUCCESS);
                };
                if !is_wanted(&filters, &event) {
                    continue;
                }
                if !(if json { print::json_line(&event)? } else { print::line(&describe(&event))? }) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        };
        tokio::select! {
            done = signals.until(tell) => done.unwrap_or_else(|number| Ok(End::Left(number).code())),
            () = print::abandoned() => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Milliseconds since 1970.
fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn describe(event: &Event) -> String {
    if event.event == "forgotten" {
        return "earlier events are forgotten: the server remembers the newest 4096 of its own time"
            .to_owned();
    }
    if let Some(lost) = event.lost {
        return format!(
            "{}  {lost} events were lost: this reader is too slow",
            print::clock(SystemTime::now())
        );
    }
    let then = UNIX_EPOCH.checked_add(Duration::from_millis(event.time_ms)).unwrap_or(UNIX_EPOCH);
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
    fn filters() {
        let all = |texts: &[&str]| texts.iter().map(|text| filter(text).unwrap()).collect::<Vec<_>>();
        let event = |event: &str, handle: &str| Event {
            event: event.into(),
            handle: handle.into(),
            ..Event::default()
        };
        let both = all(&["event=oom", "event=die", "container=web"]);
        assert!(is_wanted(&both, &event("oom", "web")) && is_wanted(&both, &event("process-exit", "web")));
        assert!(!is_wanted(&both, &event("oom", "db")) && !is_wanted(&both, &event("stop", "web")));
        assert!(is_wanted(&[], &event("stop", "db")) && is_wanted(&both, &event("forgotten", "")));
        assert!(is_wanted(&both, &Event { lost: Some(1), ..event("lost", "") }));
        for bad in ["oom", "event=nope", "image=x", "type=container"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        assert!(filter("event=nope").unwrap_err().contains("unpause, oom, broken"));
    }

    #[test]
    fn times() {
        assert_eq!((time("7.5"), time("1970-01-02T00:00:00Z")), (Ok(7500), Ok(86_400_000)));
        assert!(time("1h30m").unwrap().abs_diff(millis(SystemTime::now()) - 5_400_000) < 60_000);
        for bad in ["", "-1", "inf", "yesterday", "12:00"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            event: "process-exit".into(),
            time_ms: 1250,
            handle: "h\n".into(),
            process: Some("p".into()),
            status: Some(3),
            ..Event::default()
        };
        assert_eq!(describe(&event), "1970-01-01T00:00:01.250Z  process-exit   h\\n  p  status 3");
        assert!(describe(&Event { lost: Some(7), ..Event::default() }).contains("7 events were lost"));
    }
}
