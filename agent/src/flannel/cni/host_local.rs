//! Addresses that host-local gave out and nobody remembers: it has no GC of its own (containernetworking/plugins#1047).
//!
//! It keeps a file for each address of a network: `<dataDir>/<network>/10.1.17.2` with the container's ID and, since
//! 0.7, the interface on a second line. A container without a record has one of those if flannel's plugin lost its
//! record in a DEL that failed, or if somebody removed the records.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::attachment::FIRST_INTERFACE;
use super::delegate::HOST_LOCAL;
use super::environment::{Interface, is_identifier};
use super::error::Error;

/// The default of host-local's `dataDir`.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// The longest file that is read, in bytes: an ID and a name.
const MAX_BYTES: u64 = 4096;

/// The attachments with an address of host-local, by a delegate's configuration. None if another plugin gives them out.
///
/// # Errors
/// The directory cannot be listed.
pub(super) fn attachments(delegate: &Map<String, Value>) -> Result<BTreeSet<Interface>, Error> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(ToOwned::to_owned);
    let ipam = delegate.get("ipam");
    let of_ipam = |key| text(ipam.and_then(|ipam| ipam.get(key)));
    let (Some(network), Some(HOST_LOCAL)) =
        (text(delegate.get("name")), of_ipam("type").as_deref())
    else {
        return Ok(BTreeSet::new());
    };
    let data = of_ipam("dataDir").filter(|path| !path.is_empty());
    let directory = data.map_or(DATA_DIR.into(), PathBuf::from).join(network);
    let failed = |source| Error::State {
        action: "list",
        path: directory.clone(),
        source,
    };
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        found.extend(attachment(&entry.map_err(failed)?.path()));
    }
    Ok(found)
}

/// Whose address this is; `None` if the file is not one of an address.
fn attachment(path: &Path) -> Option<Interface> {
    let name = path.file_name()?.to_str()?;
    name.parse::<IpAddr>().ok()?;
    if fs::metadata(path).ok()?.len() > MAX_BYTES {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.trim().lines().map(str::trim);
    let container_id = lines.next().filter(|id| is_identifier(id))?;
    Some(Interface {
        container_id: container_id.to_owned(),
        name: lines.next().unwrap_or(FIRST_INTERFACE).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(directory: &Path, ipam: &str) -> Vec<String> {
        let conf = json!({"name": "cbr0", "ipam": {"type": ipam, "dataDir": directory}});
        let found = attachments(conf.as_object().unwrap()).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_of_addresses_name_their_attachment() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            found(directory.path(), "host-local"),
            [""; 0],
            "no directory"
        );
        let network = directory.path().join("cbr0");
        fs::create_dir(&network).unwrap();
        let long = "x".repeat(5000);
        for (name, text) in [
            ("10.244.1.2", "a1\r\neth0"),
            ("fd00::2", "a1\r\neth0"),
            ("10.244.1.3", "a1\r\nnet1\n"),
            // Of plugins before 0.7.
            ("10.244.1.4", "b2"),
            ("last_reserved_ip.0", "10.244.1.4"),
            ("lock", ""),
            ("10.244.1.5", ""),
            ("10.244.1.6", "../x\r\neth0"),
            ("10.244.1.7", &long),
        ] {
            fs::write(network.join(name), text).unwrap();
        }
        let expected = [
            "eth0 of container a1",
            "net1 of container a1",
            "eth0 of container b2",
        ];
        assert_eq!(found(directory.path(), "host-local"), expected);
        assert_eq!(found(directory.path(), "whereabouts"), [""; 0]);
    }
}
