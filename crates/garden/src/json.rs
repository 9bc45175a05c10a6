//! JSON as Go's `encoding/json` reads and writes it.

use serde::de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;

/// Why a body could not be read. The texts of the first two are Go's.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The text is empty.
    #[error("EOF")]
    Empty,
    /// The text ends in the middle of a value.
    #[error("unexpected EOF")]
    Truncated,
    /// The text is not JSON, or not of the expected shape.
    #[error("json: {}", without_values(&.0.to_string()))]
    Invalid(serde_json::Error),
    /// It has fields that the value does not have.
    #[error("unknown fields: {}", listed(.0))]
    Unknown(Vec<String>),
}

/// The most unknown fields that are named, and characters of each name.
const NAMED: usize = 8;
const NAME: usize = 64;

fn listed(names: &[String]) -> String {
    let shown =
        names.iter().take(NAMED).map(|name| format!("{:?}", name.chars().take(NAME).collect::<String>()));
    let more = names.len().checked_sub(NAMED + 1).map(|more| format!("and {} more", more + 1));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// Keys below these are data, not field names: their case stays.
const FREE_KEYS: [&str; 1] = ["properties"];

/// The most values in one text, nested ones included: each takes up to a hundred bytes of memory, however
/// short it is.
const VALUES: usize = 1 << 16;

/// A value with field names in lower case and without nulls; of repeated fields the last one counts.
struct Folded(Value);

#[derive(Clone, Copy)]
struct FoldedVisitor<'a> {
    keep_case: bool,
    /// How many values there may still be.
    left: &'a Cell<usize>,
}

impl<'de> serde::de::DeserializeSeed<'de> for FoldedVisitor<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => return Err(D::Error::custom("too many values")),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Deserialize<'de> for Folded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(VALUES);
        deserializer.deserialize_any(FoldedVisitor { keep_case: false, left: &left }).map(Self)
    }
}

impl<'de> Visitor<'de> for FoldedVisitor<'_> {
    type Value = Value;

    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self { keep_case: false, ..self })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(mut key) = fields.next_key::<String>()? {
            if !self.keep_case {
                key.make_ascii_lowercase();
            }
            let free = !self.keep_case && FREE_KEYS.contains(&key.as_str());
            let value = fields.next_value_seed(Self { keep_case: free, ..self })?;
            match value {
                // In a map of data null is the zero value; a struct's field keeps its value.
                Value::Null if self.keep_case => {
                    map.insert(key, Value::String(String::new()));
                }
                Value::Null => {}
                value => {
                    map.insert(key, value);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

fn shape<T: DeserializeOwned>(value: Value) -> Result<T, DecodeError> {
    // `null` for the whole value leaves all fields zero. If no object is expected the error names null.
    let shaped = match value {
        Value::Null => T::deserialize(Value::Object(Map::new())).or_else(|_| T::deserialize(Value::Null)),
        value => T::deserialize(value),
    };
    shaped.map_err(DecodeError::Invalid)
}

/// Removes the value from serde's message about an unexpected string: it may be a password, and errors are
/// logged.
fn without_values(message: &str) -> String {
    match (message.split_once(" \""), message.rsplit_once("\", expected")) {
        (Some((before, _)), Some((_, after))) => format!("{before}, expected{after}"),
        _ => message.to_owned(),
    }
}

/// Reads the first value of a body; what follows it is ignored.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    match first(body)? {
        // serde would accept an array for a struct, with the fields in order; Go does not.
        Folded(Value::Array(_)) => Err(unexpected("array", "an object")),
        Folded(value) => shape(value),
    }
}

/// Reads the first value of a body as [`decode`] does; it must be an object without other fields than these, for a
/// request in which a field that is not understood would change what is meant.
///
/// # Errors
/// As [`decode`]; there are other fields, with or without values.
pub fn decode_exactly<T: DeserializeOwned>(body: &[u8], fields: &[&str]) -> Result<T, DecodeError> {
    let given: BTreeMap<String, IgnoredAny> = first(body)?;
    let is_known = |name: &String| fields.iter().any(|field| field.eq_ignore_ascii_case(name));
    let unknown: Vec<String> = given.into_keys().filter(|name| !is_known(name)).collect();
    if unknown.is_empty() { decode(body) } else { Err(DecodeError::Unknown(unknown)) }
}

/// Reads the first value of a body as [`decode`] does; it is an array of objects, or null for an empty one.
pub fn decode_list<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, DecodeError> {
    if body.trim_ascii_start().starts_with(b"[") {
        let List(list) = first(body)?;
        return list;
    }
    match first(body)? {
        Folded(Value::Null) => Ok(Vec::new()),
        _ => Err(unexpected("value", "an array")),
    }
}

/// An array whose elements are shaped one by one: the values of thousands of elements at a time take ten times as much
/// memory as the text.
struct List<T>(Result<Vec<T>, DecodeError>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;

    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
        let left = Cell::new(VALUES);
        let mut list = Ok(Vec::new());
        while let Some(value) = items.next_element_seed(FoldedVisitor { keep_case: false, left: &left })? {
            // A text that is not JSON is refused as such, whatever its elements are: it is read to its end.
            let Ok(known) = &mut list else { continue };
            let element = match value {
                Value::Array(_) => Err(unexpected("array", "an object")),
                value => shape(value),
            };
            match element {
                Ok(element) => known.push(element),
                Err(error) => list = Err(error),
            }
        }
        Ok(List(list))
    }
}

