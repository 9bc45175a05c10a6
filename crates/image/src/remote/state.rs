//! The state of a file on a server, which its parts must all be of.

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, LAST_MODIFIED};

use super::try_again::text;

/// The headers of a response that describe the state of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) etag: Option<String>,
    pub(super) modified: Option<String>,
    /// Bytes of the answer's body.
    pub(super) length: Option<u64>,
}

impl Stated {
    pub(super) fn by(headers: &HeaderMap) -> Self {
        Self {
            etag: text(headers, &ETAG),
            modified: text(headers, &LAST_MODIFIED),
            length: text(headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        }
    }

    /// Whether this may be another state of the file than `then`: a header that both have differs, or `then` has a
    /// validator and this has nothing to compare with it. The lengths are not compared, because that of a part is not
    /// the whole's.
    pub(super) fn may_be_other_than(&self, then: &Self) -> bool {
        let pairs = [(&self.etag, &then.etag), (&self.modified, &then.modified)];
        let mut both = pairs.into_iter().filter(|(now, then)| now.is_some() && then.is_some()).peekable();
        let nothing = self.validator().is_none() || both.peek().is_none();
        both.any(|(now, then)| now != then) || then.validator().is_some() && nothing
    }

    /// Returns the validator, if there is one; a weak tag (RFC 9110, section 8.8.1) does not guarantee the same
    /// bytes.
    pub(super) fn validator(&self) -> Option<Validator> {
        let strong = |etag: &&String| etag.starts_with('"');
        if let Some(etag) = self.etag.as_ref().filter(strong) {
            return Some(Validator::Etag(etag.clone()));
        }
        self.modified.clone().map(|date| Validator::Modified { date, length: self.length })
    }
}

/// A validator, which tells one state of a file on a server from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Validator {
    /// A strong entity tag, with its quotes.
    Etag(String),
    /// The date of the last change as the server wrote it, and the size in bytes.
    Modified { date: String, length: Option<u64> },
}

impl Validator {
    pub(super) fn as_header(&self) -> &str {
        match self {
            Self::Etag(etag) => etag,
            Self::Modified { date, .. } => date,
        }
    }

    /// Whether the file is still in the same state.
    pub(super) fn fits(&self, stated: &Stated) -> bool {
        match self {
            Self::Etag(etag) => stated.etag.as_ref() == Some(etag),
            Self::Modified { date, length } => {
                stated.modified.as_ref() == Some(date)
                    && (length.is_none() || stated.length.is_none() || *length == stated.length)
            }
        }
    }
}
