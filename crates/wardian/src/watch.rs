//! Work that takes a while: Ctrl-C ends it in good order, and on a terminal one sees how far it is.

use anyhow::{Context as _, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;
use tokio::signal::unix::SignalKind;
use wardian_lab::signals::Asking;
use wardian_store::{Phase, Progress};

/// Between two looks at how far the work is.
const LOOK: Duration = Duration::from_millis(100);

/// Notes SIGINT and SIGTERM.
#[derive(Debug, Clone, Default)]
pub struct Interrupts(Arc<AtomicI32>);

impl Interrupts {
    /// From now on the first signal calls `cancel`. The second ends the process at once, as a signal would.
    pub fn catch(cancel: impl Fn() + Send + 'static) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the runtime")?;
        let guard = runtime.enter();
        let mut interrupt = Asking::catch(SignalKind::interrupt()).context("catch SIGINT")?;
        let mut terminate = Asking::catch(SignalKind::terminate()).context("catch SIGTERM")?;
        drop(guard);
        let caught = Self::default();
        let noted = caught.clone();
        let listen = move || {
            runtime.block_on(async {
                loop {
                    let number = tokio::select! {
                        () = interrupt.recv() => 2,
                        () = terminate.recv() => 15,
                    };
                    if noted.0.swap(number, Ordering::AcqRel) != 0 {
                        std::process::exit(128 + number);
                    }
                    cancel();
                }
            });
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).context("start a thread")?;
        Ok(caught)
    }

    /// An error, if there was a signal, that says what has become of the work.
    pub fn check(&self, state: &str) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            0 => Ok(()),
            number => Err(crate::exit::interrupted(number, state)),
        }
    }
}

/// Whether somebody at a terminal agrees.
pub fn asked(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Does the work while `draw` draws, on a terminal.
fn drawn<T>(work: impl FnOnce() -> T, draw: impl FnOnce(&Receiver<()>) + Send) -> T {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let (working, end) = channel::<()>();
    std::thread::scope(|scope| {
        // Dropped in any case, which ends the drawing.
        let _working = working;
        scope.spawn(move || draw(&end));
        work()
    })
}

fn goes_on(end: &Receiver<()>) -> bool {
    end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// An import, with a bar for each layer.
pub fn layers<T>(progress: &Progress, work: impl FnOnce() -> T) -> T {
    drawn(work, |end| {
        let (all, mut bars) = (MultiProgress::new(), Vec::<ProgressBar>::new());
        let look = |bars: &mut Vec<ProgressBar>| {
            for (index, layer) in progress.layers().iter().enumerate() {
                if bars.len() <= index {
                    let bar = all.add(ProgressBar::new(layer.size));
                    bar.set_style(style("  {prefix} {bar:30} {bytes:>11} of {total_bytes:<11} {msg}"));
                    bar.set_prefix(crate::print::short(&layer.chain_id).to_owned());
                    bars.push(bar);
                }
                let (position, what) = match layer.phase() {
                    Phase::Waiting => (0, "waiting"),
                    Phase::Unpacking => (layer.bytes_read(), "unpacking"),
                    Phase::Present => (layer.size, "already here"),
                    Phase::Done => (layer.size, "done"),
                };
                bars[index].set_position(position);
                bars[index].set_message(what);
            }
        };
        while goes_on(end) {
            look(&mut bars);
        }
        look(&mut bars);
        bars.iter().for_each(ProgressBar::abandon);
    })
}

/// Work that is of one piece.
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

/// Work of a known size in bytes.
pub fn bar<T>(what: &'static str, size: u64, done: impl Fn() -> u64 + Send, work: impl FnOnce() -> T) -> T {
    drawn(work, move |end| {
        let bar = ProgressBar::new(size);
        bar.set_style(style("  {msg} {bar:30} {bytes:>11} of {total_bytes} {elapsed}"));
        bar.set_message(what);
        while goes_on(end) {
            bar.set_position(done());
        }
        bar.finish_and_clear();
    })
}
