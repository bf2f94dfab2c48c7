//! Kernel objects that the kernel refused.

use std::collections::BTreeMap;

use super::{Check, of_status};
use crate::command::doctor::{Finding, Names, Severity};
use crate::telemetry::status::{Cause, Code, State, Status};

const NAME: &str = "kernel-refusal";

/// Objects of the overlay that the kernel refuses.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "devices, routes and neighbors that the kernel refused",
    run: |context| of_status(context, |status| find(status, &context.names)),
};

/// One finding per code, because one missing module fails a thousand objects.
fn find(status: &Status, names: &Names) -> Vec<Finding> {
    let causes = refusals(status);
    let mut by_code: BTreeMap<Code, Vec<&Cause>> = BTreeMap::new();
    for cause in &causes {
        by_code.entry(cause.code).or_default().push(cause);
    }
    // Failed dependencies add nothing if there is another cause.
    if by_code.len() > 1 {
        by_code.remove(&Code::KernelDependency);
    }
    let finding = |(_, causes): (Code, Vec<&Cause>)| {
        let first = causes.first()?;
        let others = match causes.len() {
            1 => String::new(),
            count => format!(" (and {} more like it)", count - 1),
        };
        let (why, remedy) = explain(first, names);
        Some(Finding {
            check: NAME.to_owned(),
            severity: Severity::Error,
            subject: first.object.clone(),
            peers: Vec::new(),
            what: format!(
                "kernel objects of the overlay are missing: {}{others}",
                first.text
            ),
            why: why.to_owned(),
            remedy,
        })
    };
    by_code.into_iter().filter_map(finding).collect()
}

/// The refusals reported by the agent: all once it has joined, only the first before.
fn refusals(status: &Status) -> Vec<Cause> {
    if status.health.state == State::Joining {
        let causes = status.health.causes.iter();
        let refusals = causes.filter(|cause| cause.code.is_kernel_change());
        return refusals.cloned().collect();
    }
    status.kernel.causes().into_owned()
}

