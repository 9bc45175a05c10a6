//! `wardian logs` and `wardian wait`.

use super::session::{End, Signals};
use super::{MAIN, Server, block_on};
use crate::exit::lost;
use crate::print;
use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use wardian_garden::{Client, KeptOutput, Piece};

/// Whose output.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The newest output of what `run`, `exec -d` and the like have started is kept, as much as --keep-output \
    says there. It goes to standard output and standard error, as it came."
)]
pub struct Logs {
    #[command(flatten)]
    server: Server,
    /// Go on with what is printed from now on, until the process has ended
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all", hide_default_value = true, value_parser = tail)]
    tail: Tail,
    /// Only what was printed since then: 10m, 1h30m ago, or 2026-11-24T13:40:02Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Only what was printed until then
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "follow")]
    until: Option<SystemTime>,
    /// Begin each line with the time of its output
    #[arg(short, long)]
    timestamps: bool,
    /// The container's handle, or the beginning of its id
    handle: String,
    /// The process's id, as `exec -d` prints it
    #[arg(default_value = MAIN)]
    process: String,
}

/// For whose end to wait.
#[derive(Debug, ClapArgs)]
pub struct Wait {
    #[command(flatten)]
    server: Server,
    /// The process's id, as `exec -d` prints it
    #[arg(long, value_name = "ID", default_value = MAIN)]
    process: String,
    /// Handles, or beginnings of ids
    #[arg(required = true, value_name = "HANDLE")]
    handles: Vec<String>,
}

/// How many lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Lines(usize),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        text => text.parse().map(Tail::Lines).map_err(|_| "expected a number of lines, or all".to_owned()),
    }
}

/// Parses a point in time: how long ago, a date with a time, or seconds since 1970.
pub fn time(text: &str) -> Result<SystemTime, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        let since = Duration::try_from_secs_f64(seconds).ok();
        return since
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .ok_or_else(|| "out of range".to_owned());
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "out of range".to_owned());
    }
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time.into());
    }
    let day = format!("{text}T00:00:00Z");
    humantime::parse_rfc3339_weak(if text.len() == 10 { &day } else { text }).map_err(|_| {
        "expected how long ago (10m, 1h30m), a time (2026-11-24T13:40:02Z, or +01:00 in place of Z), a day, or \
         seconds since 1970"
            .to_owned()
    })
}

fn ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Prints the output that is kept of a process.
pub fn logs(args: &Logs) -> Result<ExitCode> {
    block_on(async {
        let (client, mut signals) = (args.server.client()?, Signals::catch()?);
        let work = print_logs(&client, args);
        tokio::select! {
            done = signals.until(work) => done.unwrap_or_else(|number| Ok(End::Left(number).code())),
            () = print::abandoned() => Ok(ExitCode::SUCCESS),
        }
    })
}

async fn print_logs(client: &Client, args: &Logs) -> Result<ExitCode> {
    let handle = args.server.named(client, &args.handle).await?;
    let mut output = client
        .kept_output(&handle, &args.process, args.follow)
        .await
        .map_err(|error| args.server.no_process(error, &handle, &args.process))?;
    let mut printer = Printer {
        timestamps: args.timestamps,
        since: args.since.map_or(0, ms),
        until: args.until.map_or(u64::MAX, ms),
        ..Printer::default()
    };
    let printed = match args.tail {
        Tail::All => printer.all(&mut output).await,
        Tail::Lines(lines) => {
            let (last, over) =
                last(&mut output, &printer, lines).await.map_err(|error| args.server.explain(error))?;
            match printer.pieces(last).await {
                Ok(()) if !over => printer.all(&mut output).await,
                printed => printed.map_err(Failed::Write),
            }
        }
    };
    match printed {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Failed::Read(error)) => Err(args.server.explain(error)),
        // The reader has seen enough (`| head`).
        Err(Failed::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(Failed::Write(error)) => Err(lost(anyhow::Error::new(error).context("write the output"))),
    }
}

/// Reads what there is, and returns the last lines of it, and whether nothing follows.
async fn last(
    output: &mut KeptOutput,
    printer: &Printer,
    lines: usize,
) -> wardian_garden::Result<(Vec<Piece>, bool)> {
    let mut pieces = Vec::new();
    let over = loop {
        match output.next().await? {
            Piece::Over => break true,
            Piece::Now => break false,
            Piece::Output { time_ms, .. } if !printer.wants(time_ms) => {}
            piece => pieces.push(piece),
        }
    };
    Ok((cut(pieces, lines), over))
}

/// Leaves out all but the last lines, in the order of their beginnings. What a stream has printed after its last line break is
/// a line too.
fn cut(pieces: Vec<Piece>, lines: usize) -> Vec<Piece> {
    let (mut count, mut open) = (0_usize, [None; 2]);
    let mut parts = Vec::new();
    for piece in pieces {
        let Piece::Output { stderr, time_ms, data } = piece else {
            parts.push((count, piece));
            continue;
        };
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            let line = open[usize::from(stderr)].take().unwrap_or_else(|| {
                count += 1;
                count
            });
            open[usize::from(stderr)] = Some(line).filter(|_| !part.ends_with(b"\n"));
            parts.push((line, Piece::Output { stderr, time_ms, data: part.to_vec() }));
        }
    }
    // What was dropped before these lines is of interest only if there are fewer than were asked for.
    let first = count.saturating_sub(lines);
    parts.into_iter().filter(|(line, _)| *line > first || count < lines).map(|(_, piece)| piece).collect()
}

enum Failed {
    Read(wardian_garden::Error),
    Write(std::io::Error),
}

/// Prints pieces of output.
#[derive(Debug, Default)]
struct Printer {
    timestamps: bool,
    since: u64,
    until: u64,
    /// Per stream: its last line has not ended.
    open: [bool; 2],
}

