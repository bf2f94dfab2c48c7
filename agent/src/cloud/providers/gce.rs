//! Google Compute Engine.

use ipnet::Ipv4Net;

use crate::cloud::access::Access;
use crate::cloud::provider::Provider;
use crate::cloud::table::{Forwarding, Later, Route, RouteTable, TableId};

/// The provider.
pub(crate) const PROVIDER: Provider = Provider {
    kind: "gce",
    open: |access| Box::new(Gce { access }),
};

#[derive(Debug)]
struct Gce {
    access: Access,
}

impl RouteTable for Gce {
    fn tables(&mut self) -> Later<'_, Vec<TableId>> {
        Box::pin(async { Ok(self.access.config.tables.clone()) })
    }

    fn list<'a>(&'a mut self, _: &'a TableId) -> Later<'a, Vec<Route>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn add<'a>(&'a mut self, _: &'a TableId, _: Ipv4Net) -> Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn replace<'a>(&'a mut self, _: &'a TableId, _: &'a Route) -> Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a mut self, _: &'a TableId, _: &'a Route) -> Later<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
        Box::pin(async { Ok(Forwarding::Allowed) })
    }

    fn take_over_command(&self, table: &TableId, _: &Route) -> String {
        table.clone()
    }
}
