//! Which bytes of a model a client wants: the headers `Range`, `If-Range` and `If-Match` (RFC 9110, sections 13
//! and 14).

use std::ops::Range;

/// What a client wants of a model; by default all of it.
#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    /// Only this range.
    pub range: Option<ByteRange>,
    /// The range only if the model still has this entity tag, otherwise all of it (`If-Range`).
    pub if_tag: Option<String>,
    /// Only a model with one of these entity tags, or with any for `*` (`If-Match`).
    pub if_match: Option<String>,
}

/// The range begins past the end.
pub(super) struct NoSuchRange;

impl RangeRequest {
    /// Whether a model with this tag is wanted at all.
    pub(super) fn is_for(&self, tag: &str) -> bool {
        self.if_match
            .as_ref()
            .is_none_or(|tags| tags.split(',').map(str::trim).any(|wanted| wanted == tag || wanted == "*"))
    }

    /// The requested range of a plaintext with this length and tag; none for all of it.
    pub(super) fn of(&self, length: u64, tag: &str) -> Result<Option<Range<u64>>, NoSuchRange> {
        match self.range {
            Some(range) if self.if_tag.as_ref().is_none_or(|expected| expected == tag) => {
                range.of(length).map(Some).ok_or(NoSuchRange)
            }
            _ => Ok(None),
        }
    }
}

/// One range of bytes, before the length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `a-b`, both included, or `a-`.
    From(u64, Option<u64>),
    /// `-n`: the last n bytes.
    Last(u64),
}

impl ByteRange {
    /// Reads a header's value. None for what this server ignores, as it may: several ranges, other units, and malformed ones.
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

    /// The range of something `length` bytes long; none if it begins past the end.
    fn of(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, None) => first..length,
            Self::From(first, Some(last)) => first..last.saturating_add(1).min(length),
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits only. A number that is too large for any length is read as the largest.
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
