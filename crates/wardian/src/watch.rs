//! Work that takes a while: Ctrl-C ends it in good order, and on a terminal one sees how far it is.

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

/// Between two looks at how far the work is.
const LOOK: Duration = Duration::from_millis(100);

/// The first signal that came; 0: none.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// How the work at hand is ended. None: there is none, and a signal ends the process.
static CANCEL: Mutex<Option<Box<dyn Fn() + Send>>> = Mutex::new(None);

/// SIGINT and SIGTERM end the work in good order while this lives.
#[derive(Debug)]
pub struct Interrupts(());

impl Interrupts {
    /// From now on the first signal calls `cancel`, at once if it has come during earlier work. The second ends the process,
    /// as a signal would, and so does one that comes when the work is done: what is left may wait for a reader for ever.
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

    /// The same for work that waits for a reader, who may never read again: the first signal ends the process, and this is
    /// said.
    pub fn leave(state: &'static str) -> Result<Self> {
        Self::catch(move || {
            // Who reads nothing may be the reader of this as well.
            if wardian_sys::stderr::is_free() {
                crate::print::note(state);
            }
            std::process::exit(128 + FIRST.load(Ordering::Acquire));
        })
    }

    /// An error, if there was a signal, that says what has become of the work.
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

/// Waits for whoever reads what we print, who may never read again.
static WAITS: AtomicUsize = AtomicUsize::new(0);

/// See [`heed`].
#[derive(Debug)]
pub struct Wait(());

/// As long as this lives a signal that is caught for something else, or was until now, ends the process all the same.
pub fn heed() -> Wait {
    static LISTENING: Mutex<bool> = Mutex::new(false);
    WAITS.fetch_add(1, Ordering::AcqRel);
    if signals::are_caught() {
        // Where there is no thread to be had the wait is as it would have been.
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

/// Calls `arrived` with each of these signals, on a thread of its own, which is started once.
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

/// Whether somebody at a terminal agrees.
pub fn asked(question: &str) -> Result<bool> {
    wardian_sys::stderr::write(&format!("{} [y/N] ", crate::print::tame(question)));
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
