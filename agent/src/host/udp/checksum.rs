//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept in the machine's own byte order: the ones' complement sum is independent of it (RFC 1071 §2 (B)), so
//! that words are loaded and results stored without swapping.

/// A ones' complement sum, not folded yet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of the summed data. Only the last piece may have an odd length.
    pub(crate) fn bytes(self, data: &[u8]) -> Self {
        // Four independent sums, wide enough never to carry. Unrolled by hand because the release profile optimises for
        // size and does not unroll or vectorise: this is four times as fast.
        let [mut a, mut b, mut c, mut d] = [u128::from(self.0), 0, 0, 0];
        let (blocks, tail) = data.as_chunks::<32>();
        for block in blocks {
            let ([first, second, third, fourth], _) = block.as_chunks::<8>() else {
                break;
            };
            a += u128::from(u64::from_ne_bytes(*first));
            b += u128::from(u64::from_ne_bytes(*second));
            c += u128::from(u64::from_ne_bytes(*third));
            d += u128::from(u64::from_ne_bytes(*fourth));
        }
        let total = (a + b + c + d).to_ne_bytes();
        let mut sum = 0;
        for half in total.as_chunks::<8>().0 {
            sum = add(sum, u64::from_ne_bytes(*half));
        }
        let (words, tail) = tail.as_chunks::<8>();
        for word in words {
            sum = add(sum, u64::from_ne_bytes(*word));
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        Self(add(sum, u64::from_ne_bytes(last)))
    }

    /// Adds a 16-bit word.
    pub(crate) fn word(self, word: u16) -> Self {
        Self(add(
            self.0,
            u64::from(u16::from_ne_bytes(word.to_be_bytes())),
        ))
    }

    /// The sum in packet byte order, not complemented: the start value of a partial checksum.
    pub(crate) fn folded(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum in packet byte order.
    pub(crate) fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// Whether the sum over data including its checksum shows that it is intact.
    pub(crate) fn is_intact(self) -> bool {
        self.fold() == 0xffff
    }

    fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let [low, high, ..] = sum.to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

/// The checksum after one 16-bit word has changed: `HC' = ~(~HC + ~m + m')`, RFC 1624 §3.
pub(super) fn update(checksum: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    let word = |bytes| u64::from(u16::from_ne_bytes(bytes));
    Sum(word(checksum.map(|byte| !byte)) + word(old.map(|byte| !byte)) + word(new)).checksum()
}

fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, word by word.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn rfc_1071_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&data).folded(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().bytes(&data).checksum(), [0x22, 0x0d]);
    }

    #[test]
    fn rfc_1624_example() {
        // §4: the word 0x5555 becomes 0x3285 under the checksum 0xDD2F.
        assert_eq!(
            update([0xdd, 0x2f], [0x55, 0x55], [0x32, 0x85]),
            [0x00, 0x00]
        );
    }

    proptest! {
        #[test]
        fn sums_like_the_rfc(data in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..150) {
            let expected = naive(&data).to_be_bytes();
            prop_assert_eq!(Sum::default().bytes(&data).checksum(), expected);
            // Two pieces, the first of even length.
            let cut = (cut * 2).min(data.len() & !1);
            let (a, b) = data.split_at(cut);
            prop_assert_eq!(Sum::default().bytes(a).bytes(b).checksum(), expected);
        }

        #[test]
        fn an_update_is_a_new_sum(mut data in prop::collection::vec(any::<u8>(), 20..21), at in 0_usize..9, new: [u8; 2]) {
            data[18..20].fill(0);
            // A header of zeros has two valid checksums; real headers have a non-zero version.
            data[0] |= 0x40;
            let checksum = Sum::default().bytes(&data).checksum();
            let at = if at == 0 { 2 } else { at * 2 };
            let old = [data[at], data[at + 1]];
            data[at..at + 2].copy_from_slice(&new);
            data[18..20].copy_from_slice(&update(checksum, old, new));
            prop_assert!(Sum::default().bytes(&data).is_intact());
        }

        #[test]
        fn words_are_numbers(word: u16) {
            prop_assert_eq!(Sum::default().word(word), Sum::default().bytes(&word.to_be_bytes()));
        }
    }
}
