//! The differences between two sets of settings, for the log of a reload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::setting::{OnReload, Setting};
use super::{FirewallMode, Interface, Listen, Pattern, Secret};
use crate::base::network_name::NetworkName;

/// A changed setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// Its key, for example `etcd.prefix` for `prefix` in `[etcd]`.
    pub(crate) key: &'static str,
    /// The old value; never a secret.
    pub(crate) old: String,
    /// The new value; never a secret.
    pub(crate) new: String,
    /// Whether it can change at run time.
    pub(crate) live: bool,
}

impl Change {
    /// `None` if the values are the same.
    pub(super) fn between<T: PartialEq + Shown>(
        setting: &'static Setting,
        old: &T,
        new: &T,
    ) -> Option<Self> {
        if old == new {
            return None;
        }
        let (old, mut new) = (old.shown(), new.shown());
        if old == new {
            // A secret.
            new = format!("another {new}");
        }
        Some(Self {
            key: setting.path,
            old,
            new,
            live: setting.on_reload == OnReload::Live,
        })
    }
}

/// A value that can be put into the log.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

macro_rules! shown_as_displayed {
    ($($Type:ty),+) => {
        $(impl Shown for $Type {
            fn shown(&self) -> String {
                self.to_string()
            }
        })+
    };
}

shown_as_displayed!(
    bool,
    u16,
    String,
    IpAddr,
    Ipv4Addr,
    Ipv6Addr,
    IpNet,
    FirewallMode,
    Interface,
    Listen,
    NetworkName,
    Pattern
);

impl Shown for Duration {
    fn shown(&self) -> String {
        format!("{} s", self.as_secs())
    }
}

impl Shown for PathBuf {
    fn shown(&self) -> String {
        self.display().to_string()
    }
}

impl Shown for Secret {
    fn shown(&self) -> String {
        "(secret)".to_owned()
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), T::shown)
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> String {
        let values: Vec<_> = self.iter().map(T::shown).collect();
        values.join(", ")
    }
}

#[cfg(test)]
mod tests;