fn first<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let text = String::from_utf8_lossy(body);
    match serde_json::Deserializer::from_str(&text).into_iter().next() {
        None => Err(DecodeError::Empty),
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) if error.is_eof() => Err(DecodeError::Truncated),
        Some(Err(error)) => Err(DecodeError::Invalid(error)),
    }
}

fn unexpected(found: &str, expected: &str) -> DecodeError {
    DecodeError::Invalid(serde::de::Error::custom(format_args!("cannot unmarshal {found} into {expected}")))
}

/// Writes a value as Go's encoder does: `<`, `>`, `&`, U+2028 and U+2029 escaped, a newline at the end.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut text = Vec::new();
    if write(&mut text, value).is_err() {
        text = b"null".to_vec();
    }
    text.push(b'\n');
    text
}

/// Writes a value as [`encode`] does, without the newline, and in small pieces.
///
/// # Errors
/// Writing to `to` fails.
pub fn write<T: Serialize + ?Sized>(to: impl io::Write, value: &T) -> io::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(to, Go)).map_err(io::Error::from)
}

/// A formatter with the escapes of Go's encoder.
struct Go;

impl Formatter for Go {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, to: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (before, behind) = rest.split_at(at);
            to.write_all(before.as_bytes())?;
            let mut letters = behind.chars();
            let letter = letters.next().map_or(0, u32::from);
            write!(to, "\\u{letter:04x}")?;
            rest = letters.as_str();
        }
        to.write_all(rest.as_bytes())
    }
}

