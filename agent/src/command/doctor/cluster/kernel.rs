//! What the kernel would not take.

use std::collections::BTreeMap;
use std::future::ready;

use super::Check;
use crate::command::doctor::{Finding, Severity};
use crate::telemetry::status::{State, Status};

const NAME: &str = "kernel-refusal";

/// Objects of the overlay that the kernel refuses.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "devices, routes and neighbours that the kernel would not take",
    run: |context| Box::pin(ready(context.status().map(find))),
};

/// What the agent's reasons have before the first refusal.
const FIRST: &str = "kernel changes failed, the first: ";

/// Whether one of the agent's reasons is about a refusal, and so is told here.
pub(super) fn is_refusal(reason: &str) -> bool {
    reason.contains(FIRST)
}

/// One finding for each cause, since one missing module fails a thousand objects.
fn find(status: &Status) -> Vec<Finding> {
    let mut by_cause: BTreeMap<Cause, Vec<&str>> = BTreeMap::new();
    for text in refusals(status) {
        by_cause.entry(Cause::of(text)).or_default().push(text);
    }
    // What fails for the sake of something else says nothing by itself.
    if by_cause.len() > 1 {
        by_cause.remove(&Cause::Dependency);
    }
    let finding = |(cause, texts): (Cause, Vec<&str>)| {
        let first = texts.first().copied().unwrap_or_default();
        let others = match texts.len() {
            0 | 1 => String::new(),
            count => format!(" (and {} more like it)", count - 1),
        };
        let (why, remedy) = cause.explain(first);
        Finding {
            check: NAME.to_owned(),
            severity: Severity::Error,
            subject: object(first).map(str::to_owned),
            what: format!("the kernel does not have what the overlay needs: {first}{others}"),
            why: why.to_owned(),
            remedy,
        }
    };
    by_cause.into_iter().map(finding).collect()
}

/// The refusals that the agent tells: all of them once it has joined, the first one before.
fn refusals(status: &Status) -> Vec<&str> {
    if status.health.state == State::Joining {
        let reasons = status.health.reasons.iter();
        return reasons
            .filter_map(|reason| Some(reason.split_once(FIRST)?.1))
            .collect();
    }
    status.kernel.failures.iter().map(String::as_str).collect()
}

/// The object in `failed to add route 10.5.2.0/24 via …: why`: its kind and its name.
fn object(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("failed to ")?;
    let (_verb, rest) = rest.split_once(' ')?;
    let kind = rest.find(' ')?;
    let name = rest.get(kind + 1..)?;
    let end = name.find([' ', ':']).unwrap_or(name.len());
    rest.get(..kind + 1 + end)
        .map(|object| object.trim_end_matches(':'))
}

/// Why the kernel refuses, as far as its answer tells.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Cause {
    /// It does not know the kind of device.
    Module(&'static str),
    /// It makes the agent no changes at all.
    Privileges,
    /// Somebody else has a route to the same destination.
    Conflict,
    /// Somebody else has a device of the same name, VNI or end points.
    Exists,
    /// A UDP port is taken.
    Port,
    /// Its tables are full.
    Full,
    /// The gateway, or the way to it, is not there.
    Gateway,
    /// The device has gone.
    NoDevice,
    /// An administrator's command failed.
    Command,
    /// Something else failed first.
    Dependency,
    /// What is left.
    Other,
}

impl Cause {
    fn of(text: &str) -> Self {
        let has = |words: &str| text.contains(words);
        let about_link = has(" link ");
        let module = ["vxlan", "wireguard", "ipip"]
            .into_iter()
            .find(|kind| has(&format!(" type {kind} ")));
        match errno(text) {
            _ if has("another program's route is in the way") => Self::Conflict,
            _ if has("what it depends on is missing") => Self::Dependency,
            _ if has("there is no device ") => Self::NoDevice,
            _ if has(" hook for ") => Self::Command,
            _ if has("Address already in use") => Self::Port,
            Some("EOPNOTSUPP" | "ENOTSUP" | "ENOPROTOOPT" | "ENOENT") if about_link => {
                module.map_or(Self::Other, Self::Module)
            }
            Some("EPERM" | "EACCES") => Self::Privileges,
            Some("EEXIST") => Self::Exists,
            Some("EADDRINUSE") => Self::Port,
            Some("ENOBUFS" | "ENOMEM" | "ENOSPC") => Self::Full,
            Some("EINVAL" | "ENETUNREACH" | "EHOSTUNREACH" | "ENETDOWN")
                if has(" nexthop ") || has(" route ") =>
            {
                Self::Gateway
            }
            Some("ENODEV" | "ENXIO") => Self::NoDevice,
            _ => Self::Other,
        }
    }

