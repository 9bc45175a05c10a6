//! A diagnosis as readable text.

use crate::diagnosis::{CauseShare, Diagnosis, size};
use std::fmt::{self, Write as _};

/// How many owners and waits are shown.
const SHOWN: usize = 5;

impl Diagnosis {
    /// The verdict, the cause, and what to do about it. With `verbose` also who wrote and who waited, the stacks, and
    /// the settings of the kernel.
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        let _ = self.short(&mut text, verbose);
        let _ = if verbose {
            self.rest(&mut text)
        } else {
            writeln!(text, "(who wrote, who waited and in what: --verbose)")
        };
        text
    }

    fn short(&self, f: &mut impl fmt::Write, verbose: bool) -> fmt::Result {
        // The kernel's function is for those who read the stacks too.
        let function = self.waited.first().and_then(|wait| wait.kernel_function.as_ref());
        let function = function.filter(|_| !verbose).map(|function| format!(" ({function})"));
        writeln!(f, "{}", self.verdict.trim_end_matches(function.as_deref().unwrap_or("\n")))?;
        for fingerprint in &self.fingerprints {
            writeln!(f, "cause: {}", fingerprint.id)?;
        }
        for advice in &self.advice {
            writeln!(f, "what to do: {advice}")?;
        }
        for limit in &self.limits {
            writeln!(f, "not known: {limit}")?;
        }
        Ok(())
    }

    fn rest(&self, f: &mut impl fmt::Write) -> fmt::Result {
        shares(f, "what wrote", &self.causes)?;
        shares(f, "what was discarded", &self.discards)?;
        if !self.waited.is_empty() {
            writeln!(f, "\n{:<24} {:>9} {:>9}  {:<12} where", "who waited", "from ms", "for ms", "call")?;
        }
        for wait in self.waited.iter().take(SHOWN) {
            let call = wait.task.syscall.as_deref().unwrap_or("–");
            let function = wait.kernel_function.as_deref().unwrap_or("–");
            let task = wait.task.to_string();
            writeln!(f, "{task:<24} {:>9.0} {:>9.0}  {call:<12} {function}", wait.begin_ms, wait.ms)?;
        }
        if let Some(more) = self.waited.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            writeln!(f, "and {more} shorter ones")?;
        }
        for fingerprint in &self.fingerprints {
            writeln!(f, "\nrecognised: {}\n  {}", fingerprint.id, fingerprint.evidence)?;
        }
        let tunables: Vec<String> = self.tunables.vm.iter().map(|(name, n)| format!("{name}={n}")).collect();
        writeln!(f, "\nvm: {}", tunables.join(" "))
    }
}

fn shares(f: &mut impl fmt::Write, title: &str, all: &[CauseShare]) -> fmt::Result {
    if !all.is_empty() {
        writeln!(f, "\n{title:<32} {:>10} {:>6}  when (ms)      asked for by", "bytes", "share")?;
    }
    for share in all {
        let asked = share.asked_by.as_ref().map_or("–".to_owned(), |task| {
            let call = task.syscall.as_ref().map_or(String::new(), |call| format!(" in {call}"));
            format!("{task}{call}")
        });
        let when = format!("{:.0}…{:.0}", share.begin_ms, share.end_ms);
        let (cause, bytes) = (share.cause.to_string(), size(share.bytes));
        writeln!(f, "{cause:<32} {bytes:>10} {:>4.0} %  {when:<14} {asked}", share.share * 100.0)?;
        for owner in share.data_of.iter().take(SHOWN) {
            let files = if owner.inodes == 0 {
                String::new()
            } else {
                format!("  {} file{}", owner.inodes, if owner.inodes == 1 { "" } else { "s" })
            };
            writeln!(f, "  data of {:<22} {:>10}{files}", owner.name, size(owner.bytes))?;
        }
        if let Some(more) = share.data_of.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            writeln!(f, "  and of {more} others")?;
        }
    }
    Ok(())
}
