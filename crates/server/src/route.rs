//! The routes of the API.

use hyper::Method;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Ping,
    Capacity,
    List,
    Create,
    Destroy,
    Info,
    BulkInfo,
    Metrics,
    BulkMetrics,
    BandwidthLimits,
    CpuLimits,
    DiskLimits,
    /// Changes the disk limits of a living container; wardian's own.
    SetDiskLimits,
    MemoryLimits,
    Stop,
    Properties,
    Property,
    SetProperty,
    RemoveProperty,
    SetGraceTime,
    NetIn,
    NetOut,
    BulkNetOut,
    StreamIn,
    StreamOut,
    Run,
    Attach,
    Stdout,
    Stderr,
    /// The phases of the last create and destroy of a handle; wardian's own.
    History,
    /// The egress rules of a container; wardian's own.
    EgressRules,
    /// The server: what it is set to, and what it has; wardian's own.
    Overall,
    /// Freezes a container; wardian's own.
    Pause,
    /// Lets a frozen container go on; wardian's own.
    Unpause,
    /// Signals a process; wardian's own.
    Signal,
    /// The processes of a container; wardian's own.
    Top,
    /// What a container has changed in its root file system; wardian's own.
    Changes,
    /// The images that are brought into the store; wardian's own.
    ImagesUnderWay,
    /// The events from now on; wardian's own.
    Events,
    /// What containers use; wardian's own.
    Usages,
    /// Containers with their images and processes; wardian's own.
    Overviews,
    /// All that is known of one; wardian's own.
    Details,
    /// The handle that is meant by a handle or the beginning of an id; wardian's own.
    Named,
    /// The end of a process; wardian's own.
    Wait,
    /// The output that is kept of a process; wardian's own.
    Kept,
    /// Named volumes; wardian's own.
    Volumes,
    MakeVolume,
    PruneVolumes,
    Volume,
    RemoveVolume,
}

impl Route {
    /// Whether the container's grace time does not run during such a request.
    pub(crate) fn is_call(self) -> bool {
        use Route as R;
        matches!(
            self,
            R::Info
                | R::Metrics
                | R::Stop
                | R::StreamIn
                | R::StreamOut
                | R::Run
                | R::Details
                | R::Wait
                | R::Kept
                | R::NetIn
                | R::NetOut
                | R::BulkNetOut
                | R::Attach
                | R::BandwidthLimits
                | R::CpuLimits
                | R::DiskLimits
                | R::SetDiskLimits
                | R::Pause
                | R::Unpause
                | R::Signal
                | R::Top
                | R::Changes
                | R::MemoryLimits
                | R::Properties
                | R::Property
                | R::SetProperty
                | R::RemoveProperty
        )
    }
}

/// Method, path, route. `:x` stands for one segment. The order is that of the `Allow` header.
const TABLE: [(&str, &str, Route); 50] = [
    ("GET", "/ping", Route::Ping),
    ("GET", "/capacity", Route::Capacity),
    ("POST", "/containers", Route::Create),
    ("GET", "/containers", Route::List),
    ("GET", "/containers/bulk_info", Route::BulkInfo),
    ("GET", "/containers/bulk_metrics", Route::BulkMetrics),
    ("DELETE", "/containers/:handle", Route::Destroy),
    ("GET", "/containers/:handle/info", Route::Info),
    ("PUT", "/containers/:handle/stop", Route::Stop),
    ("PUT", "/containers/:handle/files", Route::StreamIn),
    ("GET", "/containers/:handle/files", Route::StreamOut),
    ("GET", "/containers/:handle/limits/bandwidth", Route::BandwidthLimits),
    ("GET", "/containers/:handle/limits/cpu", Route::CpuLimits),
    ("GET", "/containers/:handle/limits/disk", Route::DiskLimits),
    ("GET", "/containers/:handle/limits/memory", Route::MemoryLimits),
    ("POST", "/containers/:handle/net/in", Route::NetIn),
    ("POST", "/containers/:handle/net/out", Route::NetOut),
    ("POST", "/containers/:handle/net/out/bulk", Route::BulkNetOut),
    ("POST", "/containers/:handle/processes", Route::Run),
    ("GET", "/containers/:handle/processes/:pid", Route::Attach),
    ("GET", "/containers/:handle/processes/:pid/attaches/:streamid/stdout", Route::Stdout),
    ("GET", "/containers/:handle/processes/:pid/attaches/:streamid/stderr", Route::Stderr),
    ("PUT", "/containers/:handle/grace_time", Route::SetGraceTime),
    ("GET", "/containers/:handle/properties", Route::Properties),
    ("PUT", "/containers/:handle/properties/:key", Route::SetProperty),
    ("GET", "/containers/:handle/properties/:key", Route::Property),
    ("DELETE", "/containers/:handle/properties/:key", Route::RemoveProperty),
    ("GET", "/containers/:handle/metrics", Route::Metrics),
    ("PUT", "/wardian/containers/:handle/limits/disk", Route::SetDiskLimits),
    ("GET", "/wardian/containers/:handle/history", Route::History),
    ("GET", "/wardian/containers/:handle/net/out", Route::EgressRules),
    ("GET", "/wardian/info", Route::Overall),
    ("PUT", "/wardian/containers/:handle/pause", Route::Pause),
    ("PUT", "/wardian/containers/:handle/unpause", Route::Unpause),
    ("POST", "/wardian/containers/:handle/processes/:pid/signal", Route::Signal),
    ("GET", "/wardian/containers/:handle/top", Route::Top),
    ("GET", "/wardian/containers/:handle/changes", Route::Changes),
    ("GET", "/wardian/images/under_way", Route::ImagesUnderWay),
    ("GET", "/wardian/events", Route::Events),
    ("GET", "/wardian/usage", Route::Usages),
    ("GET", "/wardian/containers", Route::Overviews),
    ("GET", "/wardian/containers/:handle", Route::Details),
    ("GET", "/wardian/containers/:handle/handle", Route::Named),
    ("GET", "/wardian/containers/:handle/processes/:pid/wait", Route::Wait),
    ("GET", "/wardian/containers/:handle/processes/:pid/output", Route::Kept),
    ("GET", "/wardian/volumes", Route::Volumes),
    ("POST", "/wardian/volumes", Route::MakeVolume),
    ("DELETE", "/wardian/volumes", Route::PruneVolumes),
    ("GET", "/wardian/volumes/:name", Route::Volume),
    ("DELETE", "/wardian/volumes/:name", Route::RemoveVolume),
];