    /// What it does and how it comes about, and what to do about it.
    fn explain(self, text: &str) -> (&'static str, Vec<String>) {
        let (why, remedy): (_, Vec<String>) = match self {
            Self::Module(module) => (
                "this kernel cannot make such a device: its module is not loaded, or not built for it; modules cannot be loaded by the agent itself",
                vec![
                    format!("load the module: modprobe {module}"),
                    format!(
                        "load it at every boot: echo {module} > /etc/modules-load.d/{module}.conf"
                    ),
                    format!(
                        "if there is none for this kernel (modinfo {module}), choose another back end for all nodes: selvage network set"
                    ),
                ],
            ),
            Self::Privileges => (
                "the agent is not allowed to change the network of this host",
                vec![
                    "run it by its unit, or give it CAP_NET_ADMIN: systemctl cat selvage".to_owned(),
                    "in a container it needs the host's network and that capability".to_owned(),
                ],
            ),
            Self::Conflict => (
                "a route that the agent did not make leads elsewhere; it is left alone, so containers here do not reach that subnet",
                vec![
                    removal(text),
                    "find out who makes it, by its proto: ip -details route show; a VPN and a static route of networkd are frequent".to_owned(),
                ],
            ),
            Self::Exists => (
                "another device or route already has what the overlay's would have: the same name, or for VXLAN the same VNI and port",
                vec![
                    "see which: ip -details link show type vxlan; ip -details link show".to_owned(),
                    "remove it if nobody needs it (ip link del NAME), or give the overlay another VNI or Port: selvage network set".to_owned(),
                ],
            ),
            Self::Port => (
                "another program or device already receives on the UDP port that the back end needs",
                vec![
                    "see which: ss -lunp; ip -details link show type vxlan".to_owned(),
                    "stop it, or give the overlay another Port (or ListenPort): selvage network set".to_owned(),
                ],
            ),
            Self::Full => (
                "a table of the kernel is full; with many nodes the limits for neighbours are too low",
                vec![
                    "raise the limits: sysctl -w net.ipv4.neigh.default.gc_thresh3=65536 net.ipv6.neigh.default.gc_thresh3=65536 net.ipv6.route.max_size=2147483647".to_owned(),
                    "see what the kernel says: dmesg | tail".to_owned(),
                ],
            ),
            Self::Gateway => (
                "the kernel has no way to the peer on the interface that should lead to it",
                vec![
                    "see how the peer is reached: ip route get ADDRESS, with the address from selvage peers".to_owned(),
                    "host-gw needs all nodes on one link; if they are not, use vxlan, with DirectRouting for those that are: selvage network set".to_owned(),
                ],
            ),
            Self::NoDevice => (
                "the device went away while it was worked on; the agent makes it again",
                vec![
                    "ask again in a moment; if it lasts, somebody removes it: journalctl -u selvage -u systemd-networkd; ip monitor link".to_owned(),
                ],
            ),
            Self::Command => (
                "a command of the network config's extension back end failed on this host; it is run again after a while",
                vec![
                    "journalctl -u selvage has what it printed".to_owned(),
                    "selvage network get shows the command; run it by hand with the same environment".to_owned(),
                ],
            ),
            Self::Dependency | Self::Other => (
                "what needs this object does not work; the agent tries again with growing pauses",
                vec![
                    "journalctl -u selvage -b and dmesg show how it came about".to_owned(),
                    "whatever is there now is replaced by a clean start: selvage cleanup, then systemctl start selvage".to_owned(),
                ],
            ),
        };
        (why, remedy)
    }
}

/// How to remove the route that is in the way, which is told in the words of ip(8).
fn removal(text: &str) -> String {
    let route = text.split_once("in the way: ").map(|(_, route)| route);
    let route = route.unwrap_or_default().trim();
    format!("if nobody needs it, remove it: ip route del {route}")
}

