//! Errors of parsers of JSON, without the texts of documents.

use serde_json::error::Category;

use crate::error::Error;

impl Error {
    /// A document that is not what its parser expects.
    pub(crate) fn json(what: impl Into<String>, error: &serde_json::Error) -> Self {
        let (text, what) = (error.to_string(), what.into());
        let missing = |text: &str| text.starts_with("missing field `");
        let why = match error.classify() {
            // The parser quotes what it has found before what it has expected; other texts may quote it anywhere.
            Category::Data if !missing(&text) => {
                let expected =
                    text.starts_with("invalid ").then(|| text.rsplit_once(", expected ")).flatten();
                match expected {
                    Some((_, expected)) => {
                        let object = expected.strip_prefix("struct ").and_then(|rest| rest.split_once(' '));
                        let expected =
                            object.map_or_else(|| expected.to_owned(), |(_, at)| format!("an object {at}"));
                        format!("expected {expected}")
                    }
                    None => format!("a bad value at line {} column {}", error.line(), error.column()),
                }
            }
            _ => text,
        };
        Self::Json { what, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn no_text_of_a_document_is_shown() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only what cannot be parsed counts")]
        struct Document {
            digest: Digest,
            #[serde(default)]
            number: u32,
        }
        let digest = Digest::of(b"");
        for (text, shown) in [
            (r#""SECRET""#.to_owned(), "expected an object at line 1 column 8"),
            (r#"["SECRET", 1]"#.to_owned(), "a bad value at line 1 column "),
            (r#"{"digest":"SECRET"}"#.to_owned(), "a bad value at line 1 column "),
            (r#"{"digest":"missing field `SECRET"}"#.to_owned(), "a bad value at line 1 column "),
            (
                format!(r#"{{"digest":"{digest}","number":"SECRET, expected SECRET"}}"#),
                "expected u32 at line 1 column",
            ),
            (r#"{"SECRET":1}"#.to_owned(), "missing field `digest` at line 1 column 12"),
            ("<SECRET>".to_owned(), "expected value at line 1 column 1"),
            (r#"{"SECRET"#.to_owned(), "EOF while parsing a string at line 1 column 8"),
        ] {
            let error = serde_json::from_str::<Document>(&text).unwrap_err();
            let error = Error::json("x", &error);
            let all = format!("{error} {error:?}");
            assert!(all.contains(shown) && !all.contains("SECRET"), "{text}: {all}");
        }
    }
}
