//! Configs of specs 3.4.0 and 3.5.0 in the words of 3.3.0, the newest that the image's Ignition (2.14.0) reads.
//!
//! The newer specs have the keys of 3.3.0 and a few more ([`ADDED`]). A config that gives none of those a value needs only
//! another version; the rest is refused with its path. Configs that a config carries in itself, as `data:` URLs of
//! `ignition.config.merge` and `replace`, are translated with it. Those that Ignition fetches are out of reach: it parses
//! them as they come. Source: coreos/ignition `docs/migrating-configs.md` and `config/v3_5/types`.

#[cfg(test)]
mod tests;

use std::io::Read;

use flate2::read::GzDecoder;
use ring::digest;
use serde_json::{Map, Value, json};

use super::check::{Finding, Severity};
use super::locate::{Index, join_index, join_key};
use super::{Error, data_url};

/// The newest spec that Ignition 2.14.0 reads, as `3.MINOR.0`.
const NATIVE_MINOR: u64 = 3;
/// The newest spec that is translated.
const NEWEST_MINOR: u64 = 5;

/// The keys that 3.4.0 and 3.5.0 added: the minor number, and the path without indices.
pub(super) const ADDED: [(u64, &str); 4] = [
    (4, "storage.luks.clevis.tang.advertisement"),
    (4, "storage.luks.discard"),
    (4, "storage.luks.openOptions"),
    (5, "storage.luks.cex"),
];

/// Where a config names contents: the steps to each place, `*` for every entry of a list.
const CONTENTS: [&[&str]; 6] = [
    &["ignition", "config", "merge", "*"],
    &["ignition", "config", "replace"],
    &["ignition", "security", "tls", "certificateAuthorities", "*"],
    &["storage", "files", "*", "contents"],
    &["storage", "files", "*", "append", "*"],
    &["storage", "luks", "*", "keyFile"],
];
/// How many of them, from the first, are configs.
const CONFIGS: usize = 2;

/// The longest config that is unpacked, in bytes; user data of clouds ends at a few hundred kilobytes.
const LONGEST: u64 = 64 << 20;

/// Something of a newer spec that Ignition 2.14.0 cannot do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Obstacle {
    /// The JSON path.
    pub(super) path: String,
    /// What, and what to do instead.
    pub(super) message: String,
}

/// The minor number of a version that the image takes.
pub(super) fn accept(version: &str) -> Result<u64, String> {
    let (numbers, is_experimental) = match version.split_once('-') {
        Some((numbers, _)) => (numbers, true),
        None => (version, false),
    };
    let parts: Vec<Option<u64>> = numbers.split('.').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(3), Some(_), Some(_)] if is_experimental => Err(format!(
            "{version} may change with any Ignition release; use 3.0.0 to 3.5.0"
        )),
        [Some(3), Some(minor), Some(0)] if minor <= NEWEST_MINOR => Ok(minor),
        [Some(3), Some(_), Some(_)] => Err(format!(
            "spec {version} is newer than what the image takes, 3.0.0 to 3.5.0; with Butane use variant flatcar version \
             1.1.0, or fcos up to 1.6.0"
        )),
        [Some(1 | 2), Some(_), Some(_)] => Err(format!(
            "spec {version} is of the Container Linux generation; convert it to 3.x with ign-converter"
        )),
        _ => Err(format!(
            "{version:?} is not a spec version: expected 3.0.0 to 3.5.0"
        )),
    }
}

/// The config of `text` in spec 3.3.0 or before; `None` if it needs no translation, or is none that can be read, which
/// [`check`](super::check()) and Ignition itself tell better.
///
/// # Errors
///
/// [`Error::Untranslatable`] if it asks for what Ignition 2.14.0 cannot do, with every such place.
pub fn translate(text: &str) -> Result<Option<String>, Error> {
    let Ok(mut config) = serde_json::from_str::<Value>(text) else {
        return Ok(None);
    };
    let mut obstacles = Vec::new();
    let is_changed = lower(&mut config, &mut obstacles);
    if !obstacles.is_empty() {
        let index = Index::of_json(text);
        let finding = |obstacle: Obstacle| Finding {
            severity: Severity::Error,
            position: index.position_of(&obstacle.path),
            path: obstacle.path,
            message: obstacle.message,
        };
        return Err(Error::Untranslatable(
            obstacles.into_iter().map(finding).collect(),
        ));
    }
    Ok(is_changed.then(|| config.to_string()))
}

/// What of the config, and of those that it carries, Ignition 2.14.0 cannot do.
pub(super) fn obstacles(config: &Value) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    lower(&mut config.clone(), &mut obstacles);
    obstacles
}

/// Translates in place, and returns whether there was something to do.
fn lower(config: &mut Value, obstacles: &mut Vec<Obstacle>) -> bool {
    let version = config.pointer("/ignition/version").and_then(Value::as_str);
    let Some(minor) = version.and_then(|version| accept(version).ok()) else {
        return false;
    };
    let mut is_changed = minor > NATIVE_MINOR;
    if is_changed {
        if let Some(version) = config.pointer_mut("/ignition/version") {
            *version = json!(format!("3.{NATIVE_MINOR}.0"));
        }
        each(config, &["storage", "luks", "*"], "", &mut |at, volume| {
            lower_volume(at, volume, minor, obstacles);
        });
        for steps in CONTENTS {
            each(config, steps, "", &mut |at, contents| {
                lower_source(at, contents, obstacles);
            });
        }
    }
    for steps in &CONTENTS[..CONFIGS] {
        each(config, steps, "", &mut |at, reference| {
            is_changed |= lower_carried(at, reference, obstacles);
        });
    }
    is_changed
}

