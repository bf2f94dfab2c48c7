//! Just enough of DER (X.690) to walk through a signature: values by tag, in place.

/// Tags of what is read here.
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// The first and second part by number, constructed.
pub(super) const PART_0: u8 = 0xa0;

/// One value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Value<'a> {
    /// What it is.
    pub tag: u8,
    /// Its contents.
    pub contents: &'a [u8],
    /// All of it: tag, length and contents.
    pub whole: &'a [u8],
}

/// Values one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next value, whatever it is.
    pub(super) fn any(&mut self) -> Option<Value<'a>> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, header) = if first < 0x80 {
            (usize::from(first), 2)
        } else {
            let count = usize::from(first & 0x7f);
            // Four bytes of length are 4 GiB; none is the indefinite form, which DER does not have.
            if !(1..=4).contains(&count) {
                return None;
            }
            let bytes = rest.get(..count)?;
            let length = bytes
                .iter()
                .fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
            (length, 2 + count)
        };
        let whole = self.0.get(..header.checked_add(length)?)?;
        self.0 = &self.0[whole.len()..];
        Some(Value {
            tag,
            contents: &whole[header..],
            whole,
        })
    }

    /// The next value, if it has this tag; otherwise it stays the next one.
    pub(super) fn optional(&mut self, tag: u8) -> Option<Value<'a>> {
        let mut ahead = *self;
        let value = ahead.any().filter(|value| value.tag == tag)?;
        *self = ahead;
        Some(value)
    }

    /// The contents of the next value, if it has this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Option<Self> {
        self.optional(tag).map(|value| Self(value.contents))
    }

    /// The values that are left; ends at the first that is none.
    pub(super) fn values(mut self) -> impl Iterator<Item = Value<'a>> {
        std::iter::from_fn(move || self.any())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_one_after_the_other_and_bad_lengths_end_it() {
        let bytes = [0x02, 1, 7, 0x30, 0x81, 2, 0x05, 0];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.optional(SEQUENCE), None);
        assert_eq!(reader.optional(INTEGER).unwrap().contents, [7]);
        let mut inner = reader.enter(SEQUENCE).unwrap();
        assert_eq!(inner.any().unwrap().whole, [0x05, 0]);
        assert_eq!(inner.any(), None);
        for bad in [
            &[][..],
            &[0x30],
            &[0x30, 2, 0],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0x82, 1],
        ] {
            assert_eq!(Reader::new(bad).any(), None, "{bad:?}");
        }
    }
}