/// Decodes objects one after the other from bytes that arrive in pieces. Every byte is read twice, however
/// small the pieces: once to find the object's end, once to parse it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// The beginning of the next value, and how far it was searched for its end.
    begin: usize,
    scanned: usize,
    /// The state of the search there: the open braces, whether it is inside a string, and after a backslash.
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Decoder {
    /// A value longer than this is refused.
    pub const LIMIT: usize = 4 << 20;

    /// Returns the bytes held of an incomplete value.
    pub fn held(&self) -> usize {
        self.buffer.len() - self.begin
    }

    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.begin);
        self.scanned -= self.begin;
        self.begin = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns memory that a long value has needed.
    pub fn shrink(&mut self) {
        self.push(&[]);
        self.buffer.shrink_to(0);
    }

    /// Returns the next value, if it is complete.
    pub fn next_value<T: DeserializeOwned>(&mut self) -> Result<Option<T>, DecodeError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.string => self.escaped = true,
                b'"' if self.depth > 0 => self.string = !self.string,
                _ if self.string => {}
                b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => self.begin = self.scanned,
                b'{' => self.depth += 1,
                b'}' if self.depth > 1 => self.depth -= 1,
                b'}' if self.depth == 1 => {
                    self.depth = 0;
                    let value = serde_json::from_slice(&self.buffer[self.begin..self.scanned]);
                    self.begin = self.scanned;
                    return shape(value.map(|Folded(value)| value).map_err(DecodeError::Invalid)?).map(Some);
                }
                _ if self.depth == 0 => {
                    let error = serde_json::Error::custom("a message begins with '{'");
                    return Err(DecodeError::Invalid(error));
                }
                _ => {}
            }
        }
        if self.scanned - self.begin > Self::LIMIT {
            return Err(DecodeError::Invalid(serde_json::Error::custom("value too long")));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ContainerSpec, DiskLimits, NetOutRule, Payload};

    #[test]
    fn fields_that_must_be_known_are_named_if_they_are_not() {
        let limits = |body: &str| decode_exactly::<DiskLimits>(body.as_bytes(), &DiskLimits::FIELDS);
        assert_eq!(limits(r#"{"Byte_Hard":7,"scope":1}"#).unwrap().byte_hard, 7);
        assert_eq!(limits("{}").unwrap(), DiskLimits::default());
        let error =
            limits(r#"{"byte_hart":7,"disk_limits":{"byte_hard":7},"x":null,"scope":0}"#).unwrap_err();
        assert_eq!(error.to_string(), r#"unknown fields: "byte_hart", "disk_limits", "x""#);
        let many: String = (0..20).map(|n| format!("\"{}{n}\":1,", "y".repeat(500))).collect();
        let text = limits(&format!("{{{many}\"z\":1}}")).unwrap_err().to_string();
        assert!(text.ends_with("and 13 more") && text.len() < 700, "{text}");
        for bad in ["null", "[]", "7", "", "{"] {
            assert!(limits(bad).is_err(), "{bad}");
        }
        // The names are those of the type.
        let full = DiskLimits { inode_soft: 1, inode_hard: 1, byte_soft: 1, byte_hard: 1, scope: 1 };
        let text = serde_json::to_value(full).unwrap();
        assert_eq!(text.as_object().unwrap().len(), DiskLimits::FIELDS.len());
        assert!(DiskLimits::FIELDS.iter().all(|field| text.get(field).is_some()), "{text}");
    }

    #[test]
    fn field_names_match_in_any_case_and_data_keeps_its_case() {
        let spec: ContainerSpec = decode(
            br#"{"HANDLE":"a","what":1,"Limits":{"MEMORY_limits":{"limit_in_BYTES":7}},
                "Properties":{"Key":"V","key":"v","n":null}} junk"#,
        )
        .unwrap();
        assert_eq!(spec.handle, "a");
        assert_eq!(spec.limits.memory_limits.limit_in_bytes, 7);
        assert_eq!(spec.properties["Key"], "V");
        assert_eq!(spec.properties["key"], "v");
        assert_eq!(spec.properties["n"], "");
    }

    #[test]
    fn null_is_zero_and_the_last_one_stands() {
        let spec: ContainerSpec =
            decode(br#"{"handle":"a","Handle":"b","HANDLE":null,"env":null,"image":null}"#).unwrap();
        assert_eq!(spec.handle, "b");
        assert!(spec.env.is_empty());
        assert_eq!(decode::<ContainerSpec>(b"null").unwrap(), ContainerSpec::default());
    }

    #[test]
    fn broken_bodies_have_the_known_texts() {
        let message = |body: &[u8]| decode::<ContainerSpec>(body).unwrap_err().to_string();
        assert_eq!(message(b""), "EOF");
        assert_eq!(message(b"  \n"), "EOF");
        assert_eq!(message(b"{\"handle\":"), "unexpected EOF");
        assert!(message(b"{\"handle\":5}").starts_with("json: invalid type: "));
        assert!(message(b"nonsense").starts_with("json: "));
        let time = decode::<i64>(b"null").unwrap_err().to_string();
        assert!(time.starts_with("json: invalid type: null"), "{time}");
    }

    #[test]
    fn lists_are_of_objects() {
        let read = |body: &str| {
            let list = decode_list::<NetOutRule>(body.as_bytes());
            list.map(|list| list.iter().map(|rule| rule.protocol).collect::<Vec<_>>())
        };
        assert_eq!(
            read(" [{\"Protocol\":1,\"LOG\":true,\"protocol\":2}, null, {\"x\":[]}] junk").unwrap(),
            [2, 0, 0]
        );
        assert_eq!(read("[]").unwrap(), [0; 0]);
        assert_eq!(read("null").unwrap(), [0; 0]);
        let many = format!("[{}0]", "{},".repeat(VALUES));
        for (body, error) in [
            ("", "EOF"),
            ("[", "unexpected EOF"),
            ("[{}", "unexpected EOF"),
            ("[[], {", "unexpected EOF"),
            ("[{\"protocol\":\"tcp\"}, nonsense", "json: expected ident"),
            ("[[]]", "json: cannot unmarshal array into an object"),
            ("[{\"protocol\":\"tcp\"}, []]", "json: invalid type"),
            ("[{}, 5]", "json: invalid type"),
            ("{}", "json: cannot unmarshal value into an array"),
            ("5", "json: cannot unmarshal value into an array"),
            (&many, "json: too many values"),
        ] {
            let found = read(body).unwrap_err().to_string();
            assert!(found.starts_with(error), "{body:.40}: {found}");
        }
    }

    #[test]
    fn values_are_escaped_as_go_does() {
        let text = String::from_utf8(encode(&"é<&>\u{2028}x\"\n\u{2029}")).unwrap();
        assert_eq!(text, "\"é\\u003c\\u0026\\u003e\\u2028x\\\"\\n\\u2029\"\n");
    }

    #[test]
    fn many_short_values_are_not_kept() {
        let body = |count: usize| format!("{{\"handle\":\"a\",\"unknown\":[{}0]}}", "0,".repeat(count));
        assert_eq!(decode::<ContainerSpec>(body(VALUES / 2).as_bytes()).unwrap().handle, "a");
        let error = decode::<ContainerSpec>(body(VALUES).as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("json: too many values"), "{error}");
    }

    #[test]
    fn values_arrive_in_pieces() {
        let mut decoder = Decoder::default();
        decoder.push(b"{\"source\":0,\"da");
        assert!(decoder.next_value::<Payload>().unwrap().is_none());
        decoder.push(b"ta\":\"a");
        assert!(decoder.next_value::<Payload>().unwrap().is_none());
        decoder.push(b"b\"}{\"signal\":1} \n");
        assert_eq!(decoder.next_value::<Payload>().unwrap().unwrap().data.as_deref(), Some("ab"));
        assert_eq!(decoder.next_value::<Payload>().unwrap().unwrap().signal, Some(1));
        assert!(decoder.next_value::<Payload>().unwrap().is_none());
        for piece in br#"{"source":0,"data":"\"}{\\"}"#.chunks(1) {
            assert!(decoder.next_value::<Payload>().unwrap().is_none());
            decoder.push(piece);
        }
        assert_eq!(decoder.next_value::<Payload>().unwrap().unwrap().data.as_deref(), Some("\"}{\\"));
        for bad in [&b"nonsense\n"[..], b"}", b"{\"a\"}", b"[{}]", b"5"] {
            let mut decoder = Decoder::default();
            decoder.push(b" {} ");
            assert!(decoder.next_value::<Payload>().unwrap().is_some());
            decoder.push(bad);
            assert!(decoder.next_value::<Payload>().is_err(), "{bad:?}");
        }
        let mut decoder = Decoder::default();
        decoder.push(b"{\"data\":\"");
        decoder.push(&vec![b'x'; Decoder::LIMIT]);
        assert!(decoder.next_value::<Payload>().is_err());
    }
}
