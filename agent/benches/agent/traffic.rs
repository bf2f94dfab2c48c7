//! The udp backend between two hosts, beside the kernel's VXLAN and no overlay over the same cable: throughput, small
//! packets, and what a ping waits beside a stream.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::Bench;
use crate::ends::{MANY, Path, SMALL};
use crate::program;
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::turns::{self, Figures, Metric};

const TURNS: usize = 5;

impl Bench {
    /// TCP streams, pings beside one, and small packets as fast as one sender can.
    pub(crate) fn udp(&self, table: &mut Table) {
        self.set_backend("udp");
        let count = self.programs.len();
        let mut names = self.names();
        names.extend(["vxlan", "no overlay"]);
        let all = turns::take("udp traffic", TURNS, &names, |place, figures| {
            self.scrub();
            if place < count {
                self.over_program(place, figures)
            } else if place == count {
                self.over_vxlan(figures)
            } else {
                self.traffic(self.hosts[1].address, figures)
            }
        });
        self.scrub();
        let rival = Beside::Rival((count > 1).then(|| &all[1]));
        let vxlan = Beside::Other("vxlan", &all[count]);
        let none = Beside::Other("no overlay", &all[count + 1]);
        for ((what, unit, metric), times) in rows().into_iter().zip([0.9, 1.0, 0.7, 0.0, 0.0]) {
            // A ping should be as quick, a stream as wide.
            let at_least = unit != Unit::Microseconds;
            let thrice = if at_least {
                Target::TimesAtLeast(3.0)
            } else {
                Target::TimesAtMost(1.0)
            };
            let ways = [
                (&rival, Some(thrice)),
                (&vxlan, (times > 0.0).then_some(Target::TimesAtLeast(times))),
                (&none, None),
            ];
            for (beside, target) in ways {
                table.add(&Row {
                    what: format!("udp, {what}"),
                    unit,
                    metric,
                    own: &all[0],
                    beside: beside.clone(),
                    targets: target.as_slice(),
                });
            }
        }
        self.set_backend("vxlan");
    }

    /// Between two hosts on which the same program runs.
    fn over_program(&self, place: usize, figures: &mut Figures) -> Result<()> {
        let _running = self.join(place)?;
        let subnet = program::subnet_of(&self.hosts[1]).context("no subnet in subnet.env")?;
        // The TUN device has the subnet's first address.
        self.traffic(subnet.network(), figures)
    }

    /// Between two hosts with a VXLAN device each, with flannel's MTU.
    fn over_vxlan(&self, figures: &mut Figures) -> Result<()> {
        let address = |number| Ipv4Addr::new(10, 128, number, 0);
        for (number, host, other) in [
            (1, &self.hosts[0], &self.hosts[1]),
            (2, &self.hosts[1], &self.hosts[0]),
        ] {
            for line in [
                format!(
                    "link add flannel.1 mtu 1450 type vxlan id 1 dev eth0 local {} remote {} dstport 8472 nolearning",
                    host.address, other.address
                ),
                format!("address add {}/9 dev flannel.1", address(number)),
                "link set flannel.1 up".to_owned(),
            ] {
                host.namespace.ip(&line);
            }
        }
        self.traffic(address(2), figures)
    }

    /// Measures all kinds of traffic from the first host to an address of the second.
    fn traffic(&self, to: Ipv4Addr, figures: &mut Figures) -> Result<()> {
        let [from, far] = &self.hosts;
        let path = Path {
            from: &from.namespace,
            far: &far.namespace,
            to,
        };
        path.wait()?;
        path.measure(figures)?;
        path.measure_many(figures)?;
        path.measure_pings(figures)
    }
}

fn rows() -> [(String, Unit, Metric); 5] {
    let gigabits = Unit::GigabitsPerSecond;
    [
        ("one TCP stream".to_owned(), gigabits, Metric::Stream),
        (format!("{MANY} TCP streams"), gigabits, Metric::Streams),
        (
            format!("packets of {SMALL} bytes"),
            Unit::ThousandPacketsPerSecond,
            Metric::Packets,
        ),
        (
            "ping beside a stream, median".to_owned(),
            Unit::Microseconds,
            Metric::PingMedian,
        ),
        (
            "ping beside a stream, p99".to_owned(),
            Unit::Microseconds,
            Metric::PingP99,
        ),
    ]
}
