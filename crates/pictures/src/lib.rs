//! Pictures of the lab's runs as SVG: the timeline of one run, and a series of runs over time.

#![forbid(unsafe_code)]

mod timeline;

pub use timeline::timeline;