/// The result of the search for a route.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The route, with the variable segments decoded.
    Route(Route, Vec<String>),
    /// The path exists with these methods.
    WrongMethod(String),
    /// There is no such path.
    Unknown,
    /// The path cannot be decoded.
    Bad,
}

pub(crate) fn find(method: &Method, path: &str) -> Found {
    let mut allowed = Vec::new();
    for (its_method, pattern, route) in TABLE {
        let Some(segments) = segments(pattern, path) else { continue };
        if its_method == method.as_str() {
            return match segments.into_iter().map(unescape).collect() {
                Some(segments) => Found::Route(route, segments),
                None => Found::Bad,
            };
        }
        allowed.push(its_method);
    }
    if allowed.is_empty() { Found::Unknown } else { Found::WrongMethod(allowed.join(", ")) }
}

/// Returns the variable segments if the path matches. The last one must not be empty.
fn segments<'a>(pattern: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    let mut found = Vec::new();
    let mut empty = false;
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return (!empty).then_some(found),
            (Some(name), Some(segment)) if name.starts_with(':') => {
                empty = segment.is_empty();
                found.push(segment);
            }
            (Some(name), Some(segment)) if name == segment => empty = false,
            _ => return None,
        }
    }
}

/// Decodes percent escapes as Go does in a query: `+` is a space. `None`: a broken escape, or not UTF-8.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Returns the first value of each key of a query; pairs that cannot be decoded are left out, as in Go.
pub(crate) fn query(text: Option<&str>) -> std::collections::BTreeMap<String, String> {
    let mut map = std::collections::BTreeMap::new();
    for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (unescape(key), unescape(value)) {
            map.entry(key).or_insert(value);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: &str, path: &str) -> Found {
        find(&method.parse().unwrap(), path)
    }

    #[test]
    fn every_route_is_found_by_its_own_path() {
        for (method, pattern, route) in TABLE {
            assert!(
                matches!(at(method, pattern), Found::Route(found, _) if found == route),
                "{method} {pattern}"
            );
        }
    }

    #[test]
    fn segments_are_decoded() {
        let key = at("GET", "/containers/h/properties/a+b%2Fc");
        assert_eq!(key, Found::Route(Route::Property, vec!["h".into(), "a b/c".into()]));
        assert_eq!(at("GET", "/containers/h%zz/info"), Found::Bad);
        assert_eq!(at("GET", "/containers//info"), Found::Route(Route::Info, vec![String::new()]));
        assert_eq!(
            at("DELETE", "/containers/bulk_info"),
            Found::Route(Route::Destroy, vec!["bulk_info".into()])
        );
    }

    #[test]
    fn unknown_paths_and_wrong_methods() {
        for path in ["/nope", "/", "/containers/", "/ping/", "/containers/h/processes/p/attaches/1/stdin"] {
            assert_eq!(at("GET", path), Found::Unknown, "{path}");
        }
        assert_eq!(at("HEAD", "/ping"), Found::WrongMethod("GET".into()));
        assert_eq!(at("OPTIONS", "/containers"), Found::WrongMethod("POST, GET".into()));
        let patched = at("PATCH", "/containers/h/properties/k");
        assert_eq!(patched, Found::WrongMethod("PUT, GET, DELETE".into()));
    }

    #[test]
    fn queries() {
        let found = query(Some("k=v&k=w&a%20b=c+d&e&%zz=1&=x"));
        let expected = [("k", "v"), ("a b", "c d"), ("e", ""), ("", "x")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }
}
