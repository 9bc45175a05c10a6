//! Records which task wrote to the disk, why, and which threads waited for it.
//!
//! A [`Recorder`] watches a host while something runs; its result is a [`Recording`], plain data. A [`Diagnosis`]
//! depends on a recording alone, so it can be made later, elsewhere, or from a recording that a test has written by
//! hand.

#![forbid(unsafe_code)]

mod attribution;
mod causes;
mod diagnosis;
mod fingerprint;
mod host;
mod proc;
mod recorder;
mod recording;
mod sampling;
mod text;
mod trace;
mod tracefs;
mod waits;

pub use causes::Cause;
pub use diagnosis::{CauseShare, Diagnosis, Owner, Subject, unnamed};
pub use fingerprint::Fingerprint;
pub use host::Disk;
pub use recorder::{Error, Options, Recorder, Watch};
pub use recording::{Cost, Io, Mark, Pressure, Recording, Sample, Source, Task, Tunables, Wait, Written};
pub use tracefs::{left_over, sweep};
