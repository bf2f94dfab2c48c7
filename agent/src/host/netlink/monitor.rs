//! News that somebody else changed the kernel's network configuration.
//!
//! The news only says *that* something concerns us; what there is now is then observed. So nothing is lost by merging news,
//! by missing some, or by a full buffer, which counts as news.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::message::Message;
use super::observe::{is_inside, is_ours};
use super::socket::{DATAGRAM, Messages};
use super::{Kernel, KernelError, address, host, link, neighbor, route};
use crate::base::net::InterfaceName;
use crate::plan::state::{Key, Object, Scope, State};
use crate::plan::underlay::Underlay;

/// How long it must be quiet before news is told: a burst of changes then costs one observation.
const QUIET: Duration = Duration::from_millis(100);

/// How long news is held back at most while the burst goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// Receive buffer in bytes: room for the news of some thousand changes of our own while we are busy making them.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How many single objects are kept in mind; more of them are worth an observation anyway.
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

/// What somebody else changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changed {
    /// Something of ours, or something in its way: observe and repair.
    pub objects: bool,
    /// The underlay's device or address, or the default route: look for the underlay again.
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

/// What is of concern, for [`Monitor::changed`].
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) scope: &'a Scope,
    pub(crate) desired: &'a State,
    pub(crate) underlay: &'a Underlay,
}

/// What a notification says.
enum News {
    /// Nothing of concern.
    None,
    /// Somebody changed this.
    Changed(Changed),
    /// Now the object is as wanted.
    AsWanted(Key),
    /// Now the object is not as wanted; the next notification may say that it is.
    Suspect(Key),
    /// The underlay's device.
    Underlay {
        /// Whether it is as known.
        as_known: bool,
        /// Whether it has a carrier.
        carrier: bool,
    },
}

/// Receives the kernel's notifications.
pub struct Monitor {
    socket: TokioSocket,
    received: Vec<u8>,
    /// The sender of the changes that are our own.
    own_port: u32,
    news: Changed,
    /// Objects that were not as wanted when last heard of. The kernel does not sign what it tells about forwarding
    /// entries and devices, so our own changes are known by where they lead.
    suspects: BTreeSet<Key>,
    /// Whether the underlay's device was not as known when last heard of, so that its recovery is news as well.
    underlay_strange: bool,
    /// Whether the underlay's device had no carrier when last heard of. The kernel drops a device's next hops then, and
    /// takes none before the carrier is back.
    underlay_cut: bool,
    /// When the news in hand is told; moved on by further news, up to a limit.
    tell_at: Instant,
    tell_at_latest: Instant,
}

impl Monitor {
    /// Subscribes. What `kernel` changes from now on is no news.
    ///
    /// # Errors
    ///
    /// There is no more room for a socket, or the system has no netlink.
    pub fn open(kernel: &Kernel) -> Result<Self, KernelError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let inner = socket.socket_mut();
            inner.bind(&SocketAddr::new(0, 0))?;
            // With CAP_NET_ADMIN the administrator's limit for ordinary programs may be passed.
            if setsockopt(&*inner, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
                inner.set_rx_buf_sz(RECEIVE_BUFFER)?;
            }
            for group in GROUPS {
                match inner.add_membership(group as u32) {
                    // Kernels before 5.3 have no next hops to tell about.
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
            own_port: kernel.socket.port(),
            news: Changed::default(),
            suspects: BTreeSet::new(),
            underlay_strange: false,
            underlay_cut: false,
            tell_at: now,
            tell_at_latest: now,
        })
    }

    /// Waits until somebody else has changed something of concern, and it has been quiet for 100 ms, but not longer
    /// than 1 s.
    ///
    /// Cancel-safe: news that was not told yet is kept for the next call.
    pub async fn changed(&mut self, watch: &Watch<'_>) -> Changed {
        loop {
            let had_news = self.has_news();
            self.received.clear();
            let receive = self.socket.recv(&mut self.received);
            let result = if had_news {
                match timeout_at(self.tell_at, receive).await {
                    Ok(result) => result,
                    Err(_) => return self.tell(),
                }
            } else {
                receive.await
            };
            let any = match result {
                Ok(()) => self.take(watch),
                Err(error) => {
                    // ENOBUFS is the kernel's way to say that news was lost; then anything may have changed.
                    if error.raw_os_error() == Some(Errno::ENOBUFS as i32) {
                        debug!("kernel notifications were lost for lack of buffer");
                    } else {
                        warn!(%error, "failed to receive kernel notifications");
                        sleep(PATIENCE).await;
                    }
                    self.news = Changed {
                        objects: true,
                        underlay: true,
                    };
                    true
                }
            };
            let now = Instant::now();
            if any && !had_news {
                self.tell_at_latest = now + PATIENCE;
            }
            if any {
                self.tell_at = (now + QUIET).min(self.tell_at_latest);
            }
        }
    }

    fn has_news(&self) -> bool {
        self.news.is_any() || !self.suspects.is_empty()
    }

    /// Takes the notifications of one datagram; returns whether any is of concern.
    fn take(&mut self, watch: &Watch<'_>) -> bool {
        let mut any = false;
        for message in Messages::<Message>::new(&self.received).flatten() {
            let own = message.header.port_number == self.own_port;
            let NetlinkPayload::InnerMessage(message) = message.payload else {
                continue;
            };
            match watch.judge(&message) {
                News::AsWanted(key) => {
                    self.suspects.remove(&key);
                }
                News::Suspect(key) if !own => {
                    self.suspects.insert(key);
                    any = true;
                }
                // Devices send news for every upper device and every flicker of the carrier.
                News::Underlay { as_known, carrier } => {
                    if self.underlay_strange || !as_known {
                        self.news.underlay = true;
                        any = true;
                    }
                    self.underlay_strange = !as_known;
                    if self.underlay_cut && carrier {
                        self.news.objects = true;
                        any = true;
                    }
                    self.underlay_cut = !carrier;
                }
                News::Changed(changed) if !own && changed.is_any() => {
                    self.news.add(changed);
                    any = true;
                }
                News::None | News::Changed(_) | News::Suspect(_) => {}
            }
        }
        if self.suspects.len() > MAX_SUSPECTS {
            self.suspects.clear();
            self.news.objects = true;
        }
        any
    }

    /// What is told.
    fn tell(&mut self) -> Changed {
        let mut news = std::mem::take(&mut self.news);
        news.objects |= !std::mem::take(&mut self.suspects).is_empty();
        news
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("news", &self.news)
            .finish_non_exhaustive()
    }
}

