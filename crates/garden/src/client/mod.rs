//! A client of the Garden API: its connections and its requests.

pub(crate) mod address;
pub(crate) mod answering;
pub(crate) mod connection;
pub(crate) mod events;
pub(crate) mod hijack;
pub(crate) mod kept;
pub(crate) mod process;
pub(crate) mod requests;
pub(crate) mod tar;
pub(crate) mod tls;
