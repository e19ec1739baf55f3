//! The `Range` header (RFC 9110, section 14): one range of bytes.

use std::ops::Range;

/// A range as a client asks for it, before the length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `a-b`, both included, or `a-`.
    From(u64, Option<u64>),
    /// `-n`: the last n bytes.
    Last(u64),
}

impl ByteRange {
    /// Reads a header's value. None for what a server may ignore and this one does: several ranges, other units, and what
    /// is malformed.
    pub fn parse(value: &str) -> Option<Self> {
        let (unit, range) = value.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first, last) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The bytes of something `length` long; none if it has none of them.
    pub fn of(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, None) => first..length,
            Self::From(first, Some(last)) => first..last.saturating_add(1).min(length),
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits only. A number beyond all lengths is as good as the largest.
fn number(digits: &str) -> Option<u64> {
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::ByteRange;

    #[test]
    fn single_ranges_are_understood_and_all_else_is_none() {
        for (value, of_ten) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=2-5", Some(2..6)),
            ("Bytes=2-50", Some(2..10)),
            ("bytes=9-", Some(9..10)),
            ("bytes=10-", None),
            ("bytes=10-12", None),
            ("bytes=-3", Some(7..10)),
            ("bytes=-30", Some(0..10)),
            ("bytes=-0", None),
            ("bytes=99999999999999999999999-", None),
            ("bytes=0-99999999999999999999999", Some(0..10)),
        ] {
            assert_eq!(ByteRange::parse(value).unwrap().of(10), of_ten, "{value}");
        }
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "items=0-1",
            "bytes=+1-2",
            "0-1",
        ] {
            assert_eq!(ByteRange::parse(value), None, "{value}");
        }
        assert_eq!(ByteRange::parse("bytes=0-").unwrap().of(0), None);
    }
}
