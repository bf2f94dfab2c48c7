//! The difference between the wanted and the observed state, in an order that loses no packets of objects that stay.

use std::fmt;

use super::{Described, Key, Link, LinkKind, Object, State};
use crate::base::net::InterfaceName;

/// One step towards the wanted state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Create the object, or change the existing one into it.
    Set {
        /// Which object.
        key: Key,
        /// Its wanted attributes.
        object: Object,
        /// Its last observed attributes; `None` if it did not exist.
        was: Option<Object>,
    },
    /// Remove the object.
    Del {
        /// Which object.
        key: Key,
        /// Its last observed attributes.
        was: Object,
    },
}

impl Change {
    /// Which object is changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Set { key, .. } | Self::Del { key, .. } => key,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set {
                key,
                object,
                was: None,
            } => write!(f, "add {}", Described(key, object)),
            Self::Set { key, object, .. } => write!(f, "replace {}", Described(key, object)),
            Self::Del { key, was } => write!(f, "del {}", Described(key, was)),
        }
    }
}

/// How to turn an observed device into the wanted one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkChange {
    /// Nothing.
    None,
    /// The kind's `changelink()` and `dev_set_…()` can do it: outer source address, learning, MTU, MAC address, up;
    /// and of WireGuard everything.
    InPlace,
    /// The kernel fixes what differs at creation: the kind; of VXLAN the VNI, port, underlay device, outer family,
    /// group policy and checksums; of a TUN device all settings of its data plane.
    Recreate,
}

impl LinkChange {
    /// Compares an observed device with the wanted one.
    pub fn between(was: &Object, want: &Link) -> Self {
        let Object::Link(was) = was else {
            return Self::Recreate;
        };
        let same_device = match (&was.kind, &want.kind) {
            (LinkKind::Vxlan(was), LinkKind::Vxlan(want)) => {
                was.vni == want.vni
                    && was.port == want.port
                    && was.underlay_index == want.underlay_index
                    && was.local.is_ipv4() == want.local.is_ipv4()
                    && was.gbp == want.gbp
                    && was.checksum == want.checksum
            }
            (LinkKind::Ipip(_), LinkKind::Ipip(_))
            | (LinkKind::Wireguard(_), LinkKind::Wireguard(_)) => true,
            (LinkKind::Tun(was), LinkKind::Tun(want)) => was == want,
            _ => false,
        };
        match same_device {
            _ if **was == *want => Self::None,
            true => Self::InPlace,
            false => Self::Recreate,
        }
    }
}

/// What the kernel drops when links change, and what must therefore be created again.
#[derive(Default)]
struct Losses<'a> {
    /// Devices that are removed, for good or to be recreated.
    gone: Vec<&'a InterfaceName>,
    /// Devices whose own address changes, which empties their neighbor table (`neigh_changeaddr()`).
    readdressed: Vec<&'a InterfaceName>,
}

impl<'a> Losses<'a> {
    fn of(desired: &'a State, observed: &'a State) -> Self {
        let mut losses = Self::default();
        for (key, was) in observed {
            // Links come first in key order.
            let Key::Link(name) = key else { break };
            match (desired.get(key), was) {
                (Some(Object::Link(want)), was) => match LinkChange::between(was, want) {
                    LinkChange::Recreate => losses.gone.push(name),
                    LinkChange::InPlace => {
                        if matches!(was, Object::Link(was) if was.kind.mac() != want.kind.mac()) {
                            losses.readdressed.push(name);
                        }
                    }
                    LinkChange::None => {}
                },
                (_, _) => losses.gone.push(name),
            }
        }
        losses
    }

    fn takes(&self, key: &Key, object: &Object) -> bool {
        if let (Key::Route(_), Object::Route(route)) = (key, object) {
            return self.gone.contains(&&route.link);
        }
        key.link().is_some_and(|link| {
            self.gone.contains(&link)
                || matches!(key, Key::Neighbor(..)) && self.readdressed.contains(&link)
        })
    }
}

/// Lists the changes that turn `observed` into `desired`; none if they are equal.
///
/// Wanted objects are set first, in key order, then unwanted ones are removed in reverse order: a route always points
/// at a complete path, the old or the new one. Exceptions are a device that must be recreated, and an address of ours
/// that now belongs to a peer: the kernel refuses a gateway that is a local address.
pub fn diff(desired: &State, observed: &State) -> Vec<Change> {
    let losses = Losses::of(desired, observed);
    let mut changes = Vec::new();
    let is_gateway_now = |key: &Key| match key {
        Key::Address(link, address) => {
            let gateway = Key::NextHop(link.clone(), address.addr());
            !desired.contains_key(key) && desired.contains_key(&gateway)
        }
        _ => false,
    };
    // Links and addresses come first in key order.
    let is_first = |key: &Key| matches!(key, Key::Link(_) | Key::Address(..));
    for (key, want) in desired.iter().take_while(|(key, _)| is_first(key)) {
        set(&mut changes, key, want, observed.get(key), &losses);
    }
    for (key, was) in observed.iter().take_while(|(key, _)| is_first(key)) {
        if is_gateway_now(key) {
            del(&mut changes, key, was, &losses);
        }
    }
    for (key, want) in desired.iter().skip_while(|(key, _)| is_first(key)) {
        set(&mut changes, key, want, observed.get(key), &losses);
    }
    for (key, was) in observed.iter().rev() {
        if !desired.contains_key(key) && !is_gateway_now(key) {
            del(&mut changes, key, was, &losses);
        }
    }
    changes
}

/// As [`diff`], but looks at the given keys only, so that one peer's change costs no walk over all peers.
///
/// The keys must not include links: only [`diff`] handles the side effects of a link's change.
pub fn diff_keys<'a, I>(keys: I, desired: &State, observed: &State) -> Vec<Change>
where
    I: IntoIterator<Item = &'a Key>,
    I::IntoIter: DoubleEndedIterator + Clone,
{
    let keys = keys.into_iter();
    let losses = Losses::default();
    let mut changes = Vec::new();
    for key in keys.clone() {
        if let Some(want) = desired.get(key) {
            set(&mut changes, key, want, observed.get(key), &losses);
        }
    }
    for key in keys.rev() {
        if let (None, Some(was)) = (desired.get(key), observed.get(key)) {
            del(&mut changes, key, was, &losses);
        }
    }
    changes
}

fn set(
    changes: &mut Vec<Change>,
    key: &Key,
    want: &Object,
    was: Option<&Object>,
    losses: &Losses<'_>,
) {
    let was = was.filter(|was| !losses.takes(key, was));
    if was.is_some_and(|was| was.satisfies(want)) {
        return;
    }
    let mut was = was.cloned();
    if let (Key::Link(name), Some(old)) = (key, &was)
        && losses.gone.contains(&name)
    {
        changes.push(Change::Del {
            key: key.clone(),
            was: old.clone(),
        });
        was = None;
    }
    changes.push(Change::Set {
        key: key.clone(),
        object: want.clone(),
        was,
    });
}

fn del(changes: &mut Vec<Change>, key: &Key, was: &Object, losses: &Losses<'_>) {
    if !losses.takes(key, was) {
        changes.push(Change::Del {
            key: key.clone(),
            was: was.clone(),
        });
    }
}
