//! Values: of the rows that the router asks for itself, and of parameters.

use super::Malformed;
use super::cursor::Cursor;

/// Values one after the other, each with its length in front; -1 is NULL.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    left: u16,
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Result<Option<&'a [u8]>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let value = self.cursor.array().map(i32::from_be_bytes).and_then(|len| match len {
            -1 => Ok(None),
            len => {
                let len = usize::try_from(len).map_err(|_| Malformed::Value("length"))?;
                self.cursor.bytes(len).map(Some)
            }
        });
        if value.is_err() {
            self.left = 0;
        }
        Some(value)
    }
}

/// Reads a DataRow.
///
/// # Errors
/// No count. The values are checked as they are read.
pub fn data_row(body: &[u8]) -> Result<Values<'_>, Malformed> {
    let mut cursor = Cursor(body);
    let left = cursor.array().map(u16::from_be_bytes)?;
    Ok(Values { left, cursor })
}

/// The parameters of a Bind.
#[derive(Debug, Clone)]
pub struct Parameters<'a> {
    /// Formats: none is text for all, one is for all, else one for each; 1 is binary.
    formats: &'a [u8],
    /// The values.
    pub values: Values<'a>,
}

impl Parameters<'_> {
    /// Whether the value at `index` is in binary.
    #[must_use]
    pub fn is_binary(&self, index: usize) -> bool {
        let at = if self.formats.len() == 2 { 0 } else { index * 2 };
        self.formats.get(at..at + 2) == Some(&[0, 1])
    }
}

/// Reads the parameters of a Bind, from what follows its two names.
///
/// # Errors
/// Counts that reach beyond the message. The values are checked as they are read.
pub fn bind_parameters(after_names: &[u8]) -> Result<Parameters<'_>, Malformed> {
    let mut cursor = Cursor(after_names);
    let count = cursor.array().map(u16::from_be_bytes)?;
    let formats = cursor.bytes(usize::from(count) * 2)?;
    let left = cursor.array().map(u16::from_be_bytes)?;
    Ok(Parameters { formats, values: Values { left, cursor } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_nulls() {
        let row = [0, 3, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let all: Result<Vec<_>, _> = data_row(&row).unwrap().collect();
        assert_eq!(all, Ok(vec![Some(&b"a"[..]), None, Some(&b""[..])]));
        for end in 0..row.len() {
            let cut = data_row(&row[..end]).map(|row| row.collect::<Result<Vec<_>, _>>());
            assert!(!matches!(cut, Ok(Ok(_))), "{end}");
        }
        let negative = [0, 1, 0xff, 0xff, 0xff, 0xfe];
        assert_eq!(data_row(&negative).unwrap().next(), Some(Err(Malformed::Value("length"))));
    }

    #[test]
    fn formats() {
        let bind = |formats: &[u8]| {
            let count = [0, (formats.len() / 2) as u8];
            [&count[..], formats, &[0, 1, 0, 0, 0, 1, b'x']].concat()
        };
        for (formats, binary) in [(&[][..], false), (&[0, 1], true), (&[0, 0, 0, 1], false)] {
            let bytes = bind(formats);
            let parameters = bind_parameters(&bytes).unwrap();
            assert_eq!(parameters.is_binary(0), binary);
            assert_eq!(parameters.values.clone().next(), Some(Ok(Some(&b"x"[..]))));
        }
        assert!(bind_parameters(&bind(&[0, 0, 0, 1])).unwrap().is_binary(1));
        assert!(bind_parameters(&[0, 9, 0]).is_err());
    }
}
