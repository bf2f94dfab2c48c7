//! Versions of the image and their order.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The longest version: a partition's label, `selvage_VERSION_verity_sig`, has 36 characters.
const LONGEST: usize = 17;

/// The version of an image: 1 to 17 letters, digits, `.`, `~` and `-`, the first a digit.
///
/// Ordered as systemd-sysupdate and systemd-boot order them (the UAPI group's version format specification): `~` begins
/// what is older than nothing at all, and numbers are compared as numbers.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Version(String);

/// The text cannot be a version.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no version of an image: expected 1 to {LONGEST} letters, digits, '.', '~' and '-', the first a digit"
)]
pub struct BadVersion(String);

impl Version {
    /// The version as a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'~' | b'-');
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if begins && text.len() <= LONGEST && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadVersion(text.chars().take(2 * LONGEST).collect()))
        }
    }
}

impl<'de> serde::Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// By order, so that `1.0` and `1.00` are one version.
impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.0.as_bytes(), other.0.as_bytes())
    }
}

/// Compares any two texts as versions.
fn compare(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        a = skip(a, |byte| !is_of_version(byte));
        b = skip(b, |byte| !is_of_version(byte));
        if let Some(order) = separator(&mut a, &mut b, b'~') {
            return order;
        }
        // More segments are newer, except those after a `~`.
        if a.is_empty() || b.is_empty() {
            return b.is_empty().cmp(&a.is_empty());
        }
        for mark in [b'-', b'^', b'.'] {
            if let Some(order) = separator(&mut a, &mut b, mark) {
                return order;
            }
        }
        let digits = [a, b]
            .iter()
            .any(|text| text.first().is_some_and(u8::is_ascii_digit));
        let order = if digits {
            let (number_a, number_b) = (
                take(&mut a, u8::is_ascii_digit),
                take(&mut b, u8::is_ascii_digit),
            );
            // A number is newer than a word or nothing.
            let some = number_b.is_empty().cmp(&number_a.is_empty());
            let value = |number| skip(number, |byte| byte == b'0');
            let (value_a, value_b) = (value(number_a), value(number_b));
            some.then(value_a.len().cmp(&value_b.len()))
                .then(value_a.cmp(value_b))
        } else {
            let word_a = take(&mut a, u8::is_ascii_alphabetic);
            // A word that begins with the whole other is newer: slices are ordered just so.
            word_a.cmp(take(&mut b, u8::is_ascii_alphabetic))
        };
        if order.is_ne() {
            return order;
        }
    }
}

fn is_of_version(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"~-^.".contains(&byte)
}

/// If one text alone goes on with the mark, it is the older one. Takes the mark off both.
fn separator(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Option<Ordering> {
    match (a.strip_prefix(&[mark]), b.strip_prefix(&[mark])) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(rest_a), Some(rest_b)) => {
            (*a, *b) = (rest_a, rest_b);
            None
        }
    }
}

fn skip(text: &[u8], what: impl Fn(u8) -> bool) -> &[u8] {
    let length = text.iter().take_while(|byte| what(**byte)).count();
    text.get(length..).unwrap_or_default()
}

fn take<'a>(text: &mut &'a [u8], what: impl Fn(&u8) -> bool) -> &'a [u8] {
    let length = text.iter().take_while(|byte| what(byte)).count();
    let (taken, rest) = text.split_at(length);
    *text = rest;
    taken
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::base::retry::next_random;

    /// The examples of the version format specification, of systemd's strverscmp_improved() and of systemd-analyze(1),
    /// each text older than the next.
    #[test]
    fn older_versions_come_before_newer_ones() {
        for order in [
            &[
                "122.1",
                "123~rc1-1",
                "123",
                "123-a",
                "123-a.1",
                "123-1",
                "123-1.1",
                "123^post1",
                "123.a-1",
                "123.1-1",
                "123a-1",
                "124-1",
            ][..],
            &["1.3.3", "1_2_3"],
            &["bar-123", "foo-123"],
            &["123", "123.a", "123.b", "123a"],
            &["", "0", "0."],
            &["0", "0.0"],
            &["A", "B", "a", "b"],
            &["AAA", "AAB", "AB", "aab"],
            &["", "0", "1"],
            &["~", "~1", "", "1"],
            &[
                "0.1.0.999",
                "0.1.0.1000",
                "0.1.0.1500",
                "0.1.1",
                "0.2~rc1",
                "0.2",
            ],
            &["11α", "12"],
            &["1.0~rc1", "1.0", "1.0-1", "1.0.1", "1.00.2"],
        ] {
            for (older, newer) in order.iter().zip(&order[1..]) {
                let (older, newer) = (older.as_bytes(), newer.as_bytes());
                let text = String::from_utf8_lossy;
                let said = format!("{} and {}", text(older), text(newer));
                assert_eq!(compare(older, newer), Ordering::Less, "{said}");
                assert_eq!(compare(newer, older), Ordering::Greater, "{said}");
            }
        }
    }

    /// systemd-sysupdate and this order must agree on what is newer.
    #[test]
    fn the_order_is_systemds() {
        let (mut seed, letters) = (5, b"01aAb~.^-_");
        let mut text = || {
            let random = next_random(&mut seed).to_le_bytes();
            let length = 1 + usize::from(random[7] % 7);
            let byte = |random: &u8| char::from(letters[usize::from(*random) % letters.len()]);
            random[..length].iter().map(byte).collect::<String>()
        };
        for _ in 0..48 {
            let (a, b) = (text(), text());
            let output = Command::new("systemd-analyze")
                .args(["compare-versions", "--", &a, &b])
                .output()
                .expect("systemd-analyze, which agent/host-packages test installs");
            let expected = match compare(a.as_bytes(), b.as_bytes()) {
                Ordering::Less => "<",
                Ordering::Equal => "==",
                Ordering::Greater => ">",
            };
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said.trim(), format!("{a} {expected} {b}"));
        }
    }

    #[test]
    fn spellings_of_one_version_are_equal() {
        for (a, b) in [
            ("123", "123"),
            ("1.05.3", "1.5.3"),
            ("123_a", "123a"),
            ("0000", "0"),
            ("1_", "1"),
            ("α", ""),
            ("11α", "11β"),
        ] {
            let order = compare(a.as_bytes(), b.as_bytes());
            assert_eq!(order, Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn texts_that_break_file_names_are_no_versions() {
        for text in ["0.1.0.1500", "1", "1.2~rc1", "2026-11-29"] {
            assert!(text.parse::<Version>().is_ok(), "{text}");
        }
        for text in [
            "",
            "v1",
            ".1",
            "1/2",
            "1_2",
            "1+3",
            "1 2",
            "1\n",
            "../1",
            "1é",
            "123456789.123456789",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_one(texts in proptest::collection::vec("[0-2a-bA~.^_-]{0,8}", 3)) {
            let [a, b, c] = [0, 1, 2].map(|i: usize| texts[i].as_bytes());
            prop_assert_eq!(compare(a, a), Ordering::Equal);
            prop_assert_eq!(compare(a, b), compare(b, a).reverse());
            if compare(a, b).is_le() && compare(b, c).is_le() {
                prop_assert!(compare(a, c).is_le());
            }
        }
    }
}
