//! The monitor: a web page that shows the runs of the lab over time, and the containers of a server as they live.
//!
//! It only reads. A [`Page`] answers requests; its [`Runs`] are the history, its [`live::Live`] source is a Garden server.
//! [`serve`] is the HTTP server around it. What is live is looked at only while somebody listens to the page's stream of
//! events, once for all listeners ([`hub`]).

#![forbid(unsafe_code)]

mod assets;
mod guard;
mod http;
mod hub;
pub mod live;
mod page;
mod patient;
pub mod runs;

pub use guard::{Hosts, is_public};
pub use http::{Limits, serve};
pub use page::{Body, Page};
pub use runs::Runs;