/// The effect and cause of a refusal, and its remedies.
fn explain(cause: &Cause, names: &Names) -> (&'static str, Vec<String>) {
    let journal = names.journal();
    let set = names.selvage("network set");
    let detail = cause.detail.as_deref().unwrap_or_default();
    match cause.code {
        Code::KernelNoModule => (
            "this kernel cannot create such a device: its module is not loaded or not available, and the agent cannot load modules",
            vec![
                format!("load the module: modprobe {detail}"),
                format!(
                    "load it at every boot: echo {detail} > /etc/modules-load.d/{detail}.conf"
                ),
                format!(
                    "if this kernel has no such module (modinfo {detail}), choose another backend for all nodes: {set}"
                ),
            ],
        ),
        Code::KernelNoPrivileges => (
            "the agent lacks the privilege to configure this host's network",
            vec![
                format!(
                    "start it by its unit, or give it CAP_NET_ADMIN: {}",
                    names.systemctl("cat")
                ),
                "in a container it needs the host's network namespace and that capability".to_owned(),
            ],
        ),
        Code::KernelConflict => (
            "another program's route leads elsewhere; the agent does not touch it, so containers here do not reach that subnet",
            vec![
                format!("if it is not needed, remove it: ip route del {detail}"),
                "its proto shows which program adds it: ip -details route show; often a VPN, or a static route of networkd".to_owned(),
            ],
        ),
        Code::KernelExists => (
            "another device or route already has the same name, or for VXLAN the same VNI and port",
            vec![
                "see which: ip -details link show type vxlan; ip -details link show".to_owned(),
                format!(
                    "remove it if it is not needed (ip link del NAME), or give the overlay another VNI or Port: {set}"
                ),
            ],
        ),
        Code::KernelOtherAgent => (
            "another agent on this host uses the device, so this one does not touch it",
            vec![
                "see which agents run: systemctl list-units 'selvage*' 'flanneld*'".to_owned(),
                format!("give each network its own device, for example by another VNI: {set}"),
            ],
        ),
        Code::KernelPort => (
            "another program or device already uses the UDP port that the backend needs",
            vec![
                "see which: ss -lunp; ip -details link show type vxlan".to_owned(),
                format!("stop it, or give the overlay another Port (or ListenPort): {set}"),
            ],
        ),
        Code::KernelFull => (
            "a kernel table is full; with many nodes the default limits for neighbors are too low",
            vec![
                "raise the limits: sysctl -w net.ipv4.neigh.default.gc_thresh3=65536 net.ipv6.neigh.default.gc_thresh3=65536 net.ipv6.route.max_size=2147483647".to_owned(),
                "see the kernel's message: dmesg | tail".to_owned(),
            ],
        ),
        Code::KernelNoPath => (
            "the kernel has no route to the peer on the interface that should lead to it",
            vec![
                format!(
                    "see the route to the peer: ip route get ADDRESS, with the address from {}",
                    names.selvage("peers")
                ),
                format!(
                    "host-gw needs all nodes on one link; if they are not, use vxlan, with DirectRouting for those that are: {set}"
                ),
            ],
        ),
        Code::KernelNoDevice => (
            "the device disappeared while the agent configured it; the agent creates it again",
            vec![format!(
                "run the doctor again in a moment; if it persists, another program removes the device: {journal} -u systemd-networkd; ip monitor link"
            )],
        ),
        Code::KernelCommand => (
            "a hook of the extension backend failed on this host; the agent retries it",
            vec![
                format!("see its output: {journal}"),
                format!(
                    "see the command: {}; run it by hand with the same environment",
                    names.selvage("network get")
                ),
            ],
        ),
        _ => (
            "traffic that needs this object fails; the agent retries with increasing delays",
            vec![
                format!("see what happened: {journal} -b; dmesg"),
                format!(
                    "to start from a clean state: {}, then {}",
                    names.selvage_with_state("cleanup"),
                    names.systemctl("start")
                ),
            ],
        ),
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::command::doctor::names::tests::settings;
    use crate::host::netlink::{ChangeError, Failure, Refused};
    use crate::plan::state::{Change, Ipip, Key, Link, LinkKind, Object, Route};
    use crate::telemetry::status::{Coded, Health};

    fn failure(key: Key, object: Object, error: ChangeError) -> Cause {
        let was = None;
        let change = Change::Set { key, object, was };
        Failure { change, error }.to_cause()
    }

    fn refused(errno: Errno) -> ChangeError {
        ChangeError::Refused(Refused { errno, hint: None })
    }

    fn ipip(error: ChangeError) -> Cause {
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

    fn route(error: ChangeError) -> Cause {
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
        let names = Names::of(&settings(&[]));
        let conflict = ChangeError::Conflict {
            existing: "10.5.2.0/24 via 10.0.0.9 proto 4 dev eth0".to_owned(),
        };
        let link = Key::Link("flannel.ipip".parse().unwrap());
        let port = ChangeError::DataPlane {
            text: "failed to listen on UDP 10.0.0.1:8285".to_owned(),
            errno: Some(Errno::EADDRINUSE),
        };
        for (cause, code, word) in [
            (
                ipip(refused(Errno::EOPNOTSUPP)),
                Code::KernelNoModule,
                "modprobe ipip",
            ),
            (
                ipip(refused(Errno::EPERM)),
                Code::KernelNoPrivileges,
                "CAP_NET_ADMIN",
            ),
            (
                ipip(refused(Errno::EEXIST)),
                Code::KernelExists,
                "ip link del",
            ),
            (
                ipip(refused(Errno::EADDRINUSE)),
                Code::KernelPort,
                "ss -lunp",
            ),
            (
                failure(link, Object::OtherLink, port),
                Code::KernelPort,
                "ss -lunp",
            ),
            (
                route(conflict),
                Code::KernelConflict,
                "ip route del 10.5.2.0/24 via 10.0.0.9 proto 4 dev eth0",
            ),
            (
                route(refused(Errno::EINVAL)),
                Code::KernelNoPath,
                "DirectRouting",
            ),
            (
                route(refused(Errno::ENOBUFS)),
                Code::KernelFull,
                "gc_thresh3",
            ),
            (
                route(ChangeError::NoDevice("flannel.1".parse().unwrap())),
                Code::KernelNoDevice,
                "ip monitor link",
            ),
            (
                route(ChangeError::Dependency),
                Code::KernelDependency,
                "journalctl",
            ),
            (
                route(refused(Errno::EIO)),
                Code::KernelRefused,
                "selvage cleanup",
            ),
        ] {
            assert_eq!(cause.code, code, "{cause:?}");
            assert!(code.is_kernel_change(), "{code}");
            let (_, remedy) = explain(&cause, &names);
            assert!(
                remedy.iter().any(|remedy| remedy.contains(word)),
                "{word}: {remedy:?}"
            );
        }
    }

    #[test]
    fn every_refusal_has_a_remedy_that_names_this_network_alone() {
        let names = Names::of(&settings(&["--network", "blue"]));
        for code in Code::ALL.iter().filter(|code| code.is_kernel_change()) {
            let (_, remedy) = explain(&Cause::new(*code, "x"), &names);
            super::super::tests::assert_about_blue(&remedy);
        }
    }

    #[test]
    fn the_object_is_named() {
        let object = route(refused(Errno::EIO)).object;
        assert_eq!(object.as_deref(), Some("route 10.5.2.0/24"));
        let object = ipip(refused(Errno::EIO)).object;
        assert_eq!(object.as_deref(), Some("link flannel.ipip"));
    }

    #[test]
    fn one_cause_is_one_finding_and_hides_what_depends_on_it() {
        let mut status = Status::joining(
            crate::telemetry::status::Agent::of_process("x", 0),
            Vec::new(),
        );
        status.health.state = State::Degraded;
        status.kernel.causes = vec![
            ipip(refused(Errno::EOPNOTSUPP)),
            route(ChangeError::Dependency),
            route(ChangeError::Dependency),
        ];
        let names = Names::of(&settings(&[]));
        let found = find(&status, &names);
        assert_eq!(found.len(), 1, "{found:#?}");
        status.health = Health::new(State::Joining, vec![status.kernel.causes.remove(0)]);
        assert_eq!(find(&status, &names), found);
    }

    #[test]
    fn an_agent_without_codes_is_heard_all_the_same() {
        let mut status = Status::joining(
            crate::telemetry::status::Agent::of_process("x", 0),
            Vec::new(),
        );
        status.health.state = State::Degraded;
        status.kernel.failures = vec!["failed to add route 10.5.2.0/24: EIO".to_owned(); 2];
        let [found] = &find(&status, &Names::of(&settings(&[])))[..] else {
            panic!("not one finding")
        };
        assert!(found.what.contains("route 10.5.2.0/24"), "{found:?}");
        assert!(found.remedy[0].contains("journalctl"), "{found:?}");
    }
}
