//! The network configuration that the runtime gives on standard input.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::environment::{Interface, is_identifier};
use super::error::Error;
use super::version::Version;
use crate::base::go_json::{GoJsonError, Object, replace_lone_surrogates};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// The keys that this plugin reads; all others are skipped, as in flannel.
#[derive(Clone, Debug)]
pub(super) struct NetConf {
    /// The network's name, safe in a file name.
    pub(super) name: String,
    /// `cniVersion`; `None` if missing, which means 0.1.0 and is passed on as missing.
    pub(super) cni_version: Option<Version>,
    pub(super) subnet_file: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) delegate: Map<String, Value>,
    pub(super) ipam: Map<String, Value>,
    pub(super) runtime_config: Option<Map<String, Value>>,
    /// The result of the ADD; part of CHECK and DEL since 0.4.0.
    pub(super) prev_result: Option<Map<String, Value>>,
    /// The attachments that the runtime knows; part of GC.
    pub(super) valid_attachments: Option<Vec<Interface>>,
}

impl NetConf {
    /// Parses the configuration. Keys match in any letter case, as in Go; invalid UTF-8 and unpaired surrogates are
    /// replaced.
    pub(super) fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let text = String::from_utf8_lossy(stdin);
        let text = replace_lone_surrogates(&text);
        let object = Object::parse(&text).map_err(Error::NotJson)?;
        let string = |name| {
            let value: Option<String> = object.get(name, "a string").map_err(Error::NetConf)?;
            Ok(value.filter(|value| !value.is_empty()))
        };
        let name = string("name")?.ok_or(Error::NoName)?;
        if !is_identifier(&name) {
            return Err(Error::InvalidName(name));
        }
        let cni_version = match string("cniVersion")? {
            None => None,
            Some(config) => {
                Some(Version::parse(&config).ok_or(Error::IncompatibleVersion { config })?)
            }
        };
        let map = |name| object_of(&object, name).map_err(Error::NetConf);
        Ok(Self {
            name,
            cni_version,
            subnet_file: string("subnetFile")?.map_or(SUBNET_FILE.into(), PathBuf::from),
            data_dir: string("dataDir")?.map_or(DATA_DIR.into(), PathBuf::from),
            delegate: map("delegate")?.unwrap_or_default(),
            ipam: map("ipam")?.unwrap_or_default(),
            runtime_config: map("runtimeConfig")?,
            prev_result: map("prevResult")?,
            valid_attachments: valid_attachments(&object).map_err(Error::NetConf)?,
        })
    }

    /// The version of the specification that the configuration uses.
    pub(super) fn version(&self) -> Version {
        self.cni_version.unwrap_or(Version::V0_1_0)
    }
}

fn object_of(
    object: &Object<'_>,
    name: &'static str,
) -> Result<Option<Map<String, Value>>, GoJsonError> {
    object.get(name, "an object")
}

/// The two keys of GC: libcni writes both, its releases 1.2.0 to 1.2.2 only the second. An attachment in either list is
/// known to the runtime. `null` is how Go writes an empty list that was never filled, which is what CRI-O has when no
/// pod of the network is left.
fn valid_attachments(object: &Object<'_>) -> Result<Option<Vec<Interface>>, GoJsonError> {
    let expected = "a list of objects with containerID and ifname";
    let mut all: Option<Vec<Interface>> = None;
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        if object.raw(key).is_none() {
            continue;
        }
        let list: Option<Vec<Map<String, Value>>> = object.get(key, expected)?;
        for entry in list.unwrap_or_default() {
            let text = Value::Object(entry).to_string();
            let entry = Object::parse(&text)?;
            let interface = Interface {
                container_id: entry.required("containerID", "a string")?,
                name: entry.required("ifname", "a string")?,
            };
            all.get_or_insert_default().push(interface);
        }
        all.get_or_insert_default();
    }
    Ok(all)
}
