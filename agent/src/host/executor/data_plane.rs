//! The data plane of the udp backend as a part of the executor.
//!
//! Its TUN device exists as long as the data plane does. The kernel reports only a TUN device; that it is ours, and its
//! options, are known only here.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;

use crate::base::logging::chain;
use crate::base::net::InterfaceName;
use crate::host::netlink::{ChangeError, TunDevices};
use crate::host::udp::{Counters, DataPlane, Settings};
use crate::plan::state::{Change, Key, Object, Tun};

/// The data plane of our TUN device, if there is one.
#[derive(Debug, Default)]
pub(super) struct Slot {
    plane: Option<DataPlane>,
    /// The new entries of the table while the kernel's part is programmed, for a device that is opened meanwhile.
    next: Vec<Entry>,
}

/// A subnet of a device's table, and its peer after a change.
type Entry = (InterfaceName, Ipv4Net, Option<SocketAddrV4>);

impl Slot {
    /// Its counters, if there is a data plane.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.plane.as_ref().map(DataPlane::counters)
    }

    /// Whether a device is served by our data plane.
    pub(super) fn has(&self, name: &InterfaceName) -> bool {
        self.of(name).is_some()
    }

    /// The device, while it exists.
    pub(super) fn device(&self) -> Option<(InterfaceName, Tun)> {
        let plane = self.plane.as_ref().filter(|plane| plane.is_alive())?;
        let tun = Tun {
            address: plane.address(),
            bind: plane.bind(),
        };
        Some((plane.name().clone(), tun))
    }

    /// The routes of a device's data plane.
    pub(super) fn observe(&self, name: &InterfaceName) -> Vec<(Key, Object)> {
        let routes = self.of(name).map(DataPlane::routes).unwrap_or_default();
        let object = |(subnet, peer)| (Key::Forward(name.clone(), subnet), Object::Forward(peer));
        routes.into_iter().map(object).collect()
    }

    /// Adds the new entries to the table. They have to be there before the kernel routes packets into the device: one
    /// without an entry is dropped.
    pub(super) fn prepare(&mut self, changes: &[Change]) {
        self.next = changes.iter().filter_map(entry).collect();
        self.next.retain(|(_, _, peer)| peer.is_some());
        self.put(&self.next);
    }

    /// Removes entries, once the kernel no longer routes packets to them; returns one result per change, those that
    /// [`Self::prepare`] has made included. `broken` lists devices that could not be created.
    pub(super) fn finish(
        &mut self,
        changes: &[Change],
        broken: &BTreeSet<InterfaceName>,
    ) -> Vec<Result<(), ChangeError>> {
        self.next.clear();
        let mut old: Vec<Entry> = changes.iter().filter_map(entry).collect();
        old.retain(|(_, _, peer)| peer.is_none());
        self.put(&old);
        let outcome = |change: &Change| match (change, change.key()) {
            (_, Key::Forward(link, _)) if broken.contains(link) => Err(ChangeError::Dependency),
            (Change::Set { .. }, Key::Forward(link, _)) if !self.has(link) => {
                Err(ChangeError::NoDevice(link.clone()))
            }
            _ => Ok(()),
        };
        changes.iter().map(outcome).collect()
    }

    /// Changes the table of the device that there is, all at once.
    fn put(&self, entries: &[Entry]) {
        let Some(plane) = &self.plane else {
            return;
        };
        let mine = entries.iter().filter(|(link, ..)| link == plane.name());
        let mut mine = mine.map(|(_, subnet, peer)| (*subnet, *peer)).peekable();
        if mine.peek().is_some() {
            plane.update(mine);
        }
    }

    fn of(&self, name: &InterfaceName) -> Option<&DataPlane> {
        self.plane.as_ref().filter(|plane| plane.name() == name)
    }
}

/// What a change does to the table.
fn entry(change: &Change) -> Option<Entry> {
    let Key::Forward(link, subnet) = change.key() else {
        return None;
    };
    let peer = match change {
        Change::Set {
            object: Object::Forward(peer),
            ..
        } => Some(*peer),
        Change::Set { .. } | Change::Del { .. } => None,
    };
    Some((link.clone(), *subnet, peer))
}

impl TunDevices for Slot {
    fn open(&mut self, name: &InterfaceName, tun: &Tun, mtu: u32) -> Result<(), ChangeError> {
        // A data plane that lost its device may still hold the port.
        self.plane = None;
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
        // The wire format cannot carry IPv6, so the device needs no link-local address, and the data plane would only
        // drop its solicitations. Errors are ignored: without IPv6 the file is missing.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        self.plane = Some(plane);
        self.put(&self.next);
        Ok(())
    }

    fn set_mtu(&mut self, name: &InterfaceName, mtu: u32) {
        if let Some(plane) = self.of(name) {
            plane.set_mtu(mtu);
        }
    }

    fn close(&mut self, name: &InterfaceName) {
        if self.has(name) {
            self.plane = None;
        }
    }
}
