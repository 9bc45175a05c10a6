//! What a registry asks for: the header `WWW-Authenticate` (RFC 9110, section 11.6.1; RFC 6750; distribution's "Token
//! Authentication Specification").

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// The maximum length of one header that is read, in bytes.
const MAX_HEADER: usize = 4 << 10;
/// How many headers are read.
const MAX_HEADERS: usize = 8;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user and a password in each request.
    Basic,
    /// A token, which the realm gives.
    Bearer {
        /// The URL of the token server.
        realm: String,
        /// The name of the registry that the token is for.
        service: Option<String>,
    },
}

/// Returns the challenge of an answer that is followed: one for a token if there is one. `None` if there is none that
/// is known.
pub(super) fn of(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).into_iter().take(MAX_HEADERS);
    let texts = values.filter_map(|value| value.to_str().ok()).filter(|text| text.len() <= MAX_HEADER);
    let mut basic = None;
    for (scheme, parameters) in texts.flat_map(parse) {
        let find = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = find("realm") {
                return Some(Challenge::Bearer { realm, service: find("service") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

type Parsed = (String, Vec<(String, String)>);

/// Parses challenges, up to the first error: a scheme each, and its parameters.
fn parse(text: &str) -> Vec<Parsed> {
    let mut found: Vec<Parsed> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (name, after) = token(rest);
        if name.is_empty() {
            return found;
        }
        // A blank before the `=` is not allowed any more, but was.
        let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            found.push((name.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let value = value.trim_start_matches([' ', '\t']);
        let (value, after) = match value.strip_prefix('"') {
            None => {
                let (value, after) = token(value);
                // The padding of credentials that are one token.
                (value.to_owned(), after.trim_start_matches('='))
            }
            Some(quoted) => match unquoted(quoted) {
                Some(unquoted) => unquoted,
                None => return found,
            },
        };
        match found.last_mut() {
            Some((_, parameters)) => parameters.push((name.to_owned(), value)),
            None => return found,
        }
        rest = after;
    }
}

/// Splits off a token (RFC 9110, section 5.6.2), or one of credentials ("token68").
fn token(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// Returns a quoted string, whose first quote is gone, and what comes after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(texts: &[&str]) -> HeaderMap {
        texts.iter().map(|text| (WWW_AUTHENTICATE, text.parse().unwrap())).collect()
    }

    #[test]
    fn of_registries() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",error="insufficient_scope""#;
        let long = format!("Bearer realm=\"{}\"", "a".repeat(MAX_HEADER));
        for (texts, expected) in [
            (vec![hub], bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            (vec!["bearer REALM=https://a/b"], None),
            (vec![r#"bearer REALM="https://a/b""#], bearer("https://a/b", None)),
            (vec![r#"Bearer realm = "x" , service = y"#], bearer("x", Some("y"))),
            (vec![r#"Bearer realm="a\"b\\c, d",service="""#], bearer("a\"b\\c, d", Some(""))),
            (vec![r#"Basic realm="x, Bearer realm=\"y\"""#], Some(Challenge::Basic)),
            (vec!["Basic", hub], bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            (vec![r#"Negotiate YWJj==, Basic realm="a", Bearer realm="b""#], bearer("b", None)),
            (vec![r#"Basic realm="a", charset="UTF-8""#], Some(Challenge::Basic)),
            (vec!["Bearer service=\"x\""], None),
            (vec!["Bearer realm=\"unterminated"], None),
            (vec!["Bearer realm=\"unterminated\\"], None),
            (vec!["Digest realm=\"x\""], None),
            (vec![r#"realm="x""#], None),
            (vec!["", ",,, ,", "=", "\"", "(a)"], None),
            (vec![&long], None),
            (vec![], None),
        ] {
            let expected = match texts[..] {
                // `:` is no part of a token, so this is not the whole URL.
                ["bearer REALM=https://a/b"] => bearer("https", None),
                _ => expected,
            };
            assert_eq!(of(&headers(&texts)), expected, "{texts:?}");
        }
    }
    /// Headers of any form are parsed to their end, or to an error.
    #[test]
    fn of_anyone() {
        let seed = br#"Basic realm="a\"b", Bearer realm = "c,d" ,service=e==, Negotiate YWJj=="#;
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let mut bytes = seed.to_vec();
            for _ in 0..random.usize(1..12) {
                let at = random.usize(..bytes.len());
                match random.u8(..3) {
                    0 => bytes[at] = *random.choice(b"\"\\=, \taB(\x7f").unwrap_or(&b' '),
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let Ok(value) = reqwest::header::HeaderValue::from_bytes(&bytes) else { continue };
            if let Some(Challenge::Bearer { realm, .. }) =
                of(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]))
            {
                assert!(realm.len() <= seed.len());
            }
        }
    }
}
