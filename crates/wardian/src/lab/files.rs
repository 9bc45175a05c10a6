//! The files for results, which every experiment can write.

use super::file;
use anyhow::Result;
use std::path::PathBuf;
use wardian_lab::results::{self, repeats};

/// Heading of these flags in the help.
const HEADING: &str = "Results";

#[derive(Debug, Default, clap::Args)]
pub struct Files {
    /// Write the figures there, as JSON
    #[arg(long, value_name = "FILE", value_parser = file(), help_heading = HEADING)]
    json: Option<PathBuf>,
    /// Write them there as CSV, a line for each single value
    #[arg(long, value_name = "FILE", value_parser = file(), help_heading = HEADING)]
    csv: Option<PathBuf>,
    /// Draw a picture of them there
    #[arg(long, value_name = "FILE", value_parser = file(), help_heading = HEADING)]
    svg: Option<PathBuf>,
    /// Write a report there: one HTML file with pictures, tables and data
    #[arg(long, value_name = "FILE", value_parser = file(), help_heading = HEADING)]
    report: Option<PathBuf>,
}

impl Files {
    /// Whether the files can be written is checked at once.
    pub fn check(self) -> Result<results::Files> {
        let Self { json, csv, svg, report } = self;
        let files = results::Files { json, csv, svg, report, command: repeats(std::env::args_os()) };
        files.check().map(|()| files)
    }
}
