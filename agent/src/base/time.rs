//! Points in time as texts.

use std::time::{SystemTime, UNIX_EPOCH};

use x509_cert::der::DateTime;

/// A time as Go writes it (RFC 3339), in UTC and to the second. One after the year 9999 is its end.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = DateTime::from_unix_duration(since).unwrap_or(DateTime::INFINITY);
    time.to_string()
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
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
        let half = UNIX_EPOCH + Duration::from_millis(1500);
        assert_eq!(rfc3339(half), "1970-01-01T00:00:01Z");
    }
}
