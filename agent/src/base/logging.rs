//! The log: to the journal with fields, or to standard error as text.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

mod repeat;

pub(crate) use repeat::Repeats;

/// The handle that changes the filter of the process's log.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Our name in the journal (`SYSLOG_IDENTIFIER=`), whatever the binary's name is.
const IDENTIFIER: &str = "selvage";

/// The syntax of a log filter, for messages.
pub(crate) const FILTER_FORM: &str =
    "error, warn, info, debug or trace, or a list such as \"info,selvage::host::firewall=debug\"";

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a log filter.
    #[error("{0:?} is not a log level: expected {FILTER_FORM}")]
    BadFilter(String),
    /// The log is already set up.
    #[error("failed to set up the log")]
    Init(#[from] tracing_subscriber::util::TryInitError),
    /// The log can no longer be changed.
    #[error("failed to change the log level")]
    Change(#[from] reload::Error),
}

/// Parses a level (`error`, `warn`, `info`, `debug`, `trace`) or a comma-separated list of levels with module paths.
///
/// # Errors
/// [`Error::BadFilter`].
pub fn parse_filter(text: &str) -> Result<Targets, Error> {
    let error = || Error::BadFilter(text.chars().take(64).collect());
    // A single word that is not a level would be taken for a module path, and nothing would be logged.
    for directive in text.split(',').map(str::trim) {
        let level = directive.rsplit('=').next().unwrap_or(directive);
        if level
            .parse::<tracing::level_filters::LevelFilter>()
            .is_err()
            || level.is_empty()
        {
            return Err(error());
        }
    }
    text.parse().map_err(|_| error())
}

/// An error with its causes on one line: `failed to do this: because of that`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Sets up the log of this process. Events below `filter` are dropped.
///
/// If standard error is connected to the journal, events go there natively: the message as `MESSAGE=`, and each field
/// under its name in upper case. Otherwise they are lines on standard error without a time.
///
/// # Errors
/// [`Error::BadFilter`], and [`Error::Init`] when called twice.
pub fn init(filter: &str) -> Result<(), Error> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    // Without the journal's socket (a container that shares only standard error) lines on standard error still work.
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry.with(configure(journal)).try_init()?;
    } else {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .without_time();
        registry.with(lines).try_init()?;
    }
    // Cannot have been set: a second set-up was refused above.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Changes the filter. Does nothing if no log is set up.
///
/// # Errors
/// [`Error::BadFilter`]; the filter is then unchanged.
pub fn set_filter(filter: &str) -> Result<(), Error> {
    let filter = parse_filter(filter)?;
    if let Some(handle) = FILTER.get() {
        handle.reload(filter)?;
    }
    Ok(())
}

/// Whether standard error is the stream that systemd connected to the journal: `$JOURNAL_STREAM` in systemd.exec(5).
/// The variable alone is not enough: children inherit it even if their standard error is redirected.
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    stderr
        .and_then(|file| file.metadata())
        .is_ok_and(|metadata| is_stream(&stream, metadata.dev(), metadata.ino()))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

/// Field names unchanged, and the usual syslog levels: the crate would map info to "notice".
fn configure(journal: tracing_journald::Layer) -> tracing_journald::Layer {
    journal
        .with_field_prefix(None)
        .with_syslog_identifier(IDENTIFIER.to_owned())
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_with_or_without_module_paths() {
        for text in ["info", "WARN", "off", "info,selvage::host::firewall=debug"] {
            assert!(parse_filter(text).is_ok(), "{text:?} was refused");
        }
        for text in [
            "",
            "loud",
            "selvage",
            "selvage=",
            "info,",
            "=",
            "info,selvage=loud",
        ] {
            assert!(parse_filter(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn journal_stream_is_device_and_inode() {
        assert!(is_stream("8:1234", 8, 1234));
        for stream in ["", "8", "8:", ":1234", "8:1235", "9:1234", "8:1234:1"] {
            assert!(!is_stream(stream, 8, 1234), "{stream:?} matched");
        }
    }
}
