//! Requests that belong to a trace: `X-Vcap-Request-Id` names it.

use hyper::HeaderMap;
use tracing::Span;

/// Returns the span for a request's log events. Without a trace id it has no fields.
pub(crate) fn span(headers: &HeaderMap) -> Span {
    let id = headers.get("x-vcap-request-id").and_then(|value| value.to_str().ok()).and_then(trace_id);
    match id {
        Some(trace) => {
            let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
            tracing::error_span!("request", "trace-id" = trace, "span-id" = format!("{random:016x}"))
        }
        None => Span::none(),
    }
}

/// Returns a trace id: 64 or 128 bits in hex, without dashes. Any other value is dropped, so that it is not
/// written to the log.
fn trace_id(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != '-').take(33).collect();
    let fits = matches!(digits.len(), 16 | 32) && digits.chars().all(|c| c.is_ascii_hexdigit());
    fits.then(|| digits.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_traces() {
        let uuid = trace_id("5BE2A88F-a549-464b-74da-a4517e49b3f3");
        assert_eq!(uuid.as_deref(), Some("5be2a88fa549464b74daa4517e49b3f3"));
        assert_eq!(trace_id("463ac35c9f6413ad").as_deref(), Some("463ac35c9f6413ad"));
        for bad in ["", "-", "463ac35c9f6413a", "463ac35c9f6413ag", &"a".repeat(64), "463ac35c9f6413ad\u{e9}"]
        {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }
}
