//! Sparse files: the maps of GNU tar's four formats (GNU tar manual, "Storing Sparse Files").
//!
//! | format  | where the map is                                                          | type |
//! |---------|---------------------------------------------------------------------------|------|
//! | old GNU | four segments in the header, 21 more in each extension block behind it    | `S`  |
//! | PAX 0.0 | records `GNU.sparse.offset` and `GNU.sparse.numbytes`, alternating        | `0`  |
//! | PAX 0.1 | one record `GNU.sparse.map`                                               | `0`  |
//! | PAX 1.0 | lines of decimal numbers before the data, padded to a block               | `0`  |

use tar::GnuSparseHeader;

use crate::field::number;

/// Limit of the segments of one file. GNU tar has no limit; a map of PAX 1.0 with so many is about 1 MiB of text.
const MAX_SEGMENTS: usize = 64 << 10;

/// The parts of a file that are not holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// Size of the file in bytes, holes included.
    pub real: u64,
    /// Offsets and lengths: in order, disjoint, inside `real`. The sum of the lengths is the data size in the
    /// archive.
    pub segments: Vec<(u64, u64)>,
}

impl Sparse {
    /// `data` is the number of bytes in the archive.
    pub(crate) fn new(real: u64, segments: Vec<(u64, u64)>, data: u64) -> Result<Self, &'static str> {
        if segments.len() > MAX_SEGMENTS {
            return Err("a sparse map with too many segments");
        }
        let (mut end, mut sum) = (0, 0);
        for &(offset, length) in &segments {
            if offset < end {
                return Err("a sparse map whose segments overlap or are not in order");
            }
            end = offset
                .checked_add(length)
                .filter(|end| *end <= real)
                .ok_or("a sparse map beyond the file")?;
            sum += length; // no overflow: the segments lie apart, inside a u64
        }
        if sum != data {
            return Err("a sparse map that does not fit the data");
        }
        Ok(Self { real, segments })
    }
}

/// The map of the old GNU format, collected from its headers.
#[derive(Debug, Default)]
pub(crate) struct OldGnu(pub(crate) Vec<(u64, u64)>);

impl OldGnu {
    pub(crate) fn add(&mut self, headers: &[GnuSparseHeader]) -> Result<(), &'static str> {
        let value = |field: &[u8]| u64::try_from(number(field)?).ok();
        // GNU tar marks the end of the map in this way.
        for header in headers.iter().take_while(|header| header.numbytes[0] != 0) {
            match (value(&header.offset), value(&header.numbytes)) {
                (Some(offset), Some(length)) if self.0.len() < MAX_SEGMENTS => self.0.push((offset, length)),
                (Some(_), Some(_)) => return Err("a sparse map with too many segments"),
                _ => return Err("a sparse map that is no number"),
            }
        }
        Ok(())
    }
}

/// The PAX records `GNU.sparse.*` of one entry.
#[derive(Debug, Default)]
pub(crate) struct Records {
    major: u64,
    minor: u64,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real: Option<u64>,
    count: Option<u64>,
    /// Offsets and lengths, alternating.
    numbers: Vec<u64>,
}

/// The location of the map.
pub(crate) enum Map {
    Here(Vec<(u64, u64)>),
    BeforeData,
}

impl Records {
    /// Adds one record, whose key has no prefix; `None` if it is invalid.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = decimal(value)?,
            b"minor" => self.minor = decimal(value)?,
            b"name" if !value.is_empty() => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real = Some(decimal(value)?),
            b"numblocks" => self.count = Some(decimal(value)?),
            b"offset" if self.numbers.len().is_multiple_of(2) => self.numbers.push(decimal(value)?),
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.numbers.push(decimal(value)?),
            b"map" => {
                let numbers = value.split(|b| *b == b',').filter(|_| !value.is_empty());
                self.numbers = numbers.map(decimal).collect::<Option<_>>()?;
            }
            _ => return None,
        }
        Some(())
    }

    pub(crate) fn map(&self) -> Result<Map, &'static str> {
        match (self.major, self.minor) {
            (1, 0) => Ok(Map::BeforeData),
            (0, 0 | 1) => {
                let (pairs, rest) = pairs(&self.numbers);
                if !rest.is_empty() || self.count.is_some_and(|count| count != pairs.len() as u64) {
                    return Err("a sparse map without all of its segments");
                }
                Ok(Map::Here(pairs))
            }
            _ => Err("a sparse file of an unknown version"),
        }
    }
}

/// The map of PAX 1.0, parsed byte by byte.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    digits: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<u64>,
}

impl Lines {
    /// Parses more of the text. Returns the map once it is complete.
    pub(crate) fn add(&mut self, text: &[u8]) -> Result<Option<Vec<(u64, u64)>>, &'static str> {
        for &byte in text {
            if byte != b'\n' {
                if self.digits.len() == 20 {
                    return Err("a sparse map that is no number"); // u64::MAX has 20 digits
                }
                self.digits.push(byte);
                continue;
            }
            let number = decimal(&self.digits).ok_or("a sparse map that is no number")?;
            self.digits.clear();
            match self.count {
                None if number > MAX_SEGMENTS as u64 => return Err("a sparse map with too many segments"),
                None => self.count = usize::try_from(number).ok(),
                Some(_) => self.numbers.push(number),
            }
            if self.count.is_some_and(|count| self.numbers.len() == 2 * count) {
                return Ok(Some(pairs(&self.numbers).0));
            }
        }
        Ok(None)
    }
}

/// Pairs up numbers; also returns an unpaired rest.
fn pairs(numbers: &[u64]) -> (Vec<(u64, u64)>, &[u64]) {
    let (pairs, rest) = numbers.as_chunks();
    (pairs.iter().map(|[offset, length]| (*offset, *length)).collect(), rest)
}

/// Parses one or more decimal digits.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
