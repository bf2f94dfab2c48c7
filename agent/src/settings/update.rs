//! The table `[update]` of the settings files: where releases come from, and when one may be installed.
//!
//! Apart from the table of the agent's own settings: only `selvage update` reads it, and a mistake in it must not keep the
//! overlay network down. `selvage ignition check` finds the mistake earlier.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use serde::Deserialize;
use toml::{Spanned, Value};
use tz::TimeZone;

use super::error::{Error, Source};
use super::inputs::{line_at, toml_error};
use super::{Secret, Sources, files};

mod window;
mod zone;

pub use window::{DAY_MINUTES, Window};

/// The table's name.
pub(super) const TABLE: &str = "update";

/// How much an update matters, as the release index says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Fixes and features.
    Normal,
    /// Closes a hole.
    Security,
    /// Closes one that is being used, or loses data.
    Critical,
}

/// What the timer does without being asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Auto {
    /// Nothing.
    Off,
    /// Look for a newer version.
    Check,
    /// Also download it.
    Download,
    /// Also install it and reboot, in a window.
    Apply,
}

/// The checked settings.
#[derive(Clone, Debug)]
pub struct Update {
    /// The directory of the release index; `None` for no updates.
    pub server: Option<Uri>,
    /// Which index, and the stem of its name.
    pub channel: String,
    /// What the timer does.
    pub auto: Auto,
    /// When it may install and reboot; empty for any time.
    pub windows: Vec<Window>,
    /// What the windows' times mean.
    pub time_zone: Zone,
    /// From which severity on the windows do not matter; `None` for never.
    pub skip_window: Option<Severity>,
    /// The most bytes per second of a download; `None` for no limit.
    pub rate_limit: Option<u64>,
    /// The proxy to reach the server by.
    pub proxy: Option<Proxy>,
    /// The authorities that vouch for the server, instead of the system's (PEM).
    pub cafile: Option<PathBuf>,
    /// The time between two looks at the index.
    pub check_interval: Duration,
}

/// A time zone by its name.
#[derive(Clone, Debug)]
pub struct Zone {
    /// As in the settings; `local` is the host's.
    pub name: String,
    /// Its rules.
    pub rules: TimeZone,
}

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
    /// `HOST:PORT`.
    pub authority: String,
    /// `USER:PASSWORD`.
    pub credentials: Option<Secret>,
}

/// The table as a file has it. A value of a wrong type is told as any other wrong value is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Fragment {
    server: Option<Spanned<Value>>,
    channel: Option<Spanned<Value>>,
    auto: Option<Spanned<Value>>,
    windows: Option<Spanned<Value>>,
    time_zone: Option<Spanned<Value>>,
    skip_window: Option<Spanned<Value>>,
    rate_limit: Option<Spanned<Value>>,
    proxy: Option<Spanned<Value>>,
    cafile: Option<Spanned<Value>>,
    check_interval: Option<Spanned<Value>>,
}

/// A file of which only this table matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    update: Fragment,
}

/// A value with its place.
#[derive(Debug)]
struct Placed<T> {
    value: T,
    place: Source,
}

/// The merged files.
#[derive(Default, Debug)]
struct Inputs {
    server: Option<Placed<Value>>,
    channel: Option<Placed<Value>>,
    auto: Option<Placed<Value>>,
    windows: Option<Placed<Value>>,
    time_zone: Option<Placed<Value>>,
    skip_window: Option<Placed<Value>>,
    rate_limit: Option<Placed<Value>>,
    proxy: Option<Placed<Value>>,
    cafile: Option<Placed<Value>>,
    check_interval: Option<Placed<Value>>,
}

/// Reads `[update]` from the same files as [`super::load`]. Environment and flags have no such settings.
///
/// # Errors
/// The first mistake, with its place, the value and what would be right.
pub fn load(sources: Sources<'_>) -> Result<Update, Error> {
    let paths = match sources.config {
        Some(path) => vec![path.to_owned()],
        None => files::list(sources.root)?,
    };
    let mut inputs = Inputs::default();
    for path in paths {
        inputs.overlay(&files::read(&path)?, &path)?;
    }
    let zone = inputs.zone()?;
    let rules = zone::read(sources.root, &zone.value).map_err(|expected| {
        let value = format!("{:?}", zone.value);
        error("update.time-zone", &zone.place, value, expected)
    })?;
    inputs.check(Zone {
        name: zone.value,
        rules,
    })
}