impl Watch<'_> {
    /// Whether a notification concerns us.
    fn judge(&self, message: &Message) -> News {
        match message {
            Message::NewNextHop(hop) | Message::DelNextHop(hop) => News::Changed(Changed {
                objects: hop.protocol == route::PROTOCOL && self.kernel.ids.is_own(hop.id()),
                underlay: false,
            }),
            Message::GetNextHop(_) => News::None,
            Message::Route(inner) => match inner {
                RouteNetlinkMessage::NewLink(_) => self.judge_link(message, false),
                RouteNetlinkMessage::DelLink(_) => self.judge_link(message, true),
                RouteNetlinkMessage::NewNeighbour(_) => self.judge_neighbor(message, false),
                RouteNetlinkMessage::DelNeighbour(_) => self.judge_neighbor(message, true),
                RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                    let Some((index, address)) = address::read(message) else {
                        return News::None;
                    };
                    News::Changed(Changed {
                        // On whatever device: with an address goes its route, of which the kernel says nothing when the
                        // device goes too (`fib_sync_down_dev()`), and which may have stood in the way of ours.
                        objects: is_inside(self.scope, &address),
                        // A link-local IPv6 address comes and settles with every device; nobody's underlay is one. Of other
                        // devices those count that no node's subnet may hold, but not each container's cable.
                        underlay: !matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
                            && (index == self.underlay.index
                                || address.prefix_len() < address.max_prefix_len()
                                    && self.overlay(index).is_none()
                                    && is_inside(self.scope, &address.addr().into())),
                    })
                }
                RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => {
                    self.judge_route(message)
                }
                _ => News::None,
            },
        }
    }

    fn judge_link(&self, message: &Message, gone: bool) -> News {
        let Some(link) = link::read(message).map(|link| self.kernel.recognise(link)) else {
            return News::None;
        };
        if self.scope.links.contains(&link.name) && !self.kernel.is_lost(&link) {
            let key = Key::Link(link.name);
            if let (Some(Object::Link(want)), Object::Link(seen), false) =
                (self.desired.get(&key), &link.object, gone)
                && want.looks_like(seen)
            {
                return News::AsWanted(key);
            }
            let object = (!gone).then_some(link.object);
            return self.compare(key, object);
        }
        let underlay = self.underlay;
        if link.index != underlay.index && link.name != underlay.name {
            return News::None;
        }
        News::Underlay {
            as_known: !gone
                && link.up
                && (link.index, link.mtu) == (underlay.index, underlay.mtu)
                && link.name == underlay.name,
            carrier: !gone && link.carrier,
        }
    }

    fn judge_neighbor(&self, message: &Message, gone: bool) -> News {
        let of_overlay = neighbor::link_index(message).and_then(|index| {
            let name = self.overlay(index)?;
            neighbor::read(message, index, name)
        });
        match of_overlay {
            // What the kernel learns by itself is no object; but it may stand where one should be.
            Some(entry) => {
                let object = (!gone && entry.permanent).then_some(entry.object);
                self.compare(entry.key, object)
            }
            None => News::None,
        }
    }

    fn compare(&self, key: Key, object: Option<Object>) -> News {
        if self.desired.get(&key) == object.as_ref() {
            News::AsWanted(key)
        } else {
            News::Suspect(key)
        }
    }

    fn judge_route(&self, message: &Message) -> News {
        // A route of somebody else's counts where one of ours should be, or if it leads into the overlay. Others inside
        // the network come and go with every container that has one.
        let objects = route::read(message).is_some_and(|route| {
            let is_overlay = |index| self.overlay(index).is_some();
            is_ours(&route, self.scope, &self.kernel.ids, is_overlay)
                || route
                    .link
                    .is_some_and(|index| self.overlay(index).is_some())
                || self.desired.contains_key(&Key::Route(route.destination))
        });
        News::Changed(Changed {
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
