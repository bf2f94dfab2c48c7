//! Flags of earlier flannels, which a unit from that time may still give.

use super::Error;

const SINGLE: &str = "start one agent for each network, with one name in --networks, or with --etcd-prefix and --subnet-file";

/// The flags that flannel 0.8 dropped, and what to do instead.
const REMOVED: [(&str, &str); 1] = [("watch-networks", SINGLE)];

/// What to say about a flag that there is not.
pub(super) fn explain(name: &str) -> Error {
    let removed = REMOVED.iter().find(|(removed, _)| *removed == name);
    match removed {
        Some(&(name, advice)) => Error::Removed { name, advice },
        None => Error::Undefined(name.to_owned()),
    }
}
