//! What provisioning did: written down in the initrd once every stage has passed, and shown by `selvage ignition report`.
//!
//! The record has names, no contents: a config holds password hashes and tokens. Of a URL it leaves out what may be one.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use ignition_config::v3_3::{Config, Resource, Storage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::check::{Severity, check};
use super::super::locate::join_index;
use super::ReportError;
use crate::base::atomic_file;

/// The config as Ignition merged it from all sources, below the initrd's `/run`.
const MERGED: &str = "ignition.json";
/// What Ignition hands from stage to stage, there as well.
const STATE: &str = "ignition/state";
/// Where the record is on the machine.
pub(super) const RECORD: &str = ".selvage/provisioning.json";

/// What Ignition did on the first boot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// Ignition's name of the platform, for example `qemu`.
    pub(super) platform: String,
    /// Where the configs came from, in the order in which Ignition read them.
    pub(super) configs: Vec<String>,
    /// What was made of them.
    pub(super) made: Vec<Made>,
    /// What of them was ignored, or will have no effect.
    pub(super) warnings: Vec<String>,
}

/// Things of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Made {
    /// The kind, for example `files`.
    pub(super) kind: String,
    /// Each with where it came from, if not from the config itself.
    pub(super) things: Vec<String>,
}

/// Writes the record of a provisioning that has passed to `root`, from what Ignition left in `run`.
///
/// # Errors
///
/// A file that cannot be read or written, or a merged config that is not one of Ignition's.
pub fn record_command(run: &Path, platform: &str, root: &Path) -> Result<(), ReportError> {
    let read = |name: &str| {
        let path = run.join(name);
        fs::read_to_string(&path).map_err(|source| ReportError::Read { path, source })
    };
    let record = Record::of(&read(MERGED)?, &read(STATE).unwrap_or_default(), platform).map_err(
        |source| ReportError::Read {
            path: run.join(MERGED),
            source: source.into(),
        },
    )?;
    let path = root.join(RECORD);
    let text = format!("{:#}\n", json!(record));
    atomic_file::replace(&path, text.as_bytes(), 0o644)
        .map_err(|source| ReportError::Write { path, source })
}

impl Record {
    /// The record of a merged config and of Ignition's state, which may be missing.
    fn of(merged: &str, state: &str, platform: &str) -> serde_json::Result<Self> {
        let mut value: Value = serde_json::from_str(merged)?;
        // Ignition writes its internal version, which no config may have.
        if let Some(version) = value.pointer_mut("/ignition/version") {
            *version = json!("3.3.0");
        }
        let text = value.to_string();
        let config: Config = serde_json::from_str(&text)?;
        let warnings = check(&text).findings.into_iter();
        let warnings = warnings.filter(|finding| finding.severity == Severity::Warning);
        Ok(Self {
            platform: platform.to_owned(),
            configs: configs(state),
            made: made(&config),
            warnings: warnings
                .map(|finding| format!("{}: {}", finding.path, finding.message))
                .collect(),
        })
    }

    /// The record on this machine; `None` on one that a version without it has provisioned.
    pub(super) fn read(root: &Path) -> Result<Option<Self>, ReportError> {
        let path = root.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text,
        };
        let record = text.and_then(|text| Ok(serde_json::from_str(&text)?));
        record.map_err(|source| ReportError::Read { path, source })
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = |title: &str, lines: &[String]| {
            if !lines.is_empty() {
                writeln!(f, "{title}:")?;
            }
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
        };
        let platform = self.platform.clone();
        list("platform", &[platform])?;
        list("configs", &self.configs)?;
        for made in &self.made {
            list(&made.kind, &made.things)?;
        }
        list("warnings", &self.warnings)
    }
}

