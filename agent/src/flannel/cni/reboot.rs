//! The first ADD after a reboot frees the addresses of the containers that the reboot ended.
//!
//! host-local keeps a file for each address in `/var/lib/cni/networks`, which outlives a reboot. No container does,
//! because network namespaces do not. For those containers the runtime should call DEL after the reboot, but often none
//! comes: the runtime crashed, forgot them, or never does so (containernetworking/plugins#252 and #697,
//! containerd/cri#948, cri-o/cri-o#4727, k3s-io/k3s#5885). After some reboots no address is left.
//!
//! An address is freed only if all of this holds:
//!
//! | what must hold | so that nothing is taken from |
//! |---|---|
//! | the mark `.boot` in the data directory has the ID of another boot | containers on a host that did not reboot. The first ADD of each boot writes the mark before its record, and all wait for it: no record is of a container that this plugin added in this boot |
//! | the container has a record of ours | containers of flannel's plugin, which writes no mark |
//! | all files of the container are older than this boot, by the wall clock | a container that flannel's plugin added in this boot with an ID that we had before; runtimes in system containers (systemd-nspawn), each with a boot ID of its own, that share the directory |
//!
//! A directory without a mark is marked, and nothing is freed. If a clock is wrong, at worst an address stays taken
//! until the next reboot. Two hosts that share the directory at a time would hurt each other, but they give out the
//! same addresses anyway: host-local's directory is shared then, too.
//!
//! Only addresses are freed, by host-local itself: all else that an attachment had, the kernel has forgotten.

use std::ffi::OsStr;

use super::attachment::{Attachment, Store};
use super::delegate::{self, HOST_LOCAL};
use super::error::Error;
use super::plugin::Plugin;
use super::verbs::note;
use crate::base::boot;

/// Frees what containers of former boots have, if this is the first ADD of this boot; `path` is `CNI_PATH`.
///
/// Not being able to free an address is no error: then ADD goes on, and the record stays for GC or the next reboot.
///
/// # Errors
/// The mark cannot be read or written. Then no record may be written, either: it would be taken for one of a former
/// boot.
pub(super) fn free_addresses(store: &Store, path: &OsStr) -> Result<(), Error> {
    let this = boot::id();
    if this.is_empty() || store.boot()?.is_some_and(|mark| mark == this) {
        return Ok(());
    }
    let _lock = store.lock()?;
    match store.boot()? {
        Some(mark) if mark == this => return Ok(()),
        Some(_) => free_all(store, path),
        None => {}
    }
    store.set_boot(&this)
}

fn free_all(store: &Store, path: &OsStr) {
    let Some(start) = boot::start() else {
        return;
    };
    let records = store.records_before(start).unwrap_or_else(|error| {
        note(&error.to_string());
        Vec::new()
    });
    for record in records {
        match free(store, &record, path) {
            Ok(true) => note(&format!(
                "flannel: freed the address of {}, which a reboot has ended",
                record.interface
            )),
            Ok(false) => {}
            Err(error) => note(&format!(
                "flannel: failed to free the address of {}, which a reboot has ended: {error}",
                record.interface
            )),
        }
    }
}

/// Returns whether host-local had given out the address.
fn free(store: &Store, record: &Attachment, path: &OsStr) -> Result<bool, Error> {
    let Some(configuration) = record.delegate() else {
        return Ok(false);
    };
    let kind = configuration.get("ipam").and_then(|ipam| ipam.get("type"));
    if kind.is_none_or(|kind| kind != HOST_LOCAL) {
        return Ok(false);
    }
    let plugin = Plugin::find(HOST_LOCAL, path, "DEL")?;
    plugin.call_about(
        &record.interface,
        "DEL",
        &delegate::serialize(configuration),
    )?;
    store.remove(record)?;
    Ok(true)
}
