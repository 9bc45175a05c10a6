//! Admission: bounds of requests, and gates for as many at a time as the host can take.

pub mod bounds;
pub mod gate;
pub mod shares;
