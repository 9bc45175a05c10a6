//! What is parsed of a registry's answers, for the fuzzer.

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use wardian_sys::text::is_plain;

use super::challenge::{self, Challenge};
use super::client::next;
use super::document::{Kind, kind, media_type};
use crate::format::manifest::{Index, MAX_JSON};
use crate::remote::said;

/// Parses a header, as a challenge and as links, and a body, as a document and as an error.
///
/// # Panics
/// A result is not what it must be, whatever the input is.
pub fn answer(header: &[u8], body: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(header) {
        let text = value.to_str().ok().map(str::to_owned);
        let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]);
        if let Some(Challenge::Bearer { realm, service }) = challenge::of(&headers) {
            assert!(realm.len() + service.unwrap_or_default().len() <= header.len());
        }
        if let Some(text) = text {
            assert!(next(&text).is_none_or(|next| text.contains(&next)));
            assert!(!media_type(&text).contains(';'));
        }
    }
    let shown = said(body);
    assert!(shown.chars().all(is_plain) && shown.len() < 4096, "{shown:?}");
    if let Ok(Kind::Index) = kind(body, "", "fuzz") {
        assert!(body.len() as u64 <= MAX_JSON);
        if let Ok(chosen) = Index::parse(body, "fuzz").and_then(|index| index.of_host("fuzz", 10)) {
            assert_eq!(chosen.digest.as_hex().len(), 64);
        }
    }
}