/// Where the configs came from, by Ignition's state: `user: qemu`, `user, referenced: https://example.net/a.ign`.
fn configs(state: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct State {
        #[serde(rename = "fetchedConfigs")]
        fetched: Option<Vec<Fetched>>,
    }
    #[derive(Deserialize)]
    struct Fetched {
        kind: String,
        source: String,
        referenced: bool,
    }
    let state = serde_json::from_str(state).ok();
    let fetched = state.and_then(|state: State| state.fetched);
    let line = |config: Fetched| {
        let referenced = if config.referenced {
            ", referenced"
        } else {
            ""
        };
        format!("{}{referenced}: {}", config.kind, shown(&config.source))
    };
    fetched.into_iter().flatten().map(line).collect()
}

/// A source without its parts that may be secret: the user, the query, and all data.
fn shown(source: &str) -> String {
    if source.starts_with("data:") {
        return "data".to_owned();
    }
    let source = source.split(['?', '#']).next().unwrap_or_default();
    match source.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => source.to_owned(),
    }
}

/// `NAME`, with where its contents are from if they were fetched.
fn with_source<'r>(name: &str, contents: impl IntoIterator<Item = &'r Resource>) -> String {
    let mut line = name.to_owned();
    let sources = contents.into_iter().filter_map(|c| c.source.as_deref());
    for source in sources.filter(|source| !source.is_empty() && !source.starts_with("data:")) {
        // Writing to a String cannot fail.
        let _infallible = write!(line, " from {}", shown(source));
    }
    line
}

fn made(config: &Config) -> Vec<Made> {
    let storage = config.storage.clone().unwrap_or_default();
    let passwd = config.passwd.clone().unwrap_or_default();
    let arguments = config.kernel_arguments.clone().unwrap_or_default();
    let units = config.systemd.as_ref().and_then(|s| s.units.as_deref());
    let without = arguments.should_not_exist.into_iter().flatten();
    let arguments = arguments.should_exist.into_iter().flatten();
    let arguments = arguments.chain(without.map(|argument| format!("without {argument}")));
    let mut made = vec![("kernel arguments", arguments.collect())];
    made.extend(of_storage(&storage));
    let groups = passwd.groups.into_iter().flatten();
    made.push(("groups", groups.map(|group| group.name).collect()));
    let users = passwd.users.into_iter().flatten();
    made.push(("users", users.map(|user| user.name).collect()));
    let units = units.into_iter().flatten();
    made.push(("units", units.map(|unit| unit.name.clone()).collect()));
    made.retain(|(_, things): &(_, Vec<String>)| !things.is_empty());
    let kind = |(kind, things): (&str, _)| Made {
        kind: kind.to_owned(),
        things,
    };
    made.into_iter().map(kind).collect()
}

