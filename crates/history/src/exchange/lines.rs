//! JSON lines.

use crate::Run;
use crate::error::{Error, Result};
use std::io::{BufRead, Write};

pub fn write(run: &Run, to: &mut dyn Write) -> Result<()> {
    serde_json::to_writer(&mut *to, run).map_err(std::io::Error::from)?;
    to.write_all(b"\n")?;
    Ok(())
}

pub fn read(from: &mut dyn BufRead, each: &mut dyn FnMut(u64, &Run) -> Result<()>) -> Result<()> {
    let mut number = 0;
    loop {
        number += 1;
        let Some(line) = super::line(from, number)? else { return Ok(()) };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let run: Run = serde_json::from_slice(&line)
            .map_err(|error| Error::Line { line: number, why: format!("this is no run: {error}") })?;
        each(number, &run)?;
    }
}