impl Printer {
    fn wants(&self, time_ms: u64) -> bool {
        (self.since..=self.until).contains(&time_ms)
    }

    async fn all(&mut self, output: &mut KeptOutput) -> Result<(), Failed> {
        loop {
            match output.next().await.map_err(Failed::Read)? {
                Piece::Over => return Ok(()),
                Piece::Now => {}
                piece => self.piece(piece).await.map_err(Failed::Write)?,
            }
        }
    }

    async fn pieces(&mut self, pieces: Vec<Piece>) -> std::io::Result<()> {
        for piece in pieces {
            self.piece(piece).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, piece: Piece) -> std::io::Result<()> {
        match piece {
            Piece::Output { time_ms, .. } if !self.wants(time_ms) => Ok(()),
            Piece::Output { stderr, time_ms, data } => {
                let text = self.stamped(stderr, time_ms, data);
                if stderr {
                    write(&mut tokio::io::stderr(), &text).await
                } else {
                    write(&mut tokio::io::stdout(), &text).await
                }
            }
            Piece::Dropped(bytes) => {
                print::note(&format!("{} of output were not kept, see --keep-output", print::bytes(bytes)));
                Ok(())
            }
            Piece::Now | Piece::Over => Ok(()),
        }
    }

    /// Puts the time before each line, if it is wanted.
    fn stamped(&mut self, stderr: bool, time_ms: u64, data: Vec<u8>) -> Vec<u8> {
        if !self.timestamps {
            return data;
        }
        let then = UNIX_EPOCH.checked_add(Duration::from_millis(time_ms)).unwrap_or(UNIX_EPOCH);
        let time = format!("{} ", print::clock(then));
        let open = &mut self.open[usize::from(stderr)];
        let mut text = Vec::with_capacity(data.len() + time.len());
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            if !*open {
                text.extend_from_slice(time.as_bytes());
            }
            text.extend_from_slice(line);
            *open = !line.ends_with(b"\n");
        }
        text
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), text: &[u8]) -> std::io::Result<()> {
    to.write_all(text).await?;
    to.flush().await
}

/// Waits for the ends of processes, and prints their exit statuses.
pub fn wait(args: Wait) -> Result<ExitCode> {
    let Wait { server, process, handles } = args;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        super::each(&handles, &mut signals, "", |name| {
            let (client, server, process) = (client.clone(), server.clone(), process.clone());
            async move {
                let handle = server.named(&client, &name).await?;
                let ended = client.wait(&handle, &process).await;
                let ended = ended.map_err(|error| server.no_process(error, &handle, &process))?;
                let status =
                    ended.exit_status.context("the server has not told how the process has ended")?;
                Ok(Some(status.to_string()))
            }
        })
        .await
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(text: &str) -> Piece {
        Piece::Output { stderr: false, time_ms: 0, data: text.into() }
    }

    fn text(pieces: &[Piece]) -> String {
        let of = |piece: &Piece| match piece {
            Piece::Output { data, .. } => String::from_utf8(data.clone()).unwrap(),
            other => format!("{other:?}"),
        };
        pieces.iter().map(of).collect()
    }

    #[test]
    fn the_last_lines() {
        let all = || vec![out("a\nb"), out("b\nc\n"), Piece::Dropped(1), out("d\ne")];
        let last = |lines| text(&cut(all(), lines));
        assert_eq!(last(0), "");
        assert_eq!(last(1), "e");
        assert_eq!(last(2), "d\ne");
        assert_eq!(last(3), "c\nDropped(1)d\ne");
        assert_eq!(last(4), "bb\nc\nDropped(1)d\ne");
        assert_eq!(last(5), text(&all()));
        assert_eq!(last(50), text(&all()));
        assert_eq!(text(&cut(vec![out("a\n"), out("b\n")], 1)), "b\n");
        let err = Piece::Output { stderr: true, time_ms: 0, data: b"e".into() };
        assert_eq!(cut(vec![out("a\nb"), err.clone()], 2), [out("b"), err.clone()]);
        // A line that was begun before another one, and ends after it.
        assert_eq!(cut(vec![out("x\na"), err.clone(), out("b\n")], 2), [out("a"), err.clone(), out("b\n")]);
        assert_eq!(cut(vec![out("a"), err.clone(), out("b\n")], 1), [err]);
    }

    #[test]
    fn lines_are_stamped_where_they_begin() {
        let mut printer = Printer { timestamps: true, until: u64::MAX, ..Printer::default() };
        let mut of =
            |stderr, text: &str| String::from_utf8(printer.stamped(stderr, 1000, text.into())).unwrap();
        assert_eq!(of(false, "a\nb"), "1970-01-01T00:00:01.000Z a\n1970-01-01T00:00:01.000Z b");
        assert_eq!(of(true, "e\n"), "1970-01-01T00:00:01.000Z e\n");
        assert_eq!(of(false, "b\n"), "b\n");
    }

    #[test]
    fn times() {
        let ago = time("1m30s").unwrap().elapsed().unwrap().as_secs();
        assert!((90..95).contains(&ago), "{ago}");
        let then = UNIX_EPOCH + Duration::from_secs(951_782_400);
        for text in [
            "2000-02-29",
            "2000-02-29T00:00:00Z",
            "2000-02-29T01:30:00+01:30",
            "2000-02-29 00:00:00",
            "951782400",
        ] {
            assert_eq!(time(text).unwrap(), then, "{text}");
        }
        for bad in ["", "yesterday", "-1", "10x", "2000-13-01T00:00:00Z"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!((tail("all"), tail("7")), (Ok(Tail::All), Ok(Tail::Lines(7))));
        assert!(tail("-1").is_err() && tail("x").is_err());
    }
}
