//! What all providers' route tables have in common.

use std::pin::Pin;

use ipnet::Ipv4Net;

use super::access::Access;
use super::error::CloudError;

/// An answer that comes later. Boxed, so that a provider is an object.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T, CloudError>> + Send + 'a>>;

/// A route table by the provider's ID: `rtb-0123…`, the URL of a network, the ID of a router.
pub(crate) type TableId = String;

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Target {
    /// To this instance.
    Own,
    /// To another next hop, as the provider names it: `i-0123…`, `igw-0123…`.
    Other(String),
    /// To one that no longer exists or does not run, if the provider says so (AWS's blackhole).
    Dead(String),
}

/// Whether a route was made by an agent like this one or by flannel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Mark {
    /// Its name or description says so.
    Ours,
    /// Its name or description says that it is somebody else's, or the route cannot be ours by its kind (to a gateway).
    Foreign,
    /// Routes of this provider have no names.
    None,
}

/// A route of a table. Only IPv4, as in flannel.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Route {
    /// Its destination.
    pub(crate) destination: Ipv4Net,
    /// Where it leads.
    pub(crate) target: Target,
    /// Whose it is.
    pub(crate) mark: Mark,
    /// What the provider needs to change or remove it: an ID, a name; may be empty.
    pub(crate) handle: String,
}

/// Whether the provider delivers packets to this instance that are not addressed to it, and accepts those that are not
/// from its address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Forwarding {
    /// It does.
    Allowed,
    /// It did not until now.
    SwitchedOn,
    /// It does not, and this agent cannot change that.
    Forbidden {
        /// Why not.
        problem: String,
        /// The command by which an administrator can.
        command: String,
    },
}

/// The route tables of one provider, as this instance sees them. Calls are made one after the other.
///
/// A call that was cancelled or failed may have had its effect: the caller lists again before it decides anything.
pub(crate) trait RouteTable: Send {
    /// The tables to keep routes in: those of the config, else the one that the instance's subnet uses. Looks them up
    /// again on each call.
    fn tables(&mut self) -> Later<'_, Vec<TableId>>;

    /// All IPv4 routes of a table, foreign ones too; every page of them.
    fn list<'a>(&'a mut self, table: &'a TableId) -> Later<'a, Vec<Route>>;

    /// Adds a route to this instance. [`CloudError::Exists`] if there is one to the same destination.
    fn add<'a>(&'a mut self, table: &'a TableId, destination: Ipv4Net) -> Later<'a, ()>;

    /// Points a listed route to this instance; by removal and addition where the provider has nothing better.
    fn replace<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()>;

    /// Removes a listed route. One that is gone is no error.
    fn remove<'a>(&'a mut self, table: &'a TableId, route: &'a Route) -> Later<'a, ()>;

    /// Makes the provider deliver forwarded packets (source/destination check, IP forwarding), for these destinations
    /// where it wants to know them. Changes nothing if it does already.
    fn allow_forwarding<'a>(&'a mut self, own: &'a [Ipv4Net]) -> Later<'a, Forwarding>;

    /// The command that an administrator points a route of somebody else to this instance with, for messages.
    fn take_over_command(&self, table: &TableId, route: &Route) -> String;
}

/// A provider. Its name is that of the backend.
#[derive(Debug)]
pub(crate) struct Provider {
    /// The backend's name in the network config.
    pub(crate) kind: &'static str,
    /// Opens it. Asks nothing yet.
    pub(crate) open: fn(Access) -> Box<dyn RouteTable>,
}
