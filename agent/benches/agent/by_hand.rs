//! vxlan and host-gw by the agent beside the same by hand with ip(8), between containers: what the agent's rules and
//! settings cost. By hand there are no rules at all, neither for masquerading nor for forwarding.
//!
//! ```text
//!  container ── pod, host 1 ── flannel.1 or eth0 ═══ host 2 ── pod ── container
//! ```

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;

use crate::Bench;
use crate::ends::{Path, SMALL};
use crate::host::Host;
use crate::namespace::Namespace;
use crate::program;
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::turns::{self, Figures, Metric};

const TURNS: usize = 8;
/// No rule or setting of ours may cost more.
const LEAST: f64 = 0.98;
/// Where by hand the containers of host 1 and 2 are.
const SUBNETS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 128, 1, 0), Ipv4Addr::new(10, 128, 2, 0)];
const BACKENDS: [&str; 2] = ["vxlan", "host-gw"];

impl Bench {
    /// One TCP stream and small packets between containers.
    pub(crate) fn by_hand(&self, table: &mut Table) {
        for backend in BACKENDS {
            self.set_backend(backend);
            let what = format!("{backend} between containers");
            let names = ["selvage", "by hand"];
            let all = turns::take(&what, TURNS, &names, |place, figures| {
                self.scrub();
                let running = (place == 0).then(|| self.join(0)).transpose()?;
                let subnets = match running {
                    None => {
                        self.program_by_hand(backend);
                        SUBNETS
                    }
                    Some(_) => self.subnets()?,
                };
                self.between_containers(
                    subnets,
                    if backend == "vxlan" { 1450 } else { 1500 },
                    figures,
                )
            });
            for (kind, unit, metric) in [
                (
                    "one TCP stream".to_owned(),
                    Unit::GigabitsPerSecond,
                    Metric::Stream,
                ),
                (
                    format!("packets of {SMALL} bytes"),
                    Unit::ThousandPacketsPerSecond,
                    Metric::Packets,
                ),
            ] {
                table.add(&Row {
                    what: format!("{what}, {kind}"),
                    unit,
                    metric,
                    own: &all[0],
                    beside: Beside::Other(names[1], &all[1]),
                    targets: &[Target::TimesAtLeast(LEAST)],
                });
            }
        }
        self.scrub();
        self.set_backend("vxlan");
    }

    /// The first addresses of the subnets that the agents have leased.
    fn subnets(&self) -> Result<[Ipv4Addr; 2]> {
        let subnet = |host: &Host| program::subnet_of(host).context("no subnet in subnet.env");
        let [one, two] = &self.hosts;
        Ok([subnet(one)?.network(), subnet(two)?.network()])
    }

    /// What flannel makes, and nothing else.
    fn program_by_hand(&self, backend: &str) {
        let mac = |number: usize| format!("02:00:00:00:00:0{number}");
        for (own, far) in [(0, 1), (1, 0)] {
            let [host, other] = [own, far].map(|place| &self.hosts[place]);
            let (subnet, remote) = (SUBNETS[own], SUBNETS[far]);
            if backend == "host-gw" {
                host.namespace.ip(&format!(
                    "route add {remote}/24 via {} dev eth0",
                    other.address
                ));
                continue;
            }
            for line in [
                format!(
                    "link add flannel.1 address {} mtu 1450 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
                    mac(own),
                    host.address
                ),
                format!("address add {subnet}/32 dev flannel.1"),
                "link set flannel.1 up".to_owned(),
                format!(
                    "neighbor add {remote} lladdr {} dev flannel.1 nud permanent",
                    mac(far)
                ),
                format!("route add {remote}/24 via {remote} dev flannel.1 onlink"),
            ] {
                host.namespace.ip(&line);
            }
            host.namespace.run(&format!(
                "bridge fdb add {} dev flannel.1 dst {} self permanent",
                mac(far),
                other.address
            ));
        }
    }

    /// Measures from a container of the first host to one of the second.
    fn between_containers(
        &self,
        subnets: [Ipv4Addr; 2],
        mtu: u32,
        figures: &mut Figures,
    ) -> Result<()> {
        let [from, far] = [0, 1].map(|place| container(&self.hosts[place], subnets[place], mtu));
        let path = Path {
            from: &from,
            far: &far,
            to: address(subnets[1], 2),
        };
        path.wait()?;
        path.measure(figures)
    }
}

/// An address of a subnet of 256.
fn address(subnet: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.to_bits() + number)
}

/// A container with the subnet's second address; the first is the host's.
fn container(host: &Host, subnet: Ipv4Addr, mtu: u32) -> Namespace {
    let container = Namespace::new();
    let gateway = address(subnet, 1);
    host.namespace.connect("pod", &container, "eth0");
    for (namespace, device, own) in [
        (&*host.namespace, "pod", gateway),
        (&container, "eth0", address(subnet, 2)),
    ] {
        namespace.ip(&format!(
            "address add {} dev {device}",
            Ipv4Net::new_assert(own, crate::leases::LEN)
        ));
        namespace.ip(&format!("link set {device} mtu {mtu} up"));
    }
    container.ip(&format!("route add default via {gateway}"));
    container
}
