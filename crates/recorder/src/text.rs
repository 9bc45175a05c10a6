//! A diagnosis as readable text.

use crate::diagnosis::{Diagnosis, size};
use std::fmt;

/// How many owners and waits are shown.
const SHOWN: usize = 5;

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.verdict)?;
        if !self.causes.is_empty() {
            writeln!(f, "{:<32} {:>10} {:>6}  when (ms)      asked for by", "what wrote", "bytes", "share")?;
        }
        for share in &self.causes {
            let asked = share.asked_by.as_ref().map_or("–".to_owned(), |task| {
                let call = task.syscall.as_ref().map_or(String::new(), |call| format!(" in {call}"));
                format!("{task}{call}")
            });
            let when = format!("{:.0}…{:.0}", share.begin_ms, share.end_ms);
            let (cause, bytes) = (share.cause.to_string(), size(share.bytes));
            writeln!(f, "{cause:<32} {bytes:>10} {:>4.0} %  {when:<14} {asked}", share.share * 100.0)?;
            for owner in share.data_of.iter().take(SHOWN) {
                let files =
                    if owner.inodes == 0 { String::new() } else { format!("  {} files", owner.inodes) };
                writeln!(f, "  data of {:<22} {:>10}{files}", owner.name, size(owner.bytes))?;
            }
            if let Some(more) = share.data_of.len().checked_sub(SHOWN).filter(|more| *more > 0) {
                writeln!(f, "  and of {more} others")?;
            }
        }
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
        for advice in &self.advice {
            writeln!(f, "\nwhat to do: {advice}")?;
        }
        let tunables: Vec<String> = self.tunables.vm.iter().map(|(name, n)| format!("{name}={n}")).collect();
        writeln!(f, "\nvm: {}", tunables.join(" "))?;
        for limit in &self.limits {
            writeln!(f, "not known: {limit}")?;
        }
        Ok(())
    }
}
