//! OpenStack: extra routes of a Neutron router, with ports as next hops by their address.
//!
//! Facts from "Networking API v2.0" (routers, ports, the extensions `extraroute-atomic`, `revision-if-match`,
//! `allowed-address-pairs` and `port-security`), "Identity API v3", and cloud-provider-openstack's `routes.go`.
//!
//! A router takes several routes to one destination and spreads the packets, so an addition is read back. With
//! `extraroute-atomic` one route is added or removed; without, the list is written whole, under the condition that
//! nobody has changed it meanwhile.

mod failure;
mod login;
mod neutron;
mod port;
#[cfg(test)]
mod tests;
mod wire;

use hyper::Method;
use ipnet::Ipv4Net;
use serde_json::json;

use self::failure::asked;
use self::login::Session;
use self::port::Neighbours;
use self::wire::{Extra, OneRouter, Router};
use super::asked::{Asked, gone};
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::table::{Forwarding, Later, Mark, Provider, Route, RouteTable, TableId, Target};

/// Its entry in the table.
pub(in crate::cloud) const PROVIDER: Provider = Provider {
    kind: "openstack",
    open: |access| Box::new(OpenStack::new(access)),
};

/// How often a change of a list is tried again that somebody else changed at the same time.
const TRIES: usize = 5;

/// The right to write a router, as Neutron's policies name it.
const UPDATE: &str = "update_router";

/// The routes of this machine's router.
struct OpenStack {
    access: Access,
    session: Option<Kept<Session>>,
    /// Whether there is `extraroute-atomic`; `None` before it was asked for.
    is_atomic: Option<bool>,
}

impl OpenStack {
    fn new(access: Access) -> Self {
        Self {
            access,
            session: None,
            is_atomic: None,
        }
    }

    /// The address by which this machine is called as a next hop.
    fn own(&self) -> String {
        self.access.address.to_string()
    }

    async fn router(&mut self, id: &str) -> Result<Router, CloudError> {
        let asked = asked("GET router", "get_router", id);
        let path = format!("/routers/{id}");
        let router: OneRouter = self.get(&asked, &path).await?;
        Ok(router.router)
    }

