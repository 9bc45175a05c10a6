//! On what terms an image is had from a registry.

use std::fmt;
use std::str::FromStr;

use wardian_image::registry::Login;

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// Never: the image is in the store, or it is an error.
    Never,
    /// If the store has no image of that name.
    Missing,
    /// Each time; if no registry answers, the store's image of that name is used.
    Newer,
    /// Each time.
    Always,
}

impl Pull {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Never, Self::Missing, Self::Newer, Self::Always];

    fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Missing => "missing",
            Self::Newer => "newer",
            Self::Always => "always",
        }
    }

    /// Whether the store's image does without asking a registry.
    pub(crate) fn is_content(self) -> bool {
        matches!(self, Self::Never | Self::Missing)
    }
}

impl fmt::Display for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no [`Pull`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("expected missing, newer, always or never")]
pub struct NoPull;

impl FromStr for Pull {
    type Err = NoPull;

    fn from_str(text: &str) -> std::result::Result<Self, NoPull> {
        Self::ALL.into_iter().find(|pull| pull.name() == text).ok_or(NoPull)
    }
}

/// How an image is had from registries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// `None`: a name is one in the store, and an address of a registry is [`Pull::Always`].
    pub(crate) pull: Option<Pull>,
    /// The login that came with the request.
    pub(crate) login: Option<Login>,
    /// Whether the image gets no name, though there is no login.
    pub(crate) unnamed: bool,
}

impl Terms {
    /// Whether the image gets the name in the store that it has at its registry, under which others may have it.
    pub(crate) fn is_named(&self) -> bool {
        self.login.is_none() && !self.unnamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for pull in Pull::ALL {
            assert_eq!(pull.to_string().parse::<Pull>().unwrap(), pull);
        }
        assert!("Always".parse::<Pull>().is_err());
    }
}
