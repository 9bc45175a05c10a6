//! Lists every path that a type has, found by deserializing it without input: for a test that must notice each new
//! field.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer as _, VariantAccess, Visitor,
};
use std::cell::RefCell;

/// The paths of all values of `T`, such as `linux.namespaces[].type`; a map's keys are `{}`.
pub(crate) fn places<'de, T: serde::Deserialize<'de>>() -> Vec<String> {
    let found = RefCell::new(Vec::new());
    T::deserialize(Place { path: String::new(), found: &found }).expect("a value of each kind is there");
    found.into_inner()
}

#[derive(Clone)]
struct Place<'a> {
    path: String,
    found: &'a RefCell<Vec<String>>,
}

impl Place<'_> {
    fn below(&self, step: &str) -> Self {
        Self { path: format!("{}{step}", self.path), found: self.found }
    }

    fn is_one(&self) {
        self.found.borrow_mut().push(self.path.clone());
    }
}

macro_rules! values {
    ($($asked:ident => $visit:ident($value:expr),)*) => {
        $(fn $asked<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.is_one();
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Place<'_> {
    type Error = Error;

    values! {
        deserialize_bool => visit_bool(false),
        deserialize_i32 => visit_i32(0),
        deserialize_i64 => visit_i64(0),
        deserialize_u16 => visit_u16(0),
        deserialize_u32 => visit_u32(0),
        deserialize_u64 => visit_u64(0),
        deserialize_str => visit_str(""),
        deserialize_string => visit_str(""),
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom(format!("{}: a kind of value that this test does not know", self.path)))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(self.below("[]"))))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Keys { of: self, left: &["{}"], last: "" })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Keys { of: self, left: fields, last: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.is_one();
        visitor.visit_enum(Variant(variants[0]))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u8 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct One<'a>(Option<Place<'a>>);

impl<'de> de::SeqAccess<'de> for One<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|place| seed.deserialize(place)).transpose()
    }
}

struct Keys<'a> {
    of: Place<'a>,
    left: &'static [&'static str],
    last: &'static str,
}

impl<'de> de::MapAccess<'de> for Keys<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((first, left)) = self.left.split_first() else { return Ok(None) };
        (self.last, self.left) = (first, left);
        let key: StrDeserializer<'_, Error> = (*first).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let dot = if self.of.path.is_empty() || self.last == "{}" { "" } else { "." };
        seed.deserialize(self.of.below(&format!("{dot}{}", self.last)))
    }
}

struct Variant(&'static str);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(de::Error::custom("the specification has no such values"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("the specification has no such values"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("the specification has no such values"))
    }
}
