//! Predicts, before the machine boots, what the image's Ignition says about a config and what the image does with it.
//!
//! The types are those of spec 3.3 in `ignition-config`; `serde_ignored` finds unknown keys, and [`ADDED`] has those that
//! earlier specs do not know. What later specs add is [`translate`]'s. (The parser of `ignition-config` would link the types of seven specs.) Rules that types
//! cannot express come from Ignition 2.14.0's own validation (`config/v3_3/types/*.go`): [`storage`], [`devices`],
//! [`luks`], [`resource`], [`systemd`]. What Ignition accepts but then fails, or has no effect, on the machine is found
//! with the table of the image ([`super::image`]): [`accounts`], [`contents`], [`places`], [`stages`], [`units`].

mod accounts;
mod commands;
mod contents;
mod devices;
mod luks;
mod machine;
mod partitions;
mod places;
mod resource;
mod stages;
mod storage;
mod systemd;
mod unit_file;
mod units;

#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use ignition_config::v3_3 as spec;
use serde_json::Value;

use super::locate::{Index, Position, join_index, join_key};
use super::translate;
use accounts::Accounts;
use machine::Machine;

/// Severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Ignition or the machine ignores it, or does something that is probably not intended.
    Warning,
    /// Ignition refuses the config, or fails to apply it to the image; the machine does not boot.
    Error,
}

/// One problem of a config.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Error or warning.
    pub severity: Severity,
    /// Where in the text.
    pub position: Position,
    /// The JSON path, for example `storage.files[2].path`; empty for the whole text.
    pub path: String,
    /// The problem.
    pub message: String,
}

impl fmt::Display for Finding {
    /// `LINE:COLUMN: error: PATH: MESSAGE`, as compilers print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let Position { line, column } = self.position;
        write!(f, "{line}:{column}: {severity}: ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// The outcome of [`check`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The spec version as written, for example `3.3.0`; empty if missing.
    pub spec: String,
    /// Number of files that the config writes.
    pub files: usize,
    /// Number of systemd units that it changes.
    pub units: usize,
    /// All findings, in the order of the text.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Number of errors; if 0, Ignition accepts the config.
    pub fn errors(&self) -> usize {
        let is_error = |finding: &&Finding| finding.severity == Severity::Error;
        self.findings.iter().filter(is_error).count()
    }
}

impl fmt::Display for Report {
    /// `spec 3.3.0, 7 files, 1 unit`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.spec.is_empty() {
            return f.write_str("no config");
        }
        let plural = |count| if count == 1 { "" } else { "s" };
        let (files, units) = (self.files, self.units);
        let spec = &self.spec;
        write!(
            f,
            "spec {spec}, {files} file{}, {units} unit{}",
            plural(files),
            plural(units)
        )
    }
}

/// Checks the text of any Ignition config.
pub fn check(text: &str) -> Report {
    let mut report = Report {
        spec: String::new(),
        files: 0,
        units: 0,
        findings: Vec::new(),
    };
    let mut findings = Findings {
        index: Index::of_json(text),
        list: Vec::new(),
    };
    if text.trim().is_empty() {
        findings.warn("", "the config is empty: Ignition provisions nothing");
    } else if let Some((version, minor)) = spec_version(text, &mut findings) {
        report.spec = version;
        if let Some(config) = parse(text, minor, &mut findings) {
            check_config(&config, minor, &mut findings);
            report.files = config
                .storage
                .and_then(|storage| storage.files)
                .map_or(0, |files| files.len());
            report.units = config
                .systemd
                .and_then(|systemd| systemd.units)
                .map_or(0, |units| units.len());
        }
    }
    report.findings = findings.list;
    report.findings.sort_by_key(|finding| finding.position);
    report
}

