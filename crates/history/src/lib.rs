//! The history of the lab: its runs, as plain data, and a store of them.
//!
//! A [`Run`] is one experiment in one mode, with its figures, the machine that it ran on, and a [`Timeline`] of what
//! happened. Runs of one [`Run::series`] can be compared with each other; a change between them is a step.

#![forbid(unsafe_code)]

mod run;
mod timeline;

pub use run::{Machine, Run};
pub use timeline::{Bar, Mark, Row, Sample, Timeline, Wait};
