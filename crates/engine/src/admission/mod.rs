//! Who is let in: requests within their bounds, and as many at a time as the host can take.

pub mod bounds;
pub mod gate;
