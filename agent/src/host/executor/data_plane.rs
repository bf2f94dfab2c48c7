//! The data plane of the udp backend as a part of the executor.
//!
//! Its TUN device exists for as long as it does. To the kernel that is some TUN device; that it is ours, and what is behind
//! it, is known here alone.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;

use crate::base::logging::chain;
use crate::base::net::InterfaceName;
use crate::host::netlink::{ChangeError, Tuns};
use crate::host::udp::{Counters, DataPlane, Settings};
use crate::plan::state::{Change, Key, Object, Tun};

/// What stands behind the TUN device, if there is one of ours.
#[derive(Debug, Default)]
pub(super) struct Slot(Option<DataPlane>);

impl Slot {
    /// What went through, and what did not and why, if there is a data plane.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.0.as_ref().map(DataPlane::counters)
    }

    /// Whether there is a data plane behind a device.
    pub(super) fn has(&self, name: &InterfaceName) -> bool {
        self.plane(name).is_some()
    }

    /// The device, while it is there.
    pub(super) fn device(&self) -> Option<(InterfaceName, Tun)> {
        let plane = self.0.as_ref().filter(|plane| plane.is_alive())?;
        let tun = Tun {
            address: plane.address(),
            bind: plane.bind(),
        };
        Some((plane.name().clone(), tun))
    }

    /// The table of the data plane behind a device.
    pub(super) fn observe(&self, name: &InterfaceName) -> Vec<(Key, Object)> {
        let routes = self.plane(name).map(DataPlane::routes).unwrap_or_default();
        let object = |(subnet, peer)| (Key::Forward(name.clone(), subnet), Object::Forward(peer));
        routes.into_iter().map(object).collect()
    }

    /// Makes the changes of the table, all at once; one outcome for each. `broken` are devices that could not be made.
    pub(super) fn apply(
        &self,
        changes: &[Change],
        broken: &BTreeSet<InterfaceName>,
    ) -> Vec<Result<(), ChangeError>> {
        let mut entries = Vec::new();
        let mut judge = |change: &Change| {
            let Key::Forward(link, subnet) = change.key() else {
                return Ok(());
            };
            match change {
                _ if broken.contains(link) => return Err(ChangeError::Dependency),
                Change::Set { .. } if !self.has(link) => {
                    return Err(ChangeError::NoDevice(link.clone()));
                }
                _ => entries.push((*subnet, peer(change))),
            }
            Ok(())
        };
        let outcomes = changes.iter().map(&mut judge).collect();
        if let (false, Some(plane)) = (entries.is_empty(), &self.0) {
            plane.update(entries);
        }
        outcomes
    }

    fn plane(&self, name: &InterfaceName) -> Option<&DataPlane> {
        self.0.as_ref().filter(|plane| plane.name() == name)
    }
}

/// Who gets a subnet's packets after a change.
fn peer(change: &Change) -> Option<SocketAddrV4> {
    match change {
        Change::Set {
            object: Object::Forward(peer),
            ..
        } => Some(*peer),
        Change::Set { .. } | Change::Del { .. } => None,
    }
}

impl Tuns for Slot {
    fn open(&mut self, name: &InterfaceName, tun: &Tun, mtu: u32) -> Result<(), ChangeError> {
        // One that lost its device may still have the port.
        self.0 = None;
        let settings = Settings {
            name: name.clone(),
            address: tun.address,
            mtu,
            bind: tun.bind,
            workers: None,
        };
        let opened = DataPlane::open(&settings);
        let plane = opened.map_err(|error| ChangeError::DataPlane {
            text: chain(&error),
            errno: error.errno(),
        })?;
        // The wire format has no place for IPv6, so the device needs no link-local address, and its solicitations would
        // only be dropped. Nothing is lost where there is no IPv6.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        self.0 = Some(plane);
        Ok(())
    }

    fn set_mtu(&mut self, name: &InterfaceName, mtu: u32) {
        if let Some(plane) = self.plane(name) {
            plane.set_mtu(mtu);
        }
    }

    fn close(&mut self, name: &InterfaceName) {
        if self.has(name) {
            self.0 = None;
        }
    }
}