    /// Whether single routes can be added and removed.
    async fn is_atomic(&mut self) -> Result<bool, CloudError> {
        if let Some(known) = self.is_atomic {
            return Ok(known);
        }
        let asked = asked("GET extension", "get_extension", "extraroute-atomic");
        let found = self
            .get::<wire::OneExtension>(&asked, "/extensions/extraroute-atomic")
            .await;
        let is_atomic = match found {
            Ok(_) => true,
            Err(CloudError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        self.is_atomic = Some(is_atomic);
        Ok(is_atomic)
    }

    /// Adds or removes one route (`add_extraroutes`, `remove_extraroutes`); returns all of them.
    async fn change_one(
        &mut self,
        asked: &Asked<'_>,
        router: &str,
        verb: &str,
        route: &Extra,
    ) -> Result<Vec<Extra>, CloudError> {
        let path = format!("/routers/{router}/{verb}");
        let body = json!({"router": {"routes": [route]}});
        let changed = self.ask(asked, Method::PUT, &path, Some(&body), None);
        let changed: Result<OneRouter, _> = changed.await;
        if matches!(changed, Err(CloudError::NotFound { .. })) {
            // Either the router is gone, or the extension is not there after all.
            self.is_atomic = None;
        }
        Ok(changed?.router.routes)
    }

    /// Writes the list whole; `change` returns none if nothing is to be done.
    async fn change_all(
        &mut self,
        asked: &Asked<'_>,
        router: &str,
        change: impl Fn(&[Extra]) -> Result<Option<Vec<Extra>>, CloudError> + Send,
    ) -> Result<(), CloudError> {
        let path = format!("/routers/{router}");
        let mut last = None;
        for _ in 0..TRIES {
            let now = self.router(router).await?;
            let Some(routes) = change(&now.routes)? else {
                return Ok(());
            };
            let body = json!({"router": {"routes": routes}});
            let written = self
                .ask::<serde::de::IgnoredAny>(
                    asked,
                    Method::PUT,
                    &path,
                    Some(&body),
                    now.revision_number,
                )
                .await;
            match written {
                Ok(_) => return Ok(()),
                Err(error @ CloudError::Unavailable { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(()), Err)
    }

    async fn add(&mut self, router: &str, destination: Ipv4Net) -> Result<(), CloudError> {
        let object = destination.to_string();
        let asked = asked("add route", UPDATE, &object);
        let own = Extra {
            destination: object.clone(),
            nexthop: self.own(),
        };
        let exists = || CloudError::Exists {
            call: asked.call,
            destination: object.clone(),
        };
        let is_other = |route: &Extra| route.net() == Some(destination) && *route != own;
        if !self.is_atomic().await? {
            return self
                .change_all(&asked, router, |routes| {
                    if routes.iter().any(is_other) {
                        return Err(exists());
                    }
                    let is_new = !routes.contains(&own);
                    Ok(is_new.then(|| [routes, std::slice::from_ref(&own)].concat()))
                })
                .await;
        }
        let routes = self
            .change_one(&asked, router, "add_extraroutes", &own)
            .await?;
        if routes.iter().any(is_other) {
            // Half of the packets would go there.
            self.change_one(&asked, router, "remove_extraroutes", &own)
                .await?;
            return Err(exists());
        }
        Ok(())
    }

    async fn remove(&mut self, router: &str, route: &Route) -> Result<(), CloudError> {
        let old = extra(route);
        let asked = asked("remove route", UPDATE, &old.destination);
        if self.is_atomic().await? {
            let removed = self
                .change_one(&asked, router, "remove_extraroutes", &old)
                .await;
            return gone(removed);
        }
        let removed = self
            .change_all(&asked, router, |routes| {
                let rest = routes.iter().filter(|route| **route != old);
                let rest: Vec<Extra> = rest.cloned().collect();
                Ok((rest.len() < routes.len()).then_some(rest))
            })
            .await;
        gone(removed)
    }

    async fn list(&mut self, id: &str) -> Result<Vec<Route>, CloudError> {
        let own = self.own();
        let router = self.router(id).await?;
        let is_others = |route: &Extra| route.nexthop != own;
        let project = self.session().await?.project;
        let is_ours = project == router.project_id;
        let neighbours = match is_ours && router.routes.iter().any(is_others) {
            true => self.neighbours(&project).await?,
            false => None,
        };
        let routes = router.routes.iter();
        Ok(routes
            .filter_map(|extra| route(extra, &own, neighbours.as_ref()))
            .collect())
    }
}

impl RouteTable for OpenStack {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async move {
            match &self.access.config.tables[..] {
                [] => Ok(vec![self.own_router().await?]),
                tables => Ok(tables.to_vec()),
            }
        })
    }

    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(self.list(table))
    }

    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()> {
        Box::pin(self.add(table, destination))
    }

    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(async move {
            self.remove(table, route).await?;
            self.add(table, route.destination).await
        })
    }

    fn remove<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()> {
        Box::pin(self.remove(table, route))
    }

    fn allow_forwarding<'a>(&'a mut self, own: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(self.allow(own))
    }

    fn take_over_command(&self, table: &TableId, route: &Route) -> String {
        format!(
            "openstack router remove route --route destination={},gateway={} {table}",
            route.destination, route.handle
        )
    }
}

/// A listed route as Neutron has it.
fn extra(route: &Route) -> Extra {
    Extra {
        destination: route.destination.to_string(),
        nexthop: route.handle.clone(),
    }
}

/// What a route is to us; `None` for IPv6.
fn route(extra: &Extra, own: &str, neighbours: Option<&Neighbours>) -> Option<Route> {
    let hop = extra.nexthop.clone();
    let target = match neighbours {
        _ if hop == own => Target::Own,
        Some(neighbours) if neighbours.misses(&hop) => Target::Dead(hop),
        _ => Target::Other(hop),
    };
    Some(Route {
        destination: extra.net()?,
        target,
        mark: Mark::None,
        handle: extra.nexthop.clone(),
    })
}
