//! Long-running work: Ctrl-C cancels it cleanly, and on a terminal its progress is shown.

use anyhow::{Context as _, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use tokio::signal::unix::SignalKind;
use wardian_lab::signals::{self, Signals};
use wardian_store::{Phase, Progress};

/// The interval of progress updates.
const LOOK: Duration = Duration::from_millis(100);

/// The first signal received; 0 if there was none.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// Cancels the current work. `None`: there is no work, and a signal ends the process.
static CANCEL: Mutex<Option<Box<dyn Fn() + Send>>> = Mutex::new(None);

/// While this lives, SIGINT and SIGTERM cancel the work cleanly.
#[derive(Debug)]
pub struct Interrupts(());

impl Interrupts {
    /// From now on the first signal calls `cancel`, at once if it has come during earlier work. The second one ends
    /// the process, and so does one that comes after the work: the remaining output may block forever on a reader.
    pub fn catch(cancel: impl Fn() + Send + 'static) -> Result<Self> {
        static LISTENING: Mutex<bool> = Mutex::new(false);
        let mut work = CANCEL.lock();
        if FIRST.load(Ordering::Acquire) != 0 {
            cancel();
        }
        *work = Some(Box::new(cancel));
        drop(work);
        let caught = Self(());
        listen(&LISTENING, &[SignalKind::interrupt(), SignalKind::terminate()], |number| {
            let work = CANCEL.lock();
            match &*work {
                Some(cancel) if FIRST.swap(number, Ordering::AcqRel) == 0 => cancel(),
                _ => std::process::exit(128 + number),
            }
        })?;
        Ok(caught)
    }

    /// As [`Interrupts::catch`], for work that may block forever on a reader: the first signal ends the process, and
    /// `state` is printed.
    pub fn leave(state: &'static str) -> Result<Self> {
        Self::catch(move || {
            // A blocked reader may be that of standard error as well.
            if wardian_sys::stderr::is_free() {
                crate::print::note(state);
            }
            std::process::exit(128 + FIRST.load(Ordering::Acquire));
        })
    }

    /// Returns an error with `state`, the outcome of the work, if there was a signal.
    pub fn check(&self, state: &str) -> Result<()> {
        match FIRST.load(Ordering::Acquire) {
            0 => Ok(()),
            number => Err(crate::exit::interrupted(number, state)),
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        *CANCEL.lock() = None;
    }
}

/// How many writes may block on a reader of the output at the moment.
static WAITS: AtomicUsize = AtomicUsize::new(0);

/// See [`heed`].
#[derive(Debug)]
pub struct Wait(());

/// While this lives, a signal ends the process even if it is, or was, caught for another purpose: the process may be
/// blocked on a reader.
pub fn heed() -> Wait {
    static LISTENING: Mutex<bool> = Mutex::new(false);
    WAITS.fetch_add(1, Ordering::AcqRel);
    if signals::are_caught() {
        // If no thread can be started, the write blocks as without this.
        drop(listen(&LISTENING, &signals::asking(), |number| {
            let ends_in_order = matches!(number, 2 | 15) && CANCEL.lock().is_some();
            if WAITS.load(Ordering::Acquire) > 0 && !ends_in_order {
                std::process::exit(128 + number);
            }
        }));
    }
    Wait(())
}

impl Drop for Wait {
    fn drop(&mut self) {
        WAITS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Calls `arrived` with each of these signals, on a separate thread that is started once.
fn listen(
    listening: &Mutex<bool>,
    kinds: &[SignalKind],
    arrived: impl Fn(i32) + Send + 'static,
) -> Result<()> {
    let mut listening = listening.lock();
    if *listening {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let guard = runtime.enter();
    let mut all = Signals::catch(kinds).context("catch signals")?;
    drop(guard);
    let listen = move || {
        runtime.block_on(async {
            loop {
                arrived(all.next().await);
            }
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).context("start a thread")?;
    *listening = true;
    Ok(())
}

/// Asks a question on the terminal; returns whether the answer is yes.
pub fn asked(question: &str) -> Result<bool> {
    wardian_sys::stderr::write(&format!("{} [y/N] ", crate::print::tame(question)));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Does the work; on a terminal, `draw` shows its progress meanwhile.
fn drawn<T>(work: impl FnOnce() -> T, draw: impl FnOnce(&Receiver<()>) + Send) -> T {
    if std::io::stderr().is_terminal() { watched(work, draw) } else { work() }
}

/// Does the work while another thread looks at its progress.
fn watched<T>(work: impl FnOnce() -> T, look: impl FnOnce(&Receiver<()>) + Send) -> T {
    let (working, end) = channel::<()>();
    std::thread::scope(|scope| {
        // Dropped also on a panic, which ends the other thread.
        let _working = working;
        scope.spawn(move || look(&end));
        work()
    })
}

fn goes_on(end: &Receiver<()>) -> bool {
    end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The width of the terminal on standard error; 80 if it does not say.
fn columns() -> u16 {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
    size.map(|size| size.ws_col).ok().filter(|columns| *columns > 0).unwrap_or(80)
}

/// The template of a layer's line, which fits a terminal so wide: a line that wraps is drawn anew below the old one.
fn for_layer(columns: u16) -> &'static str {
    match columns {
        80.. => "  {prefix} {bar:24} {bytes:>11} of {total_bytes:<11} {msg}",
        56.. => "  {prefix} {bytes:>11} of {total_bytes:<11} {msg}",
        40.. => "  {prefix} {bytes:>11} {msg}",
        _ => "{prefix} {msg}",
    }
}

/// The template of the line of a single bar.
fn for_all(columns: u16) -> &'static str {
    match columns {
        80.. => "  {msg} {bar:24} {bytes:>11} of {total_bytes} {elapsed}",
        56.. => "  {msg} {bytes:>11} of {total_bytes} {elapsed}",
        _ => "  {msg} {bytes}",
    }
}

/// A progress bar for each layer of an image.
#[derive(Debug, Default)]
pub struct Bars {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl Bars {
    /// Shows the state of the layer number `at`, of whose blob of `size` bytes so many have been `read`.
    pub fn show(&mut self, at: usize, chain_id: &str, size: u64, read: u64, phase: Phase) {
        while self.bars.len() <= at {
            let bar = self.all.add(ProgressBar::new(size));
            bar.set_style(style(for_layer(columns())));
            self.bars.push(bar);
        }
        let (position, what) = match phase {
            Phase::Waiting => (0, "waiting"),
            Phase::Unpacking => (read, "unpacking"),
            Phase::Present => (size, "already here"),
            Phase::Done => (size, "done"),
        };
        let bar = &self.bars[at];
        bar.set_prefix(crate::print::short(chain_id).to_owned());
        bar.set_length(size);
        bar.set_position(position);
        bar.set_message(what);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bars.iter().for_each(ProgressBar::abandon);
    }
}

/// Does an import, with a progress bar for each layer on a terminal, and else, with `lines`, a line for each.
pub fn layers<T>(progress: &Progress, lines: bool, work: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return if lines { watched(work, |end| lines_of(progress, end)) } else { work() };
    }
    watched(work, |end| {
        let mut bars = Bars::default();
        let mut look = || {
            for (at, layer) in progress.layers().iter().enumerate() {
                bars.show(at, &layer.chain_id, layer.size, layer.bytes_read(), layer.phase());
            }
        };
        while goes_on(end) {
            look();
        }
        look();
    })
}

/// Prints a line for each layer, once it is there.
fn lines_of(progress: &Progress, end: &Receiver<()>) {
    let mut told = std::collections::HashSet::new();
    let mut look = || {
        let layers = progress.layers();
        for layer in &layers {
            let what = match layer.phase() {
                Phase::Waiting | Phase::Unpacking => continue,
                Phase::Present => "was there".to_owned(),
                Phase::Done => crate::print::bytes(layer.bytes_read()),
            };
            if told.insert(layer.chain_id.clone()) {
                let id = crate::print::short(&layer.chain_id);
                crate::print::say(&format!("layer {id}: {what} ({} of {})", told.len(), layers.len()));
            }
        }
    };
    while goes_on(end) {
        look();
    }
    look();
}

/// Does work without known progress, with a spinner.
pub fn spinner<T>(what: &'static str, work: impl FnOnce() -> T) -> T {
    drawn(work, |end| {
        let bar = ProgressBar::new_spinner();
        bar.set_style(style("  {spinner} {msg} {elapsed}"));
        bar.set_message(what);
        while goes_on(end) {
            bar.tick();
        }
        bar.finish_and_clear();
    })
}

/// Does work of a known size in bytes, with a progress bar. `done` returns the bytes done, and those of the whole, which may
/// grow.
pub fn bar<T>(what: &'static str, done: impl Fn() -> (u64, u64) + Send, work: impl FnOnce() -> T) -> T {
    drawn(work, move |end| {
        let bar = ProgressBar::new(done().1);
        bar.set_style(style(for_all(columns())));
        bar.set_message(what);
        while goes_on(end) {
            let (position, size) = done();
            bar.set_length(size);
            bar.set_position(position);
        }
        bar.finish_and_clear();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The width of a line, with the longest values there are.
    fn width(template: &str) -> usize {
        let mut line = template.to_owned();
        for (name, longest) in [
            ("{prefix}", "0123456789ab"),
            ("{bar:24}", "########################"),
            ("{bytes:>11}", " 999.99 MiB"),
            ("{bytes}", "999.99 MiB"),
            ("{total_bytes:<11}", "999.99 MiB "),
            ("{total_bytes}", "999.99 MiB"),
            ("{msg}", "already here"),
            ("{elapsed}", "59m"),
        ] {
            line = line.replace(name, longest);
        }
        assert!(!line.contains('{'), "{line}");
        line.len()
    }

    #[test]
    fn lines_fit_the_terminal() {
        for columns in [30, 40, 55, 56, 79, 80, 200] {
            for template in [for_layer(columns), for_all(columns)] {
                assert!(width(template) <= usize::from(columns), "{columns}: {template}");
                ProgressStyle::with_template(template).unwrap();
            }
        }
    }
}
