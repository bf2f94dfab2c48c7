//! Points in time as texts.

use std::time::{SystemTime, UNIX_EPOCH};

use x509_cert::der::DateTime;

/// A time as Go writes it (RFC 3339), in UTC and to the second. One after the year 9999 is its end.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = DateTime::from_unix_duration(since).unwrap_or(DateTime::INFINITY);
    time.to_string()
}

/// The time that a text of [`rfc3339`]'s form names.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let time: DateTime = text.parse().ok()?;
    Some(UNIX_EPOCH + time.unix_duration())
}

/// Seconds since 1970; 0 before.
pub(crate) fn secs(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_gos() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            // After the year 9999, which only somebody else's status may say.
            (300_000_000_000, "9999-12-31T23:59:59Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(secs);
            assert_eq!(rfc3339(time), text);
            if secs < 253_402_300_800 {
                assert_eq!(parse_rfc3339(text), Some(time));
            }
        }
        for text in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-11-29T10:00:00",
            "2026-11-29",
            "x",
            "2026-11-29T10:00:00+01:00",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
        let half = UNIX_EPOCH + Duration::from_millis(1500);
        assert_eq!(rfc3339(half), "1970-01-01T00:00:01Z");
    }
}
