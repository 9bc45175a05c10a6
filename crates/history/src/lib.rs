//! The history of the lab: its runs, as plain data, and a store of them.
//!
//! A [`Run`] is one experiment in one mode, with its figures, the machine that it ran on, and a [`Timeline`] of what
//! happened. Runs of one [`Run::series`] can be compared with each other; a change between them is a step.
//!
//! - [`Store`] keeps runs in a SQLite file.
//! - [`steps`] finds the changes of a series, and [`ratio`] compares two groups of runs.
//! - [`exchange`] reads and writes runs as CSV and as JSON lines.

#![forbid(unsafe_code)]

mod bounds;
mod error;
pub mod exchange;
mod ratio;
mod run;
pub mod steps;
mod store;
mod timeline;

pub use error::{Error, Result};
pub use ratio::{Estimate, FEWEST, TooFew, median, ratio};
pub use run::{Machine, Run};
pub use store::{Filter, PATH, Point, Series, Store, is_database};
pub use timeline::{Bar, Mark, Row, Sample, Timeline, Wait};
