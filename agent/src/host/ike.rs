//! IKE: keys for IPsec, negotiated by strongSwan's charon, which this host runs beside the agent.
//!
//! The agent says by VICI ([`vici`]) which connections there are, and charon negotiates keys and puts them into the
//! kernel, with policies in the place of the agent's (`host::netlink`). Names, secrets and proposals are flannel's, so that either
//! can be at the other end. A [`Worker`] keeps charon's state as wanted: charon remembers none of it over a restart.

mod client;
mod names;
mod salt;
mod tunnels;
pub mod vici;
mod worker;

pub(crate) use self::client::ViciError;
pub(crate) use self::tunnels::{Tunnel, TunnelState};
pub(crate) use self::worker::{Worker, remove_all};