/// The name of the error that the kernel gave, from `…: EEXIST: File exists`.
fn errno(text: &str) -> Option<&str> {
    let is_name = |word: &&str| {
        word.len() > 2
            && word.starts_with('E')
            && word
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    text.split([':', ' ']).find(is_name)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::host::netlink::{ChangeError, Failure, Refused};
    use crate::plan::state::{Change, Ipip, Key, Link, LinkKind, Object, Route};

    fn failure(key: Key, object: Object, error: ChangeError) -> String {
        let was = None;
        let change = Change::Set { key, object, was };
        Failure { change, error }.to_string()
    }

    fn refused(errno: Errno) -> ChangeError {
        ChangeError::Refused(Refused { errno, hint: None })
    }

    fn ipip(error: ChangeError) -> String {
        let link = Link {
            kind: LinkKind::Ipip(Ipip {
                local: [10, 0, 0, 1].into(),
            }),
            mtu: 1480,
            up: true,
        };
        let key = Key::Link("flannel.ipip".parse().unwrap());
        failure(key, Object::Link(link.into()), error)
    }

    fn route(error: ChangeError) -> String {
        let route = Route {
            link: "flannel.1".parse().unwrap(),
            gateway: Some([10, 5, 2, 0].into()),
            onlink: true,
            inline: false,
        };
        let key = Key::Route("10.5.2.0/24".parse().unwrap());
        failure(key, Object::Route(route), error)
    }

    #[test]
    fn every_refusal_is_told_by_its_cause() {
        let conflict = ChangeError::Conflict {
            existing: "10.5.2.0/24 via 10.0.0.9 proto 4 dev eth0".to_owned(),
        };
        let link = Key::Link("flannel.ipip".parse().unwrap());
        let port = ChangeError::DataPlane(
            std::io::Error::from_raw_os_error(Errno::EADDRINUSE as i32).to_string(),
        );
        for (text, cause, word) in [
            (
                ipip(refused(Errno::EOPNOTSUPP)),
                Cause::Module("ipip"),
                "modprobe ipip",
            ),
            (
                ipip(refused(Errno::EPERM)),
                Cause::Privileges,
                "CAP_NET_ADMIN",
            ),
            (ipip(refused(Errno::EEXIST)), Cause::Exists, "ip link del"),
            (ipip(refused(Errno::EADDRINUSE)), Cause::Port, "ss -lunp"),
            (
                failure(link, Object::OtherLink, port),
                Cause::Port,
                "ss -lunp",
            ),
            (
                route(conflict),
                Cause::Conflict,
                "ip route del 10.5.2.0/24 via 10.0.0.9 proto 4 dev eth0",
            ),
            (
                route(refused(Errno::EINVAL)),
                Cause::Gateway,
                "DirectRouting",
            ),
            (route(refused(Errno::ENOBUFS)), Cause::Full, "gc_thresh3"),
            (
                route(ChangeError::NoDevice("flannel.1".parse().unwrap())),
                Cause::NoDevice,
                "ip monitor link",
            ),
            (
                route(ChangeError::Dependency),
                Cause::Dependency,
                "journalctl",
            ),
            (route(refused(Errno::EIO)), Cause::Other, "selvage cleanup"),
        ] {
            assert_eq!(Cause::of(&text), cause, "{text}");
            let (_, remedy) = cause.explain(&text);
            assert!(
                remedy.iter().any(|remedy| remedy.contains(word)),
                "{word}: {remedy:?}"
            );
        }
    }

    #[test]
    fn the_object_is_named() {
        assert_eq!(
            object(&route(refused(Errno::EIO))),
            Some("route 10.5.2.0/24")
        );
        assert_eq!(
            object(&ipip(refused(Errno::EIO))),
            Some("link flannel.ipip")
        );
        assert_eq!(object("failed to add"), None);
        assert_eq!(object("nonsense"), None);
    }

    #[test]
    fn one_cause_is_one_finding_and_hides_what_depends_on_it() {
        let mut status = Status::joining(
            crate::telemetry::status::Agent::of_process("x", 0),
            Vec::new(),
        );
        status.health.state = State::Degraded;
        status.kernel.failures = vec![
            ipip(refused(Errno::EOPNOTSUPP)),
            route(ChangeError::Dependency),
            route(ChangeError::Dependency),
        ];
        let found = find(&status);
        assert_eq!(found.len(), 1, "{found:#?}");
        status.health.state = State::Joining;
        status.health.reasons = vec![format!(
            "waiting for 3 {FIRST}{}",
            status.kernel.failures[0]
        )];
        assert_eq!(find(&status), found);
    }
}
