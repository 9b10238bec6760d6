//! How many rows a statement returned or changed, as its command tag says.

/// The number at the end of a command tag, with or without its end byte: `SELECT 5`, `INSERT 0 5`. None
/// where the tag has none, as of `CREATE TABLE` or `SHOW`.
pub(super) fn rows_of(tag: &[u8]) -> Option<u64> {
    let tag = tag.strip_suffix(&[0]).unwrap_or(tag);
    let (mut sum, mut unit) = (0_u64, 1_u64);
    for (read, byte) in tag.iter().rev().enumerate() {
        match byte {
            b'0'..=b'9' => {
                sum = sum.checked_add(unit.checked_mul(u64::from(byte - b'0'))?)?;
                unit = unit.saturating_mul(10);
            }
            b' ' if read > 0 => return Some(sum),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_last_word() {
        for (tag, rows) in [
            (&b"SELECT 5\0"[..], Some(5)),
            (b"INSERT 0 120\0", Some(120)),
            (b"UPDATE 0", Some(0)),
            (b"COPY 18446744073709551615", Some(u64::MAX)),
            (b"COPY 18446744073709551616", None),
            (b"COPY 99999999999999999999999999999999999999", None),
            (b"CREATE TABLE\0", None),
            (b"SHOW", None),
            (b"FETCH ", None),
            (b"12", None),
            (b"", None),
        ] {
            assert_eq!(rows_of(tag), rows, "{}", String::from_utf8_lossy(tag));
        }
    }
}
