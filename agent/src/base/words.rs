//! Points in time, durations, amounts and foreign texts, as people read them.

use std::borrow::Cow;

/// A duration in the largest unit of which there are two at least: `90 s`, `3 min`, `22 h`, `5 d`. Rounded down.
pub(crate) fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / MINUTE),
        7_200..172_800 => format!("{} h", seconds / HOUR),
        _ => format!("{} d", grouped(seconds / DAY)),
    }
}

/// A point in time, seen from `now`: `3 min ago`, and `in 3 min` if the clock was set back since.
pub(crate) fn ago(now: u64, at: u64) -> String {
    match now.checked_sub(at) {
        None => format!("in {}", duration(at - now)),
        Some(0) => "just now".to_owned(),
        Some(seconds) => format!("{} ago", duration(seconds)),
    }
}

/// A short duration: `850 us`, `3.2 ms`, `1.5 s`.
pub(crate) fn micros(usec: u64) -> String {
    match usec {
        0..1_000 => format!("{usec} us"),
        1_000..1_000_000 => format!("{}.{} ms", usec / 1_000, usec / 100 % 10),
        _ => format!("{}.{} s", usec / 1_000_000, usec / 100_000 % 10),
    }
}

/// An amount in IEC units (IEC 80000-13): `999 B`, `1.4 KiB`, `3.0 GiB`. Rounded down.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut shift, mut unit) = (0, "B");
    for name in UNITS {
        if bytes >> shift < 1024 {
            break;
        }
        shift += 10;
        unit = name;
    }
    if shift == 0 {
        return format!("{bytes} B");
    }
    // Tenths; in 128 bits, as EiB leave no room.
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A count with its thousands set apart: `10,000`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How often: `once`, `12 times`.
pub(crate) fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        _ => format!("{} times", grouped(count)),
    }
}

/// A text that may come from another node, without what a terminal would obey: control characters, and what turns the
/// direction of writing or takes no place.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if text.contains(harmful) {
        Cow::Owned(text.replace(harmful, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        for (seconds, expected) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (172_799, "47 h"),
            (172_800, "2 d"),
            (u64::MAX, "213,503,982,334,601 d"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
        assert_eq!(ago(100, 100), "just now");
        assert_eq!(ago(100, 99), "1 s ago");
        assert_eq!(ago(100, 1_000), "in 15 min");
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(3_250), "3.2 ms");
        assert_eq!(micros(61_960_000), "61.9 s");
    }

    #[test]
    fn amounts_are_in_iec_units() {
        for (amount, expected) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1 << 20, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(amount), expected);
        }
        for (count, expected) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(count), expected);
        }
    }

    #[test]
    fn a_foreign_text_commands_no_terminal() {
        assert_eq!(harmless("Prüfung 機"), "Prüfung 機");
        assert_eq!(
            harmless("a\x1b[2Jb\u{9b}c\nd"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d"
        );
        assert_eq!(harmless("a\u{202e}b"), "a\u{fffd}b");
    }
}
