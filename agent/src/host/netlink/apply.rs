//! Kernel changes, in batches, with one result per change.

mod link;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::route::RouteProtocol;
use thiserror::Error;

pub(crate) use self::wireguard::HandshakeRequest;
use super::FAMILIES;
use super::batch::Batch;
use super::message::{Message, Request, Verb};
use super::nexthop::{self, NextHopAttribute, NextHopMessage};
use super::observe::is_inside;
use super::route::{self, KernelRoute, Kind, Path};
use super::socket::BATCH;
use super::tun::TunDevices;
use super::wireguard::Change as PeerChange;
use super::{Kernel, KernelError, Refused, address, family, neighbor};
use crate::base::net::InterfaceName;
use crate::base::service;
use crate::host::hooks::CommandError;
use crate::plan::state::{Change, Key, Object, Route, Scope};

/// Why a change failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ChangeError {
    /// The kernel refused it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Another program has a route to the same destination; it is left alone.
    #[error("another program's route is in the way: {existing}")]
    Conflict {
        /// The other route, as ip(8) prints it.
        existing: String,
    },
    /// The object's device does not exist.
    #[error("the device {0} does not exist")]
    NoDevice(InterfaceName),
    /// The object's device, or the route's next hop, could not be created; that failure is reported separately.
    #[error("an object that it depends on is missing")]
    Dependency,
    /// Another agent has taken over the device.
    #[error("another agent on this host uses the device {0}")]
    Claimed(InterfaceName),
    /// The data plane cannot be opened.
    #[error("{text}")]
    DataPlane {
        /// The reason.
        text: String,
        /// The kernel's error, if it was one.
        errno: Option<Errno>,
    },
    /// A hook's command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// A change that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The change.
    pub change: Change,
    /// Why it failed.
    pub error: ChangeError,
}

impl Failure {
    /// Whether a retry is useless until another program changes something.
    pub fn is_conflict(&self) -> bool {
        matches!(self.error, ChangeError::Conflict { .. })
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.change, self.error)
    }
}

/// The results of a list of changes.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// The changes that failed, by their places in the list.
    pub(crate) failures: BTreeMap<usize, ChangeError>,
    /// Whether a device was recreated on the way, so that everything on it must be programmed again.
    pub(crate) recreated: bool,
    /// Devices that could not be created.
    pub(crate) broken: BTreeSet<InterfaceName>,
}

/// Changes in progress.
struct Work<'a> {
    scope: &'a Scope,
    changes: &'a [Change],
    applied: Applied,
    /// Unsent requests, and the indices of their changes.
    batch: Batch,
    queue: Vec<usize>,
    /// Whether the queue holds a next hop, which must exist before a route can refer to it.
    queued_next_hop: bool,
    /// Unsent changes of WireGuard peers. At most one of the two queues is non-empty.
    peers: Vec<(usize, PeerChange)>,
    tuns: &'a mut dyn TunDevices,
    /// Routes that the kernel refused with EEXIST.
    occupied: Vec<usize>,
}

impl Work<'_> {
    /// Queues the request for a change.
    fn add(&mut self, index: usize, request: &Request) {
        self.batch.add(request);
        self.queue.push(index);
    }

    fn fail(&mut self, index: usize, error: ChangeError) {
        self.applied.failures.insert(index, error);
    }
}

