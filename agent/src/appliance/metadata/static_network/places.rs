//! The places that may have a document.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde_json::Value;

use super::{Error, Form, LARGEST, Problem};
use crate::appliance::metadata::drive::Drive;
use crate::appliance::metadata::http::Trouble;
use crate::appliance::metadata::providers::{CONFIG_DRIVE, NO_CLOUD, OPENSTACK_DRIVE};
use crate::appliance::metadata::{Site, guestinfo};
use crate::base::words::harmless;
use crate::base::yaml;

/// Where QEMU hands over what is given as `-fw_cfg name=opt/selvage/network,file=…`.
const FW_CFG: &str = "sys/firmware/qemu_fw_cfg/by_name/opt/selvage/network/raw";

/// The document in OpenStack's form, and the one of NoCloud.
const NETWORK_DATA: &str = "openstack/latest/network_data.json";
const NETWORK_CONFIG: &str = "network-config";

/// A document that the platform has.
pub(super) struct Document {
    /// Where it is from, for people.
    pub(super) place: String,
    pub(super) form: Form,
    pub(super) bytes: Vec<u8>,
}

/// What QEMU hands over.
pub(super) fn fw_cfg(root: &Path) -> Result<Option<Document>, Error> {
    let place = "opt/selvage/network of QEMU's fw_cfg".to_owned();
    let mut bytes = Vec::new();
    // Each read starts from the beginning of the item, so a larger one would take ever longer.
    let read = File::open(root.join(FW_CFG))
        .and_then(|file| file.take(LARGEST as u64 + 1).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { place, source }),
        Ok(_) => Ok(Some(Document {
            place,
            form: Form::NetworkConfig,
            bytes,
        })),
    }
}

/// The key `network` of VMware's metadata: a network config, or a text of one, encoded as `network.encoding` says.
pub(super) fn of_guestinfo(site: &Site) -> Result<Option<Document>, Error> {
    let Some(metadata) = guestinfo::decoded(site, guestinfo::METADATA)? else {
        return Ok(None);
    };
    let place = format!("network in {}", guestinfo::name(guestinfo::METADATA));
    let document = |problem| Error::Document {
        place: place.clone(),
        problem,
    };
    let text = String::from_utf8(metadata).map_err(|_| document(Problem::NotText))?;
    let value = yaml::parse(&text).map_err(|problem| document(Problem::Syntax(problem)))?;
    let bytes = match value.get("network") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => {
            let encoding = value.get("network.encoding").and_then(yaml::text_of);
            guestinfo::decode(text, &encoding.unwrap_or_default())
                .map_err(|problem| document(Problem::Syntax(problem)))?
        }
        Some(network) => network.to_string().into_bytes(),
    };
    Ok(Some(Document {
        place,
        form: Form::NetworkConfig,
        bytes,
    }))
}

/// What is on a drive, whatever the platform: somebody has attached it to this machine.
pub(super) fn on_a_drive(root: &Path) -> Result<Option<Document>, Error> {
    for (labels, path, form) in [
        (CONFIG_DRIVE, NETWORK_DATA, Form::NetworkData),
        (NO_CLOUD, NETWORK_CONFIG, Form::NetworkConfig),
    ] {
        let drive = match Drive::open(root, labels) {
            Ok(drive) => drive,
            Err(Trouble::NoDrive(_)) => continue,
            Err(trouble) => return Err(trouble.into()),
        };
        if let Some(bytes) = drive.read(path)? {
            let place = drive.name(path);
            return Ok(Some(Document { place, form, bytes }));
        }
        // What Proxmox VE writes for Windows, and OpenStack wrote before it had network_data.json.
        let metadata = match form {
            Form::NetworkData => drive.read(OPENSTACK_DRIVE)?.unwrap_or_default(),
            Form::NetworkConfig => Vec::new(),
        };
        let metadata: Value = serde_json::from_slice(&metadata).unwrap_or_default();
        let content = metadata.pointer("/network_config/content_path");
        if let Some(content) = content.and_then(yaml::text_of) {
            let place = drive.name(&format!("openstack{}", harmless(&content)));
            let problem = Problem::Interfaces;
            return Err(Error::Document { place, problem });
        }
    }
    Ok(None)
}
