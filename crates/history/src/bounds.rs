//! What a run may contain. A run may come from a file that somebody else has written.

use crate::Run;
use crate::error::{Error, Result};

/// Maximum length of a text in bytes.
const TEXT: usize = 4096;
/// Maximum number of figures, and of parameters.
const FIGURES: usize = 1000;
/// Maximum number of words in the command.
const WORDS: usize = 1000;
/// Maximum size of a timeline as JSON, in bytes.
pub const TIMELINE: usize = 16 << 20;
/// Latest time in ms since 1970: the end of the year 9999.
pub const LATEST_MS: i64 = 253_402_300_799_999;

/// Checks that a run can be stored.
pub fn check(run: &Run) -> Result<()> {
    let wrong = |why: String| Err(Error::Run { why });
    let machine = &run.machine;
    let texts = [
        ("experiment", &run.experiment),
        ("mode", &run.mode),
        ("engine", &run.engine),
        ("version", &run.version),
        ("headline", &run.headline),
        ("host", &machine.host),
        ("kernel", &machine.kernel),
        ("filesystem", &machine.filesystem),
        ("mount_options", &machine.mount_options),
        ("cgroups", &machine.cgroups),
    ];
    for (name, text) in texts {
        if text.len() > TEXT {
            return wrong(format!("its {name} has {} bytes, more than {TEXT}", text.len()));
        }
    }
    for (name, text) in [("experiment", &run.experiment), ("engine", &run.engine)] {
        if text.is_empty() {
            return wrong(format!("it names no {name}"));
        }
    }
    if !(0..=LATEST_MS).contains(&run.begun_ms) {
        return wrong(format!("begun_ms is {}, not a time between 1970 and 9999", run.begun_ms));
    }
    if run.figures.len() > FIGURES || run.parameters.len() > FIGURES || run.command.len() > WORDS {
        return wrong(format!("it has more than {FIGURES} figures, parameters or words of its command"));
    }
    let optional = run.revision.iter().chain(&run.error).chain(&run.command);
    let parameters = run.parameters.iter().flat_map(|(name, value)| [name, value]);
    if let Some(long) = optional.chain(parameters).chain(run.figures.keys()).find(|text| text.len() > TEXT) {
        return wrong(format!("one of its texts has {} bytes, more than {TEXT}", long.len()));
    }
    if let Some((name, value)) = run.figures.iter().find(|(_, value)| !value.is_finite()) {
        return wrong(format!("its figure {name} is {value}"));
    }
    if !machine.load.is_finite() || machine.cpus > i64::MAX as u64 || machine.memory_bytes > i64::MAX as u64 {
        return wrong("a number of its machine is out of range".to_owned());
    }
    if run.complete && run.value().is_none() {
        return wrong(format!("it is complete and lacks its headline figure {:?}", run.headline));
    }
    Ok(())
}
