//! Any text as the host, the headers and the target of a request. Only hosts that no web page can have may be answered: what a
//! browser would name is found out by the parser of the URL standard.
#![no_main]

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;
use url::{Host, Url};
use wardian_server::fuzzed::{handles, is_answered};

const OURS: &str = "cell.example";

fn answered(host: &str, uri: &Uri, port: u16) -> bool {
    let mut headers = HeaderMap::new();
    let Ok(value) = HeaderValue::from_str(host) else { return false };
    headers.insert("host", value);
    let answered = is_answered(&headers, uri, &[OURS.to_owned()], port);
    for (name, value) in [("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let mut page = headers.clone();
        page.insert(name, HeaderValue::from_static(value));
        assert!(!is_answered(&page, uri, &[OURS.to_owned()], port));
    }
    answered
}

fuzz_target!(|input: (u16, &str, &str)| {
    let (port, host, target) = input;
    let plain = Uri::from_static("/ping");
    answered(host, &plain, port);
    // As a browser names it after a page has asked for http://HOST/.
    if let Ok(url) = Url::parse(&format!("http://{host}/"))
        && let Some(name) = url.host()
    {
        let named = match url.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_string(),
        };
        let at = url.port_or_known_default().unwrap_or(80);
        if answered(&named, &plain, at) {
            let ours = match &name {
                Host::Domain(name) => ["localhost", OURS].contains(&name.trim_end_matches('.')),
                Host::Ipv4(_) | Host::Ipv6(_) => true,
            };
            assert!(ours, "{named:?} at port {at}");
        }
    }
    let Ok(uri) = target.parse::<Uri>() else { return };
    if let Some(authority) = uri.authority()
        && answered("127.0.0.1", &uri, port)
    {
        assert!(!authority.as_str().contains("evil"), "{authority}");
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::POST] {
        let Some(handles) = handles(&method, &uri) else { continue };
        assert!(handles.len() <= 4096);
        assert_eq!(handles.iter().collect::<BTreeSet<_>>().len(), handles.len(), "a handle is taken twice");
    }
});