fn of_storage(storage: &Storage) -> Vec<(&'static str, Vec<String>)> {
    let partitions = storage.disks.iter().flatten().flat_map(|disk| {
        let partitions = disk.partitions.iter().flatten().enumerate();
        partitions.map(|(i, partition)| match partition.label.as_deref() {
            Some(label) => format!("{label} on {}", disk.device),
            None => join_index(&disk.device, i),
        })
    });
    let arrays = storage.raid.iter().flatten().map(|array| {
        let devices = array.devices.as_deref().unwrap_or_default().join(", ");
        format!("{} of {devices}", array.name)
    });
    let volumes = storage.luks.iter().flatten().map(|volume| {
        let device = volume.device.as_deref().unwrap_or_default();
        format!("{} on {device}", volume.name)
    });
    let filesystems = storage.filesystems.iter().flatten().map(|filesystem| {
        let format = filesystem.format.as_deref().unwrap_or("none");
        let path = filesystem.path.as_deref().filter(|path| !path.is_empty());
        let at = path.map_or(String::new(), |path| format!(" at {path}"));
        format!("{format} on {}{at}", filesystem.device)
    });
    let directories = storage.directories.iter().flatten();
    let links = storage.links.iter().flatten();
    let files = storage.files.iter().flatten();
    vec![
        ("partitions", partitions.collect()),
        ("RAID arrays", arrays.collect()),
        ("encrypted volumes", volumes.collect()),
        ("file systems", filesystems.collect()),
        ("directories", directories.map(|d| d.path.clone()).collect()),
        (
            "files",
            files
                .map(|file| {
                    let parts = file.append.iter().flatten();
                    with_source(&file.path, file.contents.iter().chain(parts))
                })
                .collect(),
        ),
        ("links", links.map(|link| link.path.clone()).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Ignition 2.14.0 leaves them in /run, with a config of the shape that coreos/fedora-coreos-docs
    /// `remote-ign.adoc` and `storage.adoc` show.
    const STATE_LEFT: &str = r#"{"fetchedConfigs":[{"kind":"user","source":"system","referenced":false},
        {"kind":"user","source":"https://me:secret@example.com/sample.ign?token=secret","referenced":true}],
        "luksPersistKeyFiles":null,"notatedDirectories":null}"#;

    fn merged() -> Value {
        json!({
            "ignition": {"version": "3.4.0-experimental", "config": {"replace": {"verification": {}}}, "proxy": {}},
            "kernelArguments": {"shouldExist": ["mitigations=auto"], "shouldNotExist": ["quiet"]},
            "passwd": {"users": [{"name": "core", "passwordHash": "$6$secret"}], "groups": [{"name": "docker"}]},
            "storage": {
                "disks": [{"device": "/dev/vdb", "partitions": [{"label": "var", "sizeMiB": 0}]}],
                "raid": [{"name": "data", "level": "raid1", "devices": ["/dev/vdc", "/dev/vdd"]}],
                "luks": [{"name": "secret", "device": "/dev/vde"}],
                "filesystems": [{"device": "/dev/disk/by-partlabel/var", "format": "xfs", "path": "/var/data"}],
                "files": [
                    {"path": "/etc/motd", "contents": {"source": "data:,secret"}},
                    {"path": "/opt/tool", "mode": 493, "contents": {"source": "https://example.com/tool?sig=secret"}},
                    {"path": "/tmp/x", "contents": {"source": "data:,x"}},
                ],
            },
            "systemd": {"units": [{"name": "docker.service", "enabled": true}]},
        })
    }

    #[test]
    fn a_record_has_names_and_sources_but_no_secrets() {
        let record = Record::of(&merged().to_string(), STATE_LEFT, "qemu").unwrap();
        let text = record.to_string();
        for line in [
            "platform:\n  qemu\n",
            "configs:\n  user: system\n  user, referenced: https://example.com/sample.ign\n",
            "kernel arguments:\n  mitigations=auto\n  without quiet\n",
            "partitions:\n  var on /dev/vdb\n",
            "RAID arrays:\n  data of /dev/vdc, /dev/vdd\n",
            "encrypted volumes:\n  secret on /dev/vde\n",
            "file systems:\n  xfs on /dev/disk/by-partlabel/var at /var/data\n",
            "groups:\n  docker\nusers:\n  core\nunits:\n  docker.service\n",
            "files:\n  /etc/motd\n  /opt/tool from https://example.com/tool\n  /tmp/x\n",
            "storage.files[2].path: /tmp is created at every boot",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(text.matches("secret").count(), 1, "{text}");
    }

    #[test]
    fn a_record_is_kept_on_the_machine() {
        let run = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(root.path()).unwrap(), None);
        assert!(record_command(run.path(), "qemu", root.path()).is_err());
        fs::write(run.path().join(MERGED), merged().to_string()).unwrap();
        record_command(run.path(), "qemu", root.path()).unwrap();
        let record = Record::read(root.path()).unwrap().unwrap();
        assert_eq!(
            record,
            Record::of(&merged().to_string(), "", "qemu").unwrap()
        );
        fs::write(root.path().join(RECORD), "{").unwrap();
        assert!(Record::read(root.path()).is_err());
    }

    #[test]
    fn an_empty_config_makes_nothing() {
        let record = Record::of(
            r#"{"ignition":{"version":"3.4.0-experimental"}}"#,
            "{}",
            "metal",
        );
        assert_eq!(record.unwrap().to_string(), "platform:\n  metal\n");
        for text in ["", "[]", "{\"ignition\":[]}", "5"] {
            let _any_result = Record::of(text, "", "metal");
        }
    }
}