/// Findings while the check runs.
struct Findings<'t> {
    index: Index<'t>,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, path.into(), message.into());
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, path.into(), message.into());
    }

    fn unknown_key(&mut self, path: String) {
        self.warn(path, "unknown key, which Ignition ignores");
    }

    fn add(&mut self, severity: Severity, path: String, message: String) {
        let position = self.index.position_of(&path);
        self.list.push(Finding {
            severity,
            position,
            path,
            message,
        });
    }

    /// An error at `serde_json`'s position.
    fn parse_error(&mut self, error: &serde_json::Error) {
        let offset = self.index.fault_at(error.line(), error.column());
        let message = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        self.list.push(Finding {
            severity: Severity::Error,
            position: self.index.position_at(offset),
            path: self.index.path_at(offset).to_owned(),
            message: message.strip_suffix(&place).unwrap_or(&message).to_owned(),
        });
    }

    /// Reports every key that an earlier entry of the list at `list_path` also has.
    fn check_unique<T: Eq + Hash>(
        &mut self,
        list_path: &str,
        what: &str,
        keys: impl Iterator<Item = T>,
    ) {
        let mut seen = HashSet::new();
        for (i, key) in keys.enumerate() {
            if !seen.insert(key) {
                let path = join_index(list_path, i);
                self.error(path, format!("an earlier entry has the same {what}"));
            }
        }
    }
}

/// The spec version as written and its minor number; `None` after adding an error.
fn spec_version(text: &str, findings: &mut Findings<'_>) -> Option<(String, u64)> {
    let root: Value = match serde_json::from_str(text) {
        Ok(root) => root,
        Err(error) => {
            findings.parse_error(&error);
            if let Some(format) = other_format(text) {
                findings.error("", format!("this is {format}"));
            }
            return None;
        }
    };
    let version = root.get("ignition").and_then(|value| value.get("version"));
    let Some(version) = version.and_then(Value::as_str) else {
        let message = "the spec version is missing: write {\"ignition\": {\"version\": \"3.3.0\"}}";
        findings.error("ignition.version", message);
        return None;
    };
    match translate::accept(version) {
        Ok(minor) => {
            for obstacle in translate::obstacles(&root) {
                findings.error(obstacle.path, obstacle.message);
            }
            Some((version.to_owned(), minor))
        }
        Err(reason) => {
            findings.error("ignition.version", reason);
            None
        }
    }
}

/// A guess at what a text that is not JSON was meant to be.
fn other_format(text: &str) -> Option<&'static str> {
    let starts = |prefix| text.trim_start().starts_with(prefix);
    if starts("#cloud-config") {
        Some("cloud-init's format, which Ignition does not read")
    } else if starts("#!") {
        Some("a script, which Ignition does not run; put it into a file and a unit")
    } else if text.lines().any(|line| line.starts_with("variant:")) {
        Some(
            "a Butane config: translate it with `butane --strict` (variant flatcar up to 1.1.0, or fcos up to 1.6.0)",
        )
    } else {
        None
    }
}

/// The keys that specs 3.1 to 3.3 added: the minor number, and the path without indices.
const ADDED: [(u64, &str); 15] = [
    (1, "ignition.config.merge.compression"),
    (1, "ignition.config.merge.httpHeaders"),
    (1, "ignition.config.replace.compression"),
    (1, "ignition.config.replace.httpHeaders"),
    (1, "ignition.proxy"),
    (
        1,
        "ignition.security.tls.certificateAuthorities.compression",
    ),
    (
        1,
        "ignition.security.tls.certificateAuthorities.httpHeaders",
    ),
    (1, "storage.files.append.httpHeaders"),
    (1, "storage.files.contents.httpHeaders"),
    (1, "storage.filesystems.mountOptions"),
    (2, "passwd.groups.shouldExist"),
    (2, "passwd.users.shouldExist"),
    (2, "storage.disks.partitions.resize"),
    (2, "storage.luks"),
    (3, "kernelArguments"),
];

