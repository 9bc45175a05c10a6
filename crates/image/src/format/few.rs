//! Lists of documents that strangers wrote, and the keys of their maps.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A list that is refused while it is read once it has more than `MOST` entries: many short ones take some dozen times
/// the memory of their text.
pub(super) struct Few<T, const MOST: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(next) = from.next_element()? {
                    if all.len() == MOST {
                        return Err(Error::invalid_length(MOST + 1, &self));
                    }
                    all.push(next);
                }
                Ok(all)
            }
        }
        from.deserialize_seq(List::<T, MOST>(PhantomData)).map(Self)
    }
}

/// The keys of a map, whose values mean nothing; bounded as [`Few`] is.
pub(super) struct FewKeys<const MOST: usize>(pub(super) Vec<String>);

impl<'de, const MOST: usize> Deserialize<'de> for FewKeys<MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys<const MOST: usize>;
        impl<'de, const MOST: usize> Visitor<'de> for Keys<MOST> {
            type Value = Vec<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a map of at most {MOST} entries")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Vec<String>, A::Error> {
                let mut all = Vec::new();
                while let Some((key, IgnoredAny)) = from.next_entry()? {
                    if all.len() == MOST {
                        return Err(Error::invalid_length(MOST + 1, &self));
                    }
                    all.push(key);
                }
                Ok(all)
            }
        }
        from.deserialize_map(Keys::<MOST>).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_these() {
        let read = |text: &str| serde_json::from_str::<Few<String, 2>>(text).map(|few| few.0.len());
        assert_eq!(read("[]").unwrap(), 0);
        assert_eq!(read(r#"["a","b"]"#).unwrap(), 2);
        assert!(read(r#"["a","b","c"]"#).unwrap_err().to_string().contains("at most 2 entries"));
        assert!(read("7").is_err());
        let keys = |text: &str| serde_json::from_str::<FewKeys<2>>(text).map(|few| few.0);
        assert_eq!(keys(r#"{"/a":{},"/b":{"x":[1]}}"#).unwrap(), ["/a", "/b"]);
        assert!(keys(r#"{"a":{},"b":{},"c":{}}"#).unwrap_err().to_string().contains("at most 2 entries"));
        assert!(keys("[]").is_err());
    }
}
