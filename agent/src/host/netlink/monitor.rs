//! Notifications that another program changed the kernel's network configuration.
//!
//! A notification only says *that* something relevant changed; the current state is then observed. So notifications can
//! be merged or missed, and an overflown receive buffer counts as one.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::message::Message;
use super::observe::{is_inside, is_ours};
use super::socket::{DATAGRAM, Messages};
use super::xfrm::{self, NETLINK_XFRM, Notice, XfrmMessage};
use super::{Kernel, KernelError, address, filter, host, link, neighbor, route};
use crate::base::net::InterfaceName;
use crate::plan::state::{Key, Object, Scope, State};
use crate::plan::underlay::Underlay;

/// How long to wait for quiet before reporting: a burst of changes then costs one observation.
const QUIET: Duration = Duration::from_millis(100);

/// How long to hold back a report at most during a burst.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Receive buffer in bytes: room for the notifications of some thousand changes of our own while we make them.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How many single objects are tracked; beyond that, observe anyway.
const MAX_SUSPECTS: usize = 1024;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nexthop,
];

/// What another program changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changed {
    /// An object of ours, or one that conflicts with ours: observe and restore.
    pub objects: bool,
    /// The underlay's device or address, or the default route: choose the underlay again.
    pub underlay: bool,
}

impl Changed {
    fn is_any(self) -> bool {
        self.objects || self.underlay
    }

    fn add(&mut self, other: Self) {
        self.objects |= other.objects;
        self.underlay |= other.underlay;
    }
}

/// What [`Monitor::changed`] watches.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) scope: &'a Scope,
    pub(crate) desired: &'a State,
    pub(crate) underlay: &'a Underlay,
}

/// The meaning of a notification.
enum Verdict {
    /// Irrelevant.
    None,
    /// Another program changed this.
    Changed(Changed),
    /// The object is now as wanted.
    AsWanted(Key),
    /// The object is now not as wanted; the next notification may restore it.
    Suspect(Key),
    /// The underlay's device.
    Underlay {
        /// Whether it is unchanged.
        as_known: bool,
        /// Whether it has a carrier.
        carrier: bool,
    },
}

/// Receives the kernel's notifications.
pub struct Monitor {
    socket: TokioSocket,
    received: Vec<u8>,
    /// For policies of IPsec, once there are any.
    policies: Option<TokioSocket>,
    received_policies: Vec<u8>,
    /// The netlink port of our own changes.
    own_port: u32,
    pending: Changed,
    /// Objects that were not as wanted in their last notification. The kernel sets no sender port in notifications
    /// about FDB entries and devices, so our own changes are recognised by their result. Of routes and neighbors our own
    /// are [not received](super::filter): one that is mended meanwhile is looked at once more.
    suspects: BTreeSet<Key>,
    /// Whether the underlay's device differed in its last notification, so that its recovery is reported as well.
    underlay_differs: bool,
    /// Whether the underlay's device had no carrier in its last notification. The kernel then drops the device's next
    /// hops, and accepts none until the carrier is back.
    carrier_lost: bool,
    /// When to report; each further notification postpones it, up to a limit.
    report_at: Instant,
    report_at_latest: Instant,
}