/// Checks the text of one file as [`load`] would; reads no time zone.
///
/// # Errors
/// As [`load`].
pub(super) fn check_file(text: &str, path: &Path) -> Result<(), Error> {
    let mut inputs = Inputs::default();
    inputs.overlay(text, path)?;
    let zone = Zone {
        name: inputs.zone()?.value,
        rules: TimeZone::utc(),
    };
    inputs.check(zone).map(drop)
}

impl Inputs {
    fn overlay(&mut self, text: &str, path: &Path) -> Result<(), Error> {
        let at = |start| Source::File {
            path: path.to_owned(),
            line: line_at(text, start),
        };
        let file: File = toml::from_str(text).map_err(|error| toml_error(text, path, &error))?;
        let put = |slot: &mut Option<Placed<Value>>, value: Option<Spanned<Value>>| {
            if let Some(value) = value {
                *slot = Some(Placed {
                    place: at(value.span().start),
                    value: value.into_inner(),
                });
            }
        };
        let said = file.update;
        put(&mut self.server, said.server);
        put(&mut self.channel, said.channel);
        put(&mut self.auto, said.auto);
        put(&mut self.windows, said.windows);
        put(&mut self.time_zone, said.time_zone);
        put(&mut self.skip_window, said.skip_window);
        put(&mut self.rate_limit, said.rate_limit);
        put(&mut self.proxy, said.proxy);
        put(&mut self.cafile, said.cafile);
        put(&mut self.check_interval, said.check_interval);
        Ok(())
    }

    /// The name of the time zone.
    fn zone(&mut self) -> Result<Placed<String>, Error> {
        let Some(input) = self.time_zone.take() else {
            return Ok(Placed {
                value: zone::LOCAL.to_owned(),
                place: Source::Variable("TZ".to_owned()),
            });
        };
        match input.value {
            Value::String(name) if zone::is_name(&name) => Ok(Placed {
                value: name,
                place: input.place,
            }),
            other => Err(error(
                "update.time-zone",
                &input.place,
                shown(&other),
                zone::FORM,
            )),
        }
    }

    fn check(self, time_zone: Zone) -> Result<Update, Error> {
        Ok(Update {
            server: text(self.server, "update.server", SERVER, server)?,
            channel: text(self.channel, "update.channel", CHANNEL, channel)?
                .unwrap_or_else(|| "stable".to_owned()),
            auto: text(self.auto, "update.auto", AUTO, auto)?.unwrap_or(Auto::Check),
            windows: windows(self.windows)?,
            time_zone,
            skip_window: text(self.skip_window, "update.skip-window", SKIP, skip)?
                .unwrap_or(Some(Severity::Critical)),
            rate_limit: number(self.rate_limit, "update.rate-limit", 0..=10_000_000, RATE)?
                .and_then(|kib| (kib > 0).then_some(kib * 1024)),
            proxy: proxy(self.proxy)?,
            cafile: text(self.cafile, "update.cafile", "an absolute path", |text| {
                let path = PathBuf::from(text);
                (path.is_absolute() && !text.contains('\0')).then_some(path)
            })?,
            check_interval: Duration::from_secs(
                number(
                    self.check_interval,
                    "update.check-interval",
                    300..=2_592_000,
                    "300 to 2592000 seconds",
                )?
                .unwrap_or(21_600),
            ),
        })
    }
}

const SERVER: &str =
    "http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH without a user, query or fragment";
const CHANNEL: &str = "1 to 32 of a-z, 0-9 and -, the first a letter";
const AUTO: &str = "off, check, download or apply";
const SKIP: &str = "never, security or critical";
const RATE: &str = "0 to 10000000 KiB per second, where 0 is no limit";
const PROXY: &str = "http://[USER:PASSWORD@]HOST:PORT";

fn error(key: &'static str, place: &Source, value: String, expected: impl Into<String>) -> Error {
    Error::Value {
        place: place.clone(),
        key,
        value,
        expected: expected.into(),
    }
}

