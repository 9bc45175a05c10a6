//! The query of an address: the keys of an app, and the removal of secrets.

use percent_encoding::percent_decode_str;

use crate::error::{Error, show};
use crate::registry::name::without_account;

/// The differences between the two forms of an app's address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spelling {
    /// The keys of the query: where the app is, its base directory, its digest.
    pub(super) keys: [&'static str; 3],
    unknown: &'static str,
    /// Whether a path may be given instead of a URL, and the digest may be left out.
    pub(super) short: bool,
    pub(crate) only_gzip: bool,
    pub(super) make_missing: bool,
}

pub(super) const DROPLET: Spelling = Spelling {
    keys: ["layer", "layer_path", "layer_digest"],
    unknown: "it is unknown; known are layer, layer_path and layer_digest",
    short: false,
    only_gzip: true,
    make_missing: false,
};
pub(super) const APP: Spelling = Spelling {
    keys: ["app", "app_path", "app_digest"],
    unknown: "it is unknown; known are app, app_path and app_digest",
    short: true,
    only_gzip: false,
    make_missing: true,
};

/// Returns an address as it was written, up to 300 characters, without possible secrets: a user with a password, and
/// the query. Only a local path keeps what looks like a query, as part of a file name, unless it contains a URL or an
/// app.
pub(crate) fn without_secrets(uri: &str) -> String {
    let (address, query) = uri.find(['?', '#']).map_or((uri, ""), |at| uri.split_at(at));
    let (scheme, rest) = address.split_once(':').unwrap_or(("", address));
    let path = match scheme {
        "tar" | "file" | "oci" | "oci-archive" | "docker-archive" => rest.strip_prefix("//").unwrap_or(rest),
        _ => address,
    };
    let is_plain = || !percent_decode_str(query).decode_utf8_lossy().contains("://") && !is_in(query);
    let shown = if path.starts_with('/') && is_plain() {
        uri.to_owned()
    } else if path.starts_with('/') {
        address.to_owned()
    } else {
        let slashes: &[char] = &['/', '\\'];
        let web = ["http", "https"].iter().any(|web| scheme.trim().eq_ignore_ascii_case(web));
        // Where a host may begin: URL parsers accept any number of slashes of either kind.
        let authority = if web {
            rest.trim_start_matches(slashes)
        } else {
            address.split_once("//").map_or("", |(_, authority)| authority)
        };
        let before = &address[..address.len() - authority.len()];
        let end = authority.find(slashes).unwrap_or(authority.len());
        let user = authority[..end].rfind('@').map_or(0, |at| at + 1);
        let shown = format!("{before}{}", &authority[user..]);
        // The name of an image has no account, wherever its first path begins.
        let is_name = !web && (scheme == "docker" || !address.contains("://"));
        if is_name { without_account(&shown).into_owned() } else { shown }
    };
    shown.chars().take(300).collect()
}

/// Whether the query has a key of an app.
fn is_in(query: &str) -> bool {
    let query = query.strip_prefix(['?', '#']).unwrap_or(query);
    DROPLET.keys.into_iter().chain(APP.keys).any(|key| has(query, key))
}

/// Whether a query has exactly that key; otherwise the `?` may be part of a file name.
pub(super) fn has(query: &str, key: &str) -> bool {
    let is = |pair: &str| percent_decode_str(pair.split('=').next().unwrap_or_default()).eq(key.bytes());
    query.split('&').any(is)
}

/// Percent-decodes strictly: invalid escapes and invalid UTF-8 are refused, because other parsers would read them
/// differently.
pub(super) fn decode(text: &str) -> Result<String, &'static str> {
    let escapes = text.split('%').skip(1);
    if !escapes.into_iter().all(|part| part.len() > 1 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
    {
        return Err("a % that begins no escape must be written %25");
    }
    if text.contains('#') {
        return Err("a # must be written %23");
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8")?;
    if decoded.contains('\0') {
        return Err("it contains a NUL byte");
    }
    Ok(decoded.into_owned())
}

/// Parses the values of a query, in the order of the spelling's keys.
pub(super) fn values(spelling: &Spelling, query: &str) -> Result<[Option<String>; 3], Error> {
    let mut found = [None, None, None];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A URL that was not encoded is split at its `&`, and the key after it may be a secret.
        let ordinary =
            key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%".contains(&b));
        let shown = if ordinary && pair.contains('=') { show(key.as_bytes()) } else { "(not shown)".into() };
        let bad = |why| Error::Parameter { key: shown.clone(), why };
        let key = decode(&key.replace('+', " ")).map_err(bad)?;
        let Some(index) = spelling.keys.iter().position(|known| *known == key) else {
            return Err(bad(spelling.unknown));
        };
        let bad = |why| Error::Parameter { key, why };
        if found[index].is_some() {
            return Err(bad("it is there twice"));
        }
        match decode(&value.replace('+', " ")) {
            Ok(value) if value.is_empty() => return Err(bad("it is empty")),
            Ok(value) => found[index] = Some(value),
            Err(why) => return Err(bad(why)),
        }
    }
    Ok(found)
}
