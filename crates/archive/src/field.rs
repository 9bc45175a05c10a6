//! The fields of a tar header: numbers and names.

/// Parses a number of a header, in octal digits (POSIX ustar, "Interchange Format") or in GNU's and star's base-256:
/// the first bit of the field is set, the next one is the sign, big-endian two's complement follows. `None` if it is
/// neither.
///
/// A field of NULs or blanks is 0: old tools leave fields empty that they do not know. Some fields begin with a NUL
/// or with blanks, and NUL, blank or the end of the field end the digits, whatever follows.
pub(crate) fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let (negative, high) = (first & 0x40 != 0, i128::from(first & 0x3f));
        let start = if negative { high - 0x40 } else { high };
        // 12 bytes at most: 94 bits and a sign.
        return Some(field[1..].iter().fold(start, |value, byte| value << 8 | i128::from(*byte)));
    }
    let is_blank = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    let begin = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let rest = &field[begin..];
    let digits = &rest[..rest.iter().position(is_blank).unwrap_or(rest.len())];
    digits.iter().try_fold(0, |value, byte| match byte {
        b'0'..=b'7' => Some(value << 3 | i128::from(byte - b'0')),
        _ => None,
    })
}

/// The bytes before the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers() {
        let right: [(&[u8], i128); 14] = [
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b" \0\0     ", 0),
            (b"0000644\0", 0o644),
            (b"00000644", 0o644),
            (b"   644 \0", 0o644),
            (b"\x000644\0", 0o644),
            (b"644\0junk", 0o644),
            (b"644 junk", 0o644),
            (b"77777777", 0o77_777_777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", 1 << 64),
            (b"\xc0\0\0\0\0\0\0\0", -(1 << 62)),
        ];
        for (field, value) in right {
            assert_eq!(number(field), Some(value), "{}", field.escape_ascii());
        }
        for wrong in [&b"0000648\0"[..], b"-1", b"+1", b"x", b"\0x", b" 1x", b""] {
            assert_eq!(number(wrong), None, "{}", wrong.escape_ascii());
        }
    }
}