impl Kernel {
    /// Makes changes in order. A failed change does not stop the others. `broken` lists devices known to be unusable.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed; the next observation shows which changes were made.
    pub(crate) async fn apply(
        &mut self,
        changes: &[Change],
        scope: &Scope,
        tuns: &mut dyn TunDevices,
        broken: BTreeSet<InterfaceName>,
    ) -> Result<Applied, KernelError> {
        let mut work = Work {
            scope,
            changes,
            applied: Applied {
                broken,
                ..Applied::default()
            },
            batch: Batch::default(),
            queue: Vec::with_capacity(BATCH),
            queued_next_hop: false,
            peers: Vec::new(),
            tuns,
            occupied: Vec::new(),
        };
        for (index, change) in changes.iter().enumerate() {
            if let Key::Link(name) = change.key() {
                self.flush(&mut work).await?;
                self.apply_link(&mut work, index, name, change).await?;
                continue;
            }
            if let Key::WireguardPeer(_, key) = change.key() {
                self.queue_peer(&mut work, index, key, change).await?;
                continue;
            }
            if work.queue.len() >= BATCH
                || !work.peers.is_empty()
                || work.queued_next_hop && matches!(change.key(), Key::Route(_))
            {
                self.flush(&mut work).await?;
            }
            match self.encode(&work, change, Verb::Add).await? {
                Ok(Some(request)) => {
                    work.queued_next_hop |= matches!(change.key(), Key::NextHop(..));
                    work.add(index, &request);
                }
                Ok(None) => {}
                Err(error) => work.fail(index, error),
            }
        }
        self.flush(&mut work).await?;
        self.resolve_occupied(&mut work).await?;
        Ok(work.applied)
    }

    /// Deletes next hops by ID.
    pub(crate) async fn delete_next_hops(&mut self, ids: &[u32]) -> Result<(), KernelError> {
        let delete =
            |&id| Request::new(Verb::Plain, Message::DelNextHop(NextHopMessage::by_id(id)));
        let requests: Vec<Request> = ids.iter().map(delete).collect();
        self.socket.batch(&requests).await?;
        Ok(())
    }

    /// Sends the queue and records the results.
    async fn flush(&mut self, work: &mut Work<'_>) -> Result<(), KernelError> {
        self.flush_peers(work).await?;
        work.queued_next_hop = false;
        while !work.queue.is_empty() {
            let refusals = self.socket.exchange(&mut work.batch).await?;
            service::step();
            work.batch.clear();
            let refusals = refusals.into_iter();
            let refusals: Vec<_> = refusals
                .map(|(place, refused)| (work.queue[place], refused))
                .collect();
            work.queue.clear();
            for (index, refused) in refusals {
                self.note_refusal(work, index, refused);
            }
        }
        Ok(())
    }

    fn note_refusal(&mut self, work: &mut Work<'_>, index: usize, refused: Refused) {
        let change = &work.changes[index];
        match (change, refused.errno) {
            // Another program was faster.
            (
                Change::Del { .. },
                Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL,
            ) => {}
            (
                Change::Set {
                    key: Key::Route(_),
                    was: None,
                    ..
                },
                Errno::EEXIST,
            ) => work.occupied.push(index),
            (
                Change::Set {
                    key: Key::NextHop(link, gateway),
                    object,
                    ..
                },
                errno,
            ) => {
                // Another program took the ID since the last observation: try the next one.
                let taken = errno == Errno::EEXIST;
                self.ids.remove(link, *gateway, taken);
                if let (true, Object::NextHop { onlink }, Some(&oif)) =
                    (taken, object, self.indices.get(link))
                {
                    let id = self.ids.allocate(link, *gateway);
                    work.add(index, &next_hop(Verb::Add, id, oif, *gateway, *onlink));
                } else {
                    work.fail(index, refused.into());
                }
            }
            _ => work.fail(index, refused.into()),
        }
    }

    /// The request for a change; `None` if there is nothing to do. New routes are sent with `new`.
    async fn encode(
        &mut self,
        work: &Work<'_>,
        change: &Change,
        new: Verb,
    ) -> Result<Result<Option<Request>, ChangeError>, KernelError> {
        let index = match self.device_of(work, change).await? {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        };
        Ok(match change {
            Change::Set { key, object, was } => {
                let verb = if was.is_none() { new } else { Verb::Replace };
                self.encode_set(key, object, index, verb)
            }
            Change::Del { key, was } => Ok(self.encode_del(key, was, index)),
        })
    }

