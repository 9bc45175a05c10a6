//! `wardian lab scale`.

use anyhow::Result;
use clap::ValueEnum;
use std::path::PathBuf;
use wardian_lab::runs;
use wardian_lab::scale::{Mode, Options, Stories, run_into};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A Garden server on this host: unix:/PATH or tcp:HOST:PORT [default: one started for each story]
    #[arg(long, value_name = "ADDR")]
    addr: Option<String>,
    /// How the code comes into the instances; of several, one story after the other
    #[arg(long, value_enum, value_name = "MODE", value_delimiter = ',', default_value = "stream")]
    mode: Vec<ModeArg>,
    /// Instances that run before the scaling
    #[arg(long, value_name = "N", default_value_t = 1)]
    from: usize,
    /// Instances that run after it; of several, after each step
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10")]
    to: Vec<usize>,
    /// How often the story is told, in each mode
    #[arg(long, value_name = "N", default_value_t = 1)]
    runs: usize,
    /// Megabytes of code in each instance, in files of one megabyte
    #[arg(long, value_name = "MB", default_value_t = 100)]
    code_mb: usize,
    /// Tell each story again with this disk limit for each instance, the image included, and compare: 500M, 2G (2^30)
    #[arg(long, value_name = "BYTES", value_parser = crate::store::size)]
    disk: Option<u64>,
    /// Run a health check beside each instance (the default)
    #[arg(long, overrides_with = "no_pea")]
    pea: bool,
    /// Run none
    #[arg(long)]
    no_pea: bool,
    /// The image of app and health check; with --mode oci the path of a tar [default: built on the spot from busybox]
    #[arg(long, value_name = "URI")]
    image: Option<String>,
    /// Where the temporary store is made; its file system is the one under test [default: /var/tmp]
    #[arg(long, value_name = "DIR", conflicts_with = "addr")]
    root: Option<PathBuf>,
    #[command(flatten)]
    results: super::files::Files,
    #[command(flatten)]
    kept: super::kept::Args,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    /// It is streamed into each
    Stream,
    /// It is a layer of their image, which the server fetches from the lab
    Oci,
}

impl Args {
    /// Tell the stories and print what was found.
    pub fn run(self, runtime: &tokio::runtime::Runtime, program: PathBuf) -> Result<()> {
        let mode = |mode: &ModeArg| match mode {
            ModeArg::Stream => Mode::Stream,
            ModeArg::Oci => Mode::Oci,
        };
        let options = Options {
            modes: self.mode.iter().map(mode).collect(),
            from: self.from,
            to: self.to,
            runs: self.runs,
            code_mb: self.code_mb,
            disk: self.disk,
            pea: self.pea || !self.no_pea,
            image: self.image,
            address: self.addr,
            location: self.root,
            program,
        };
        let (files, mut stories) = (self.results.check()?, Stories(Vec::new()));
        let mut keeper = self.kept.open()?;
        let told = runtime.block_on(run_into(&options, &mut stories, &mut |told| {
            keeper.keep(match told.result {
                Ok(report) => runs::of_scale(report, &options, told.begun),
                Err(error) => runs::broken(runs::scale_begun(&options, told.kind, told.begun), error),
            });
        }));
        if told.is_ok() {
            crate::print::text(&format!("\n{}", stories.table()))?;
        }
        // Without a story nothing began that a file could tell of.
        let written = if stories.0.is_empty() { Ok(()) } else { files.write(&stories) };
        keeper.beside(told)?;
        written?;
        keeper.done()
    }
}