impl Monitor {
    /// Subscribes. Changes made through `kernel` from now on are not reported.
    ///
    /// # Errors
    ///
    /// Out of file descriptors, or the kernel has no netlink.
    pub fn open(kernel: &Kernel) -> Result<Self, KernelError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let inner = socket.socket_mut();
            inner.bind(&SocketAddr::new(0, 0))?;
            // With CAP_NET_ADMIN this may exceed net.core.rmem_max.
            if setsockopt(&*inner, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
                inner.set_rx_buf_sz(RECEIVE_BUFFER)?;
            }
            // Optional: what comes nevertheless is recognised by its port.
            if let Err(error) = filter::drop_from(&*inner, kernel.socket.port()) {
                debug!(%error, "the kernel also queues notifications about this agent's own changes");
            }
            for group in GROUPS {
                match inner.add_membership(group as u32) {
                    // Kernels before 5.3 have no next hops and no such group.
                    Err(_) if group == MulticastGroup::Nexthop => {}
                    result => result?,
                }
            }
            Ok(socket)
        };
        let now = Instant::now();
        Ok(Self {
            socket: open().map_err(KernelError::Open)?,
            received: Vec::with_capacity(DATAGRAM),
            policies: None,
            received_policies: Vec::new(),
            own_port: kernel.socket.port(),
            pending: Changed::default(),
            suspects: BTreeSet::new(),
            underlay_differs: false,
            carrier_lost: false,
            report_at: now,
            report_at_latest: now,
        })
    }

    /// Waits until another program has changed something relevant and 100 ms have been quiet, at most 1 s after the
    /// change.
    ///
    /// Cancel-safe: changes not yet reported are kept for the next call.
    pub async fn changed(&mut self, watch: &Watch<'_>) -> Changed {
        self.listen_to_policies(watch);
        loop {
            let had_pending = self.has_pending();
            let (report_at, receive) = (self.report_at, self.receive());
            let result = if had_pending {
                match timeout_at(report_at, receive).await {
                    Ok(result) => result,
                    Err(_) => return self.take_pending(),
                }
            } else {
                receive.await
            };
            let any = match result {
                Ok(()) => self.take(watch),
                Err(error) => {
                    // ENOBUFS means that the kernel dropped notifications; anything may have changed.
                    if error.raw_os_error() == Some(Errno::ENOBUFS as i32) {
                        debug!("the receive buffer overflowed and lost kernel notifications");
                    } else {
                        warn!(%error, "failed to receive kernel notifications");
                        sleep(MAX_DELAY).await;
                    }
                    self.pending = Changed {
                        objects: true,
                        underlay: true,
                    };
                    true
                }
            };
            let now = Instant::now();
            if any && !had_pending {
                self.report_at_latest = now + MAX_DELAY;
            }
            if any {
                self.report_at = (now + QUIET).min(self.report_at_latest);
            }
        }
    }

    /// Waits for a datagram of either socket. Cancel-safe.
    async fn receive(&mut self) -> io::Result<()> {
        self.received.clear();
        self.received_policies.clear();
        let of_policies = async {
            match &mut self.policies {
                Some(socket) => socket.recv(&mut self.received_policies).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = self.socket.recv(&mut self.received) => result,
            result = of_policies => result,
        }
    }

    /// Subscribes to notifications about policies, unless that is done or there are none. Without them policies are
    /// only checked periodically.
    fn listen_to_policies(&mut self, watch: &Watch<'_>) {
        if !watch.scope.ipsec || self.policies.is_some() {
            return;
        }
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_XFRM)?;
            let inner = socket.socket_mut();
            inner.bind(&SocketAddr::new(0, 0))?;
            inner.set_rx_buf_sz(RECEIVE_BUFFER)?;
            inner.add_membership(xfrm::POLICY_GROUP)?;
            Ok::<_, io::Error>(socket)
        };
        match open() {
            Ok(socket) => {
                self.policies = Some(socket);
                // The socket writes only into what is there.
                self.received_policies.reserve(DATAGRAM);
                // One may have changed just before.
                self.pending.objects = true;
                self.report_at = Instant::now();
                self.report_at_latest = self.report_at;
            }
            Err(error) => debug!(%error, "failed to watch the policies of IPsec"),
        }
    }

    fn has_pending(&self) -> bool {
        self.pending.is_any() || !self.suspects.is_empty()
    }

    /// Handles the notifications of one datagram; returns whether any is relevant.
    fn take(&mut self, watch: &Watch<'_>) -> bool {
        let mut any = false;
        for message in Messages::<Message>::new(&self.received).flatten() {
            let own = message.header.port_number == self.own_port;
            let NetlinkPayload::InnerMessage(message) = message.payload else {
                continue;
            };
            match watch.judge(&message) {
                Verdict::AsWanted(key) => {
                    self.suspects.remove(&key);
                }
                Verdict::Suspect(key) if !own => {
                    self.suspects.insert(key);
                    any = true;
                }
                // The kernel sends a notification for every upper device and every carrier flap.
                Verdict::Underlay { as_known, carrier } => {
                    if self.underlay_differs || !as_known {
                        self.pending.underlay = true;
                        any = true;
                    }
                    self.underlay_differs = !as_known;
                    if self.carrier_lost && carrier {
                        self.pending.objects = true;
                        any = true;
                    }
                    self.carrier_lost = !carrier;
                }
                Verdict::Changed(changed) if !own && changed.is_any() => {
                    self.pending.add(changed);
                    any = true;
                }
                Verdict::None | Verdict::Changed(_) | Verdict::Suspect(_) => {}
            }
        }
        any |= self.take_policies(watch);
        if self.suspects.len() > MAX_SUSPECTS {
            self.suspects.clear();
            self.pending.objects = true;
        }
        any
    }

    /// As [`Self::take`], for the notifications about policies.
    fn take_policies(&mut self, watch: &Watch<'_>) -> bool {
        let mut any = false;
        let networks = &watch.scope.networks;
        for message in Messages::<XfrmMessage>::new(&self.received_policies).flatten() {
            let own = watch.kernel.xfrm.port() == Some(message.header.port_number);
            let NetlinkPayload::InnerMessage(message) = message.payload else {
                continue;
            };
            match xfrm::judge(&message, networks) {
                Notice::None => {}
                Notice::Gone if own => {}
                Notice::Gone => {
                    self.pending.objects = true;
                    any = true;
                }
                Notice::Set(key, object) => match watch.compare(key, object) {
                    Verdict::AsWanted(key) => {
                        self.suspects.remove(&key);
                    }
                    Verdict::Suspect(key) if !own => {
                        self.suspects.insert(key);
                        any = true;
                    }
                    _ => {}
                },
            }
        }
        any
    }

    /// Reports and resets what has changed.
    fn take_pending(&mut self) -> Changed {
        let mut changed = std::mem::take(&mut self.pending);
        changed.objects |= !std::mem::take(&mut self.suspects).is_empty();
        changed
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Watch<'_> {
    /// What a notification means to us.
    fn judge(&self, message: &Message) -> Verdict {
        match message {
            Message::NewNextHop(hop) | Message::DelNextHop(hop) => Verdict::Changed(Changed {
                objects: hop.protocol == route::PROTOCOL && self.kernel.ids.is_own(hop.id()),
                underlay: false,
            }),
            Message::NewLink(_) => self.judge_link(message, false),
            Message::DelLink(_) => self.judge_link(message, true),
            Message::NewNeighbour(_) => self.judge_neighbor(message, false),
            Message::DelNeighbour(_) => self.judge_neighbor(message, true),
            Message::NewAddress(_) | Message::DelAddress(_) => {
                let Some((index, address)) = address::read(message) else {
                    return Verdict::None;
                };
                Verdict::Changed(Changed {
                    // On any device: an address takes its route along, which may have been in the way of ours. If
                    // the device goes too, the kernel sends no notification for the route (`fib_sync_down_dev()`).
                    objects: is_inside(self.scope, &address),
                    // Every device gets a link-local IPv6 address, and no underlay uses one. On other devices only
                    // addresses that no subnet may contain matter, not each container's veth.
                    underlay: !matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
                        && (index == self.underlay.index
                            || address.prefix_len() < address.max_prefix_len()
                                && self.overlay(index).is_none()
                                && is_inside(self.scope, &address.addr().into())),
                })
            }
            Message::NewRoute(_) | Message::DelRoute(_) => self.judge_route(message),
            _ => Verdict::None,
        }
    }

    fn judge_link(&self, message: &Message, gone: bool) -> Verdict {
        let Some(link) = link::read(message).map(|link| self.kernel.recognise(link)) else {
            return Verdict::None;
        };
        if self.scope.links.contains(&link.name) && !self.kernel.is_lost(&link) {
            let key = Key::Link(link.name);
            if let (Some(Object::Link(want)), Object::Link(seen), false) =
                (self.desired.get(&key), &link.object, gone)
                && want.looks_like(seen)
            {
                return Verdict::AsWanted(key);
            }
            let object = (!gone).then_some(link.object);
            return self.compare(key, object);
        }
        let underlay = self.underlay;
        if link.index != underlay.index && link.name != underlay.name {
            return Verdict::None;
        }
        Verdict::Underlay {
            as_known: !gone
                && link.up
                && (link.index, link.mtu) == (underlay.index, underlay.mtu)
                && link.name == underlay.name,
            carrier: !gone && link.carrier,
        }
    }

    fn judge_neighbor(&self, message: &Message, gone: bool) -> Verdict {
        let of_overlay = neighbor::link_index(message).and_then(|index| {
            let name = self.overlay(index)?;
            neighbor::read(message, index, name)
        });
        match of_overlay {
            // An entry that the kernel learned is no object, but it may be in the place of one.
            Some(entry) => {
                let object = (!gone && entry.permanent).then_some(entry.object);
                self.compare(entry.key, object)
            }
            None => Verdict::None,
        }
    }

    fn compare(&self, key: Key, object: Option<Object>) -> Verdict {
        if self.desired.get(&key) == object.as_ref() {
            Verdict::AsWanted(key)
        } else {
            Verdict::Suspect(key)
        }
    }

    fn judge_route(&self, message: &Message) -> Verdict {
        // Another program's route matters if it is in the place of one of ours, or leads into the overlay. Others
        // inside the network come and go with containers.
        let objects = route::read(message).is_some_and(|route| {
            let is_overlay = |index| self.overlay(index).is_some();
            is_ours(&route, self.scope, &self.kernel.ids, is_overlay)
                || route
                    .link
                    .is_some_and(|index| self.overlay(index).is_some())
                || self.desired.contains_key(&Key::Route(route.destination))
        });
        Verdict::Changed(Changed {
            objects,
            underlay: host::is_default_route(message),
        })
    }

    /// The overlay device with that index.
    fn overlay(&self, index: u32) -> Option<&InterfaceName> {
        let links = &self.scope.links;
        links
            .iter()
            .find(|name| self.kernel.indices.get(*name) == Some(&index))
    }
}
