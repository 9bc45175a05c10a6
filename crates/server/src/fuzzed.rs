//! The handling of a request's head before the request is answered, for the fuzz target `head`.

use crate::host::{Hosts, refusal};
use crate::{convert, route};
use hyper::header::HeaderMap;
use hyper::{Method, Uri};

/// Whether a server on this TCP port, whose host has these names, would answer.
pub fn is_answered(headers: &HeaderMap, uri: &Uri, names: &[String], port: u16) -> bool {
    refusal(headers, uri, Some(&Hosts::new(names, ([127, 0, 0, 1], port).into()))).is_none()
}

/// Finds the route, and the handles that a query names; `None` if the handles are refused.
pub fn handles(method: &Method, uri: &Uri) -> Option<Vec<String>> {
    drop(route::find(method, uri.path()));
    convert::handles(&route::query(uri.query())).ok()
}
