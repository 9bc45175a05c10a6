//! Pictures of the lab's runs as SVG, and the page that shows them: functions from data to text, without I/O.
//!
//! - [`timeline()`]: one run: its rows, their phases, who waited, and the dirty pages below.
//! - [`series()`]: many runs over time, with the steps between them.
//! - [`comparison()`]: rows side by side, each with its runs, their median and a ratio.
//! - [`page()`]: a report: one HTML file with pictures, tables and the data.
//!
//! Names come from containers, other programs and files: all of them are escaped and shortened, and every picture has
//! an upper limit of elements. The pictures need neither scripts nor anything from outside, and have no `style`
//! attributes, so that a Content-Security-Policy can forbid all three.

#![forbid(unsafe_code)]

mod comparison;
mod curve;
mod look;
mod page;
mod palette;
mod scale;
mod series;
mod svg;
mod text;
mod timeline;

pub use comparison::{Comparison, Entry, comparison};
pub use look::{Look, css};
pub use page::{Page, Part, Section, Table, page};
pub use scale::{Unit, moment};
pub use series::{Axis, Line, Point, Series, Step, series};
pub use text::{command_line, escape};
pub use timeline::timeline;