/// A value in the syntax of a settings file.
pub(super) fn shown(value: &Value) -> String {
    match value {
        // Without the line breaks that TOML allows.
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// A value, unless it is an empty text, which means none.
fn filled(input: Option<Placed<Value>>) -> Option<Placed<Value>> {
    input.filter(|input| input.value.as_str() != Some(""))
}

/// A text that `read` understands; an empty one means none.
fn text<T>(
    input: Option<Placed<Value>>,
    key: &'static str,
    expected: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(input) = filled(input) else {
        return Ok(None);
    };
    match input.value.as_str().and_then(read) {
        Some(value) => Ok(Some(value)),
        None => Err(error(key, &input.place, shown(&input.value), expected)),
    }
}

fn number(
    input: Option<Placed<Value>>,
    key: &'static str,
    allowed: std::ops::RangeInclusive<u64>,
    expected: &str,
) -> Result<Option<u64>, Error> {
    let Some(input) = input else { return Ok(None) };
    let number = input.value.as_integer();
    match number.and_then(|number| u64::try_from(number).ok()) {
        Some(value) if allowed.contains(&value) => Ok(Some(value)),
        _ => Err(error(key, &input.place, shown(&input.value), expected)),
    }
}

/// A text counts as a list of one, and empty ones as none.
fn windows(input: Option<Placed<Value>>) -> Result<Vec<Window>, Error> {
    let Some(input) = input else {
        return Ok(Vec::new());
    };
    let values = match input.value {
        Value::Array(values) => values,
        value => vec![value],
    };
    let texts = values
        .iter()
        .filter(|value| value.as_str().is_none_or(|text| !text.trim().is_empty()));
    texts
        .map(|value| {
            let window = value.as_str().and_then(|text| text.trim().parse().ok());
            window.ok_or_else(|| error("update.windows", &input.place, shown(value), window::FORM))
        })
        .collect()
}

fn server(text: &str) -> Option<Uri> {
    let address: Uri = text.trim().parse().ok()?;
    let known = matches!(address.scheme_str(), Some("http" | "https"));
    let authority = address.authority()?.as_str();
    let bare = !authority.contains('@') && !authority.ends_with(':');
    let has_host = address.host().is_some_and(|host| !host.is_empty());
    // hyper drops a fragment silently.
    let plain = address.query().is_none() && !text.contains('#');
    let has_port = address.port().is_none_or(|port| port.as_u16() != 0);
    (known && bare && has_host && plain && has_port).then_some(address)
}

fn channel(text: &str) -> Option<String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    (begins && text.len() <= 32 && text.bytes().all(good)).then(|| text.to_owned())
}

fn auto(text: &str) -> Option<Auto> {
    Some(match text {
        "off" => Auto::Off,
        "check" => Auto::Check,
        "download" => Auto::Download,
        "apply" => Auto::Apply,
        _ => return None,
    })
}

fn skip(text: &str) -> Option<Option<Severity>> {
    Some(match text {
        "never" => None,
        "security" => Some(Severity::Security),
        "critical" => Some(Severity::Critical),
        _ => return None,
    })
}

/// The value is not shown: it may have a password.
fn proxy(input: Option<Placed<Value>>) -> Result<Option<Proxy>, Error> {
    let Some(input) = filled(input) else {
        return Ok(None);
    };
    let bad = || error("update.proxy", &input.place, "\"…\"".to_owned(), PROXY);
    let text = input.value.as_str().ok_or_else(bad)?;
    let rest = text.trim().strip_prefix("http://").ok_or_else(bad)?;
    let (credentials, authority) = match rest.rsplit_once('@') {
        Some((credentials, authority)) => (Some(credentials), authority),
        None => (None, rest),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let parsed: hyper::http::uri::Authority = authority.parse().map_err(|_| bad())?;
    if parsed.port_u16().is_none_or(|port| port == 0) || parsed.host().is_empty() {
        return Err(bad());
    }
    if credentials.is_some_and(|credentials| !credentials.contains(':')) {
        return Err(bad());
    }
    Ok(Some(Proxy {
        authority: authority.to_owned(),
        credentials: credentials.map(|text| Secret::new(text.to_owned())),
    }))
}

#[cfg(test)]
mod tests;
