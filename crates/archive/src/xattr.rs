//! Extended attributes in the form that libarchive writes.

/// Decodes a record `LIBARCHIVE.xattr.<name>`: the name is percent-encoded, the value base64 without padding
/// (libarchive, `archive_write_pax_header_xattr`). `None` if it is invalid.
pub(crate) fn libarchive(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte == b'%' {
            let (digits, more) = rest.split_first_chunk::<2>()?;
            decoded.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = more;
        } else {
            decoded.push(byte);
        }
    }
    let mut bytes = Vec::with_capacity(value.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0u32, 0);
    for &byte in value.trim_ascii_end() {
        let sextet = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(sextet);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some((decoded, bytes))
}