    /// The index of the device of a change, 0 if it has none; `None` if there is nothing to do, because the object was
    /// already removed with its device.
    async fn device_of(
        &mut self,
        work: &Work<'_>,
        change: &Change,
    ) -> Result<Result<Option<u32>, ChangeError>, KernelError> {
        let link = match change {
            Change::Set {
                object: Object::Route(route),
                ..
            } => Some(&route.link),
            _ => change.key().link(),
        };
        let mut index = 0;
        if let Some(link) = link {
            if work.applied.broken.contains(link) {
                return Ok(Err(ChangeError::Dependency));
            }
            index = match self.indices.get(link) {
                Some(&index) => index,
                None => match self.find_link(link).await? {
                    Some(found) => found.index,
                    None if matches!(change, Change::Del { .. }) => return Ok(Ok(None)),
                    None => return Ok(Err(ChangeError::NoDevice(link.clone()))),
                },
            };
        }
        Ok(Ok(Some(index)))
    }

    fn encode_set(
        &mut self,
        key: &Key,
        object: &Object,
        index: u32,
        verb: Verb,
    ) -> Result<Option<Request>, ChangeError> {
        Ok(match (key, object) {
            (Key::Address(_, address), _) => Some(address::set(index, *address)),
            (Key::Fdb(_, mac), Object::Fdb(remote)) => {
                Some(neighbor::set_fdb(index, *mac, *remote))
            }
            (Key::Neighbor(_, address), Object::Neighbor(mac)) => {
                Some(neighbor::set(index, *address, *mac))
            }
            (Key::NextHop(link, gateway), Object::NextHop { onlink }) if self.next_hops => {
                let verb = match self.ids.get(link, *gateway) {
                    Some(_) => Verb::Replace,
                    None => Verb::Add,
                };
                let id = self.ids.allocate(link, *gateway);
                Some(next_hop(verb, id, index, *gateway, *onlink))
            }
            (Key::Route(destination), Object::Route(way)) => {
                let path = self.path(way, index)?;
                Some(route::set(verb, *destination, path))
            }
            (Key::Blackhole(destination), Object::Blackhole) => {
                Some(route::set_blackhole(Verb::Replace, *destination))
            }
            // Links, WireGuard peers and policies are handled elsewhere, forwarding entries, connections and hooks by
            // other parts of the executor; all other objects are only observed.
            _ => None,
        })
    }

    fn encode_del(&mut self, key: &Key, was: &Object, index: u32) -> Option<Request> {
        match (key, was) {
            (Key::Address(_, address), _) => Some(address::delete(index, *address)),
            (Key::Fdb(_, mac), _) => Some(neighbor::delete_fdb(index, *mac)),
            (Key::Neighbor(_, address), _) => Some(neighbor::delete(index, *address)),
            (Key::NextHop(link, gateway), _) => {
                let id = self.ids.get(link, *gateway)?;
                self.ids.remove(link, *gateway, false);
                let message = Message::DelNextHop(NextHopMessage::by_id(id));
                Some(Request::new(Verb::Plain, message))
            }
            (
                Key::Route(destination),
                Object::OddRoute {
                    protocol,
                    link_index,
                },
            ) => Some(route::delete(*destination, *protocol, *link_index)),
            (Key::Route(destination), _) => {
                Some(route::delete(*destination, route::PROTOCOL, None))
            }
            (Key::Blackhole(destination), _) => Some(route::delete_blackhole(*destination)),
            (
                Key::Link(_)
                | Key::WireguardPeer(..)
                | Key::Forward(..)
                | Key::Policy(..)
                | Key::Connection(_)
                | Key::Hook(_),
                _,
            ) => None,
        }
    }

    fn path(&self, route: &Route, index: u32) -> Result<Path, ChangeError> {
        match route.gateway {
            Some(gateway) if self.next_hops && !route.inline => {
                let id = self.ids.get(&route.link, gateway);
                id.map(Path::NextHop).ok_or(ChangeError::Dependency)
            }
            gateway => Ok(Path::Inline {
                link: index,
                gateway,
                onlink: route.onlink,
            }),
        }
    }

