//! Results: columns, rows, and how they stand on the wire.

use std::borrow::Cow;

use switchyard_wire::build::{self, BuildError};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Int8,
    Numeric,
}

impl Kind {
    /// Type oid and size in bytes. // src/include/catalog/pg_type.dat
    fn wire(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
            Self::Numeric => (1700, -1),
        }
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: Cow<'static, str>,
    pub(super) kind: Kind,
}

/// The columns of a table.
pub(super) type Columns = Cow<'static, [Column]>;

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name: Cow::Borrowed(name), kind }
}

pub(super) const fn text(name: &'static str) -> Column {
    column(name, Kind::Text)
}

pub(super) const fn int(name: &'static str) -> Column {
    column(name, Kind::Int4)
}

pub(super) const fn big(name: &'static str) -> Column {
    column(name, Kind::Int8)
}

pub(super) const fn num(name: &'static str) -> Column {
    column(name, Kind::Numeric)
}

/// A value, to be shown as its column's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(Cow<'static, str>),
    Number(u64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Number(flag.into())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row out of values of several types.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::console::table::Value::from($value)),*] };
}
pub(super) use row;

/// A result.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) columns: Columns,
    pub(super) rows: Vec<Vec<Value>>,
    /// There are more rows than these.
    pub(super) is_cut: bool,
}

impl Table {
    pub(super) fn new(columns: &'static [Column], rows: Vec<Vec<Value>>) -> Self {
        Self { columns: Cow::Borrowed(columns), rows, is_cut: false }
    }

    /// Appends row `at`, its columns in the formats asked for.
    pub(super) fn encode_row(
        &self,
        out: &mut Vec<u8>,
        at: usize,
        formats: &Formats,
    ) -> Result<(), BuildError> {
        let row = &self.rows[at];
        debug_assert_eq!(row.len(), self.columns.len(), "{:?}", self.columns);
        let values = row.iter().zip(self.columns.iter()).enumerate();
        let values: Vec<_> =
            values.map(|(i, (value, column))| value.bytes(column.kind, formats.is_binary(i))).collect();
        let values: Vec<_> = values.iter().map(|value| value.as_deref()).collect();
        build::data_row(out, &values)
    }
}

/// Appends a RowDescription.
pub(super) fn describe(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) -> Result<(), BuildError> {
    let described: Vec<_> = columns
        .iter()
        .map(|column| {
            let (oid, size) = column.kind.wire();
            (column.name.as_ref(), oid, size)
        })
        .collect();
    build::row_description_in(out, &described, |i| formats.is_binary(i))
}

/// The formats that a Bind asks for: none where all are text, one for all, or one for each column.
#[derive(Debug, Clone, Default)]
pub(super) struct Formats(pub(super) Vec<u16>);

impl Formats {
    pub(super) fn is_binary(&self, column: usize) -> bool {
        let format = if self.0.len() == 1 { self.0.first() } else { self.0.get(column) };
        format == Some(&1)
    }

    /// Whether they fit a result of so many columns.
    pub(super) fn fit(&self, columns: usize) -> bool {
        self.0.len() <= 1 || self.0.len() == columns
    }
}

impl Value {
    fn bytes(&self, kind: Kind, binary: bool) -> Option<Cow<'_, [u8]>> {
        let number = match self {
            Self::Null => return None,
            // In text and in binary format the same.
            Self::Text(text) => return Some(Cow::Borrowed(text.as_bytes())),
            Self::Number(number) => *number,
        };
        // What is counted in more bits than the column has stays at the most that it can say.
        let number = match kind {
            Kind::Int4 => number.min(i32::MAX as u64),
            Kind::Int8 => number.min(i64::MAX as u64),
            Kind::Text | Kind::Numeric => number,
        };
        Some(Cow::Owned(match (kind, binary) {
            (Kind::Int4, true) => (number as u32).to_be_bytes().to_vec(),
            (Kind::Int8, true) => number.to_be_bytes().to_vec(),
            (Kind::Numeric, true) => numeric(number),
            _ => number.to_string().into_bytes(),
        }))
    }
}

/// A whole number as numeric_send has it: digits to the base of 10000. // src/backend/utils/adt/numeric.c
fn numeric(mut number: u64) -> Vec<u8> {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push((number % 10_000) as u16);
        number /= 10_000;
    }
    let weight = digits.len().saturating_sub(1) as u16;
    // Count, weight of the first, sign (0 is plus), digits behind the point that are shown.
    let head = [digits.len() as u16, weight, 0, 0];
    head.iter().chain(digits.iter().rev()).flat_map(|digit| digit.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_binary() {
        let numeric = |n| Value::Number(n).bytes(Kind::Numeric, true).unwrap().into_owned();
        assert_eq!(numeric(0), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(numeric(1), [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(numeric(123_456_789), [0, 3, 0, 2, 0, 0, 0, 0, 0, 1, 0x09, 0x29, 0x1a, 0x85]);
        assert_eq!(numeric(10_000), [0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]);
        let int4 = |n| Value::Number(n).bytes(Kind::Int4, true).unwrap().into_owned();
        assert_eq!(int4(258), [0, 0, 1, 2]);
        assert_eq!(int4(u64::MAX), [0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(
            Value::Number(u64::MAX).bytes(Kind::Int8, false).unwrap().as_ref(),
            b"9223372036854775807"
        );
        assert_eq!(Value::Null.bytes(Kind::Int4, true), None);
    }

    #[test]
    fn formats_are_for_all_or_for_each() {
        assert!(!Formats(vec![]).is_binary(3));
        assert!(Formats(vec![1]).is_binary(3));
        assert!(Formats(vec![0, 1]).is_binary(1) && !Formats(vec![0, 1]).is_binary(0));
        assert!(Formats(vec![1]).fit(5) && Formats(vec![0, 1]).fit(2) && !Formats(vec![0, 1]).fit(3));
    }
}
