//! Progress on standard error: bars on a terminal, lines elsewhere.

use crate::report::Phase;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;
use wardian_sys::stderr::line;
use wardian_sys::text::tame_lines;

/// Reports progress.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
}

/// The progress of one phase.
#[derive(Debug)]
pub struct Bar {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Reports to standard error.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Writes a line.
    pub fn say(&self, what: &str) {
        line(&tame_lines(what));
    }

    /// Reports a phase that has ended.
    pub fn tell(&self, phase: &Phase) {
        line(&told(phase));
    }

    /// Begins a phase of this many instances.
    pub fn phase(&self, name: &'static str, instances: usize) -> Bar {
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new(instances as u64).with_message(name);
            if let Ok(style) = ProgressStyle::with_template("  {msg:<10} {bar:30} {pos}/{len} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Bar { bar }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Bar {
    /// Counts an instance that has finished the phase.
    pub fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Ends the phase.
    pub fn finish(&self, phase: &Phase) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        line(&told(phase));
    }
}

fn told(phase: &Phase) -> String {
    format!("  {:<10} {:>3} in {:>8.1} ms", phase.name, phase.each_ms.len(), phase.wall_ms)
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