    async fn request(&mut self, request: Request) -> Result<Result<(), ChangeError>, KernelError> {
        let outcome = self.socket.batch(&[request]).await?.into_iter().next();
        Ok(outcome.unwrap_or(Ok(())).map_err(ChangeError::from))
    }

    /// Handles new routes whose destination already has a route: ours, or one that leads where ours would, is replaced;
    /// another program's is left alone.
    async fn resolve_occupied(&mut self, work: &mut Work<'_>) -> Result<(), KernelError> {
        if work.occupied.is_empty() {
            return Ok(());
        }
        let changes = work.changes;
        let wanted: BTreeMap<&IpNet, usize> = work
            .occupied
            .drain(..)
            .filter_map(|index| match changes[index].key() {
                Key::Route(destination) => Some((destination, index)),
                _ => None,
            })
            .collect();
        let mut existing: BTreeMap<IpNet, KernelRoute> = BTreeMap::new();
        for family in FAMILIES {
            let request = route::list(family, None, None);
            let all = self.socket.dump("routes", request, |message| {
                route::read(&message).filter(|route| {
                    route.kind != Kind::Blackhole && wanted.contains_key(&route.destination)
                })
            });
            let routes = all.await?.items.into_iter();
            existing.extend(routes.map(|route| (route.destination, route)));
        }
        for (destination, index) in wanted {
            if let Some(existing) = existing.get(destination) {
                let device = match existing.link {
                    Some(link) => self.name_of(link).await?,
                    None => None,
                };
                if !self.may_replace(work.scope, &changes[index], existing, device.as_ref()) {
                    let device = device.map(|name| format!(" dev {name}"));
                    let existing = format!("{existing}{}", device.unwrap_or_default());
                    work.fail(index, ChangeError::Conflict { existing });
                    continue;
                }
            }
            match self.encode(work, &changes[index], Verb::Replace).await? {
                Ok(Some(request)) => work.add(index, &request),
                Ok(None) => {}
                Err(error) => work.fail(index, error),
            }
            if work.queue.len() >= BATCH {
                self.flush(work).await?;
            }
        }
        self.flush(work).await
    }

    /// `device`: where the existing route leads.
    fn may_replace(
        &self,
        scope: &Scope,
        change: &Change,
        existing: &KernelRoute,
        device: Option<&InterfaceName>,
    ) -> bool {
        // flannel itself replaces these. It may have run another backend here: then the route is over that backend's
        // device.
        let may_be_flannels = |device: &InterfaceName| {
            device.as_str().starts_with("flannel")
                || scope.links.contains(device)
                || scope.shared.as_ref() == Some(device)
        };
        let left_by_flannel = existing.protocol == u8::from(RouteProtocol::Boot)
            && is_inside(scope, &existing.destination)
            && match existing.kind {
                Kind::Plain => existing.gateway.is_some() && device.is_some_and(may_be_flannels),
                Kind::PlainBlackhole => true,
                Kind::Blackhole | Kind::Other => false,
            };
        let leads_the_same_way = matches!(
            change,
            Change::Set { object: Object::Route(want), .. }
                if existing.kind == Kind::Plain
                    && existing.link.as_ref() == self.indices.get(&want.link)
                    && existing.gateway == want.gateway
        );
        existing.protocol == route::PROTOCOL || left_by_flannel || leads_the_same_way
    }
}

fn next_hop(verb: Verb, id: u32, oif: u32, gateway: std::net::IpAddr, onlink: bool) -> Request {
    let message = NextHopMessage {
        family: family(gateway),
        scope: 0,
        protocol: route::PROTOCOL,
        flags: if onlink { nexthop::ONLINK } else { 0 },
        attributes: vec![
            NextHopAttribute::Id(id),
            NextHopAttribute::Oif(oif),
            NextHopAttribute::Gateway(gateway),
        ],
    };
    Request::new(verb, Message::NewNextHop(message))
}
