//! Time zones by name, from the files of the IANA database.

use std::fs;
use std::path::Path;

use tz::TimeZone;

/// The host's own time zone.
pub(super) const LOCAL: &str = "local";

/// What [`is_name`] takes, for messages.
pub(super) const FORM: &str =
    "local, or the name of a time zone such as Europe/Berlin or UTC (timedatectl list-timezones)";

/// The database, below the root.
const DATABASE: &str = "usr/share/zoneinfo";

/// Whether a text may name a time zone, and stays below the database's directory.
pub(super) fn is_name(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'/');
    (1..=64).contains(&text.len())
        && text.bytes().all(good)
        && text.split('/').all(|part| !part.is_empty())
}

/// Reads a time zone that [`is_name`] accepts; the error says what is expected.
pub(super) fn read(root: &Path, name: &str) -> Result<TimeZone, String> {
    let path = match name {
        LOCAL => root.join("etc/localtime"),
        name => root.join(DATABASE).join(name),
    };
    match fs::read(&path) {
        Ok(bytes) => TimeZone::from_tz_data(&bytes)
            .map_err(|error| format!("{FORM}: {} is no time zone: {error}", path.display())),
        // As localtime(5) says: UTC if the file is missing.
        Err(_) if name == LOCAL => Ok(TimeZone::utc()),
        Err(error) => Err(format!(
            "{FORM}: failed to read {}: {error}",
            path.display()
        )),
    }
}