/// Calls `visit` with the path and the object at each place that the steps lead to.
fn each(
    value: &mut Value,
    steps: &[&str],
    at: &str,
    visit: &mut dyn FnMut(&str, &mut Map<String, Value>),
) {
    match (steps, value) {
        ([], Value::Object(object)) => visit(at, object),
        (["*", rest @ ..], Value::Array(items)) => {
            for (i, item) in items.iter_mut().enumerate() {
                each(item, rest, &join_index(at, i), visit);
            }
        }
        ([key, rest @ ..], Value::Object(object)) => {
            if let Some(value) = object.get_mut(*key) {
                each(value, rest, &join_key(at, key), visit);
            }
        }
        _ => {}
    }
}

/// Takes the newer keys out of an encrypted volume; one that says something is an obstacle.
fn lower_volume(
    at: &str,
    volume: &mut Map<String, Value>,
    minor: u64,
    obstacles: &mut Vec<Obstacle>,
) {
    let mut take = |object: &mut Map<String, Value>, at: &str, key: &str, message: &str| {
        if let Some(value) = object.remove(key)
            && says_something(&value)
        {
            obstacles.push(Obstacle {
                path: join_key(at, key),
                message: format!("the image's Ignition 2.14.0 cannot do this; {message}"),
            });
        }
    };
    take(
        volume,
        at,
        "discard",
        "remove it, and let a unit run `cryptsetup refresh --allow-discards --persistent NAME`",
    );
    take(
        volume,
        at,
        "openOptions",
        "remove it, and let a unit run `cryptsetup refresh --persistent NAME` with these options",
    );
    if minor >= 5 {
        let message = "remove it: Crypto Express cards are in IBM's s390x machines only";
        take(volume, at, "cex", message);
    }
    let servers = volume.get_mut("clevis").and_then(|c| c.get_mut("tang"));
    let servers = servers.and_then(Value::as_array_mut).into_iter().flatten();
    for (i, server) in servers.enumerate() {
        if let Value::Object(server) = server {
            let at = join_index(&format!("{at}.clevis.tang"), i);
            let message = "use the TPM or a key file";
            take(server, &at, "advertisement", message);
        }
    }
}

/// Whether a value is more than an explicit nothing.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(says_something),
        _ => true,
    }
}

/// Writes the ARN of an S3 object as the URL that 3.3.0 knows. ARNs of access points have none.
fn lower_source(at: &str, contents: &mut Map<String, Value>, obstacles: &mut Vec<Obstacle>) {
    let Some(source) = contents.get("source").and_then(Value::as_str) else {
        return;
    };
    let Some(arn) = source.strip_prefix("arn:") else {
        return;
    };
    // PARTITION:s3:REGION:ACCOUNT:BUCKET/KEY, region and account empty for an object.
    match arn.splitn(5, ':').collect::<Vec<_>>()[..] {
        ["aws", "s3", "", "", object] if object.contains('/') => {
            let url = format!("s3://{object}");
            contents.insert("source".to_owned(), url.into());
        }
        _ => obstacles.push(Obstacle {
            path: join_key(at, "source"),
            message: "the image's Ignition 2.14.0 fetches no ARN but that of an object, arn:aws:s3:::BUCKET/KEY; use its \
                      s3://BUCKET/KEY or https URL"
                .to_owned(),
        }),
    }
}

/// Translates the config in a `data:` URL, and returns whether there was something to do.
fn lower_carried(
    at: &str,
    reference: &mut Map<String, Value>,
    obstacles: &mut Vec<Obstacle>,
) -> bool {
    let Some(mut config) = carried(reference) else {
        return false;
    };
    let mut inner = Vec::new();
    let is_changed = lower(&mut config, &mut inner);
    let version = config.pointer("/ignition/version").and_then(Value::as_str);
    if let Some(Err(message)) = version.map(accept) {
        let path = "ignition.version".to_owned();
        inner.push(Obstacle { path, message });
    }
    obstacles.extend(inner.into_iter().map(|obstacle| Obstacle {
        path: join_key(at, "source"),
        message: format!(
            "in the config there, {}: {}",
            obstacle.path, obstacle.message
        ),
    }));
    if is_changed {
        // They describe the text that this replaces.
        reference.remove("compression");
        reference.remove("verification");
        let source = data_url::encode(&config.to_string());
        reference.insert("source".to_owned(), source.into());
    }
    is_changed
}

/// The config that a reference carries in itself. One that Ignition will refuse, as its checksum is wrong or it is no JSON,
/// is left to it.
fn carried(reference: &Map<String, Value>) -> Option<Value> {
    let source = reference.get("source")?.as_str()?;
    let mut data = data_url::decode(source.starts_with("data:").then_some(source)?).ok()?;
    if reference.get("compression").and_then(Value::as_str) == Some("gzip") {
        let packed = std::mem::take(&mut data);
        let unpacker = GzDecoder::new(&packed[..]);
        unpacker.take(LONGEST).read_to_end(&mut data).ok()?;
    }
    let hash = reference.get("verification").and_then(|v| v.get("hash"));
    if let Some(hash) = hash.and_then(Value::as_str)
        && !is_hash_of(hash, &data)
    {
        return None;
    }
    serde_json::from_slice(&data).ok()
}

/// Whether `FUNCTION-HEX` is the checksum of the data.
fn is_hash_of(hash: &str, data: &[u8]) -> bool {
    let (function, sum) = hash.split_once('-').unwrap_or_default();
    let algorithm = match function {
        "sha512" => &digest::SHA512,
        "sha256" => &digest::SHA256,
        _ => return false,
    };
    let found = digest::digest(algorithm, data);
    let hex: String = found.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    sum.eq_ignore_ascii_case(&hex)
}