/// The config in the types of spec 3.3, which are those of the other specs as well; `None` if a value has the wrong type.
fn parse(text: &str, minor: u64, findings: &mut Findings<'_>) -> Option<spec::Config> {
    let mut unknown = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = serde_ignored::deserialize(&mut reader, |path| unknown.push(json_path(&path)));
    match read {
        Ok(config) => {
            let is_newer = |path: &String| {
                let mut newer = translate::ADDED.iter();
                newer.any(|(from, key)| *from <= minor && *key == without_indices(path))
            };
            for path in unknown.into_iter().filter(|path| !is_newer(path)) {
                findings.unknown_key(path);
            }
            check_shape(text, &config, minor, findings);
            Some(config)
        }
        Err(error) => {
            findings.parse_error(&error);
            None
        }
    }
}

/// Checks that what the text has is what the types say. serde also reads a struct from an array of its fields; Ignition
/// does not. An array that comes out as an object is such a case. And the types have the keys of all specs.
fn check_shape(text: &str, config: &spec::Config, minor: u64, findings: &mut Findings<'_>) {
    // Neither can fail: the text is valid JSON, and every config can be written as JSON.
    if let (Ok(read), Ok(typed)) = (serde_json::from_str(text), serde_json::to_value(config)) {
        let mut shape = Shape { minor, findings };
        shape.compare("", "", &read, &typed);
    }
}

/// The comparison of a text with its types.
struct Shape<'s, 't> {
    minor: u64,
    findings: &'s mut Findings<'t>,
}

impl Shape<'_, '_> {
    /// Compares a value at a path, which is also given without indices.
    fn compare(&mut self, path: &str, plain: &str, read: &Value, typed: &Value) {
        match (read, typed) {
            (Value::Array(_), Value::Object(_)) => {
                self.findings
                    .error(path, "expected an object, found an array");
            }
            (Value::Array(read), Value::Array(typed)) => {
                for (i, (read, typed)) in read.iter().zip(typed).enumerate() {
                    self.compare(&join_index(path, i), plain, read, typed);
                }
            }
            (Value::Object(read), Value::Object(typed)) => {
                for (key, read) in read {
                    let (path, plain) = (join_key(path, key), join_key(plain, key));
                    let mut added = ADDED.iter();
                    if added.any(|(minor, key)| *key == plain && *minor > self.minor) {
                        self.findings.unknown_key(path);
                    } else if let Some(typed) = typed.get(key) {
                        self.compare(&path, &plain, read, typed);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The path without the parts in brackets.
fn without_indices(path: &str) -> String {
    let parts = path.split('[');
    parts
        .map(|part| part.split_once(']').map_or(part, |(_, rest)| rest))
        .collect()
}

fn json_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => join_index(&json_path(parent), *index),
        Path::Map { parent, key } => join_key(&json_path(parent), key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => json_path(parent),
    }
}

fn check_config(config: &spec::Config, minor: u64, findings: &mut Findings<'_>) {
    resource::check_ignition(&config.ignition, minor, findings);
    if let Some(arguments) = &config.kernel_arguments {
        let wanted = || arguments.should_exist.iter().flatten();
        let unwanted = || arguments.should_not_exist.iter().flatten();
        findings.check_unique("kernelArguments.shouldExist", "text", wanted());
        findings.check_unique("kernelArguments.shouldNotExist", "text", unwanted());
        for (i, argument) in unwanted().enumerate() {
            if wanted().any(|other| other == argument) {
                let path = join_index("kernelArguments.shouldNotExist", i);
                findings.error(path, format!("{argument:?} is in shouldExist too"));
            }
        }
    }
    let machine = Machine::new(config);
    let accounts = Accounts::check(&machine, findings);
    if let Some(storage) = &config.storage {
        storage::check(storage, minor, findings);
        places::check(storage, &machine, &accounts, findings);
        contents::check(storage, &machine, &accounts, findings);
        devices::check(storage, findings);
        luks::check(storage, minor, findings);
    }
    stages::check(config, &machine, findings);
    if let Some(systemd) = &config.systemd {
        systemd::check(systemd, findings);
        units::check(systemd, &machine, &accounts, findings);
    }
}
