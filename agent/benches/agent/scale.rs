//! Start, memory and processor time, with no peers and with many.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Bench;
use crate::leases::{self, FIRST, Pace, subnets};
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::tools;
use crate::turns::{self, Figures, Metric};

/// Turns of every program; odd numbers, for the median.
const STARTS: usize = 11;
const IDLE: usize = 3;
const STORMS: usize = 3;
/// Peers that the many are.
const MANY: u16 = 10_000;
/// What follows a start is over by then.
const SETTLED: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
/// Peers of [`MANY`] that go, and as many others that come.
const CHURN: u16 = 1_000;
/// A program that has nothing to do any more is taken to have come to rest after this.
pub(crate) const REST: Duration = Duration::from_secs(2);
/// How long the kernel may take to be as it should; some programs take long.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

const MILLION: f64 = 1e6;

impl Bench {
    /// What the binary weighs.
    pub(crate) fn size(&self, table: &mut Table) -> Result<()> {
        let mut all = Vec::new();
        for program in &self.programs {
            let mut figures = Figures::default();
            // Exact up to 2^53 bytes.
            let bytes = std::fs::metadata(&program.path)?.len() as f64;
            figures.add(Metric::Size, bytes);
            all.push(figures);
        }
        table.add(&Row {
            what: "binary".to_owned(),
            unit: Unit::Bytes,
            metric: Metric::Size,
            own: &all[0],
            beside: Beside::Rival(all.get(1)),
            targets: &[],
        });
        Ok(())
    }

    /// From nothing to `subnet.env`, in an empty cluster.
    pub(crate) fn start(&self, table: &mut Table) {
        for backend in ["vxlan", "host-gw", "udp"] {
            self.set_backend(backend);
            let what = format!("start to subnet.env, no other leases, {backend}");
            let all = turns::take(&what, STARTS, &self.names(), |place, figures| {
                self.scrub();
                let mut running = self.programs[place].start(&self.hosts[0])?;
                figures.add(Metric::Start, milliseconds(running.wait_subnet_env()?));
                Ok(())
            });
            self.scrub();
            table.add(&Row {
                what,
                unit: Unit::Milliseconds,
                metric: Metric::Start,
                own: &all[0],
                beside: Beside::Rival(all.get(1)),
                targets: &[Target::TimesAtMost(0.25)],
            });
        }
        self.set_backend("vxlan");
    }

    /// Memory at rest, with no and with some peers.
    pub(crate) fn memory(&self, table: &mut Table) -> Result<()> {
        for peers in [0, 100] {
            let peers = FIRST..FIRST + peers;
            let what = format!("with {} peers", peers.len());
            leases::change(&self.hosts[0], Pace::Bulk, 0..0, peers.clone())?;
            let all = turns::take(
                &format!("memory {what}"),
                IDLE,
                &self.names(),
                |place, figures| {
                    self.scrub();
                    let mut running = self.programs[place].start(&self.hosts[0])?;
                    running.wait_subnet_env()?;
                    running.wait_routes(&subnets(peers.clone()), LIMIT)?;
                    std::thread::sleep(REST);
                    add_memory(figures, &running.process().memory()?);
                    Ok(())
                },
            );
            self.scrub();
            leases::change(&self.hosts[0], Pace::Bulk, peers, 0..0)?;
            add_memory_rows(table, &what, &all, &[]);
        }
        Ok(())
    }

    /// How often programs wake up while nothing happens.
    pub(crate) fn idle(&self, table: &mut Table) {
        let what = "wake-ups in a minute without events";
        let all = turns::take(what, 1, &self.names(), |place, figures| {
            self.scrub();
            let mut running = self.programs[place].start(&self.hosts[0])?;
            running.wait_subnet_env()?;
            std::thread::sleep(SETTLED);
            let before = running.process().wake_ups()?;
            std::thread::sleep(MINUTE);
            // Exact for counts.
            figures.add(
                Metric::WakeUps,
                (running.process().wake_ups()? - before) as f64,
            );
            Ok(())
        });
        self.scrub();
        table.add(&Row {
            what: what.to_owned(),
            unit: Unit::Times,
            metric: Metric::WakeUps,
            own: &all[0],
            beside: Beside::Rival(all.get(1)),
            targets: &[],
        });
    }

    /// A cluster of ten thousand: joining it, what that needs, and a storm of changes on top.
    pub(crate) fn ten_thousand(&self, table: &mut Table) -> Result<()> {
        let host = &self.hosts[0];
        let peers = FIRST..FIRST + MANY;
        let mut names = self.names();
        // The tools take their turns among the programs.
        names.push("ip and bridge -batch");
        leases::change(host, Pace::Bulk, 0..0, peers.clone())?;
        let all = turns::take("10,000 peers", STORMS, &names, |place, figures| {
            self.scrub();
            match self.programs.get(place) {
                Some(_) => self.storm(place, figures),
                None => {
                    let cost = tools::program(host, peers.clone())?;
                    figures.add(Metric::Programmed, cost.time.as_secs_f64());
                    figures.add(Metric::ProgrammedCpu, cost.cpu.as_secs_f64());
                    Ok(())
                }
            }
        });
        self.scrub();
        leases::change(host, Pace::Bulk, peers, 0..0)?;

        let own = &all[0];
        let rival = || Beside::Rival((self.programs.len() > 1).then(|| &all[1]));
        let tools = || Beside::Other("ip, bridge -batch", &all[self.programs.len()]);
        let mut add = |what: &str, unit, metric, beside, targets: &[_]| {
            table.add(&Row {
                what: what.to_owned(),
                unit,
                metric,
                own,
                beside,
                targets,
            });
        };
        add(
            "start to subnet.env, 10,000 leases, vxlan",
            Unit::Milliseconds,
            Metric::Start,
            rival(),
            &[Target::AtMost(500.0), Target::TimesAtMost(0.25)],
        );
        let what = "start to 10,000 peers in the kernel, vxlan";
        let (unit, metric) = (Unit::Seconds, Metric::Programmed);
        add(what, unit, metric, rival(), &[Target::TimesAtMost(0.1)]);
        add(what, unit, metric, tools(), &[Target::TimesAtMost(0.5)]);
        let what = "start to 10,000 peers in the kernel, processor time";
        let metric = Metric::ProgrammedCpu;
        add(what, unit, metric, rival(), &[Target::AtMost(1.0)]);
        add(what, unit, metric, tools(), &[]);
        let what = "10,000 peers, 1,000 of them go and 1,000 others come";
        add(what, unit, Metric::Churn, rival(), &[]);
        let what = &format!("{what}, processor time");
        add(what, unit, Metric::ChurnCpu, rival(), &[]);
        let programs = &all[..self.programs.len()];
        add_memory_rows(
            table,
            "with 10,000 peers",
            programs,
            &[Target::AtMost(25.0)],
        );
        Ok(())
    }

    /// One program's turn in a cluster of ten thousand.
    fn storm(&self, place: usize, figures: &mut Figures) -> Result<()> {
        let host = &self.hosts[0];
        let before = FIRST..FIRST + MANY;
        let (gone, come) = (FIRST..FIRST + CHURN, before.end..before.end + CHURN);
        let mut running = self.programs[place].start(host)?;
        let start = running.wait_subnet_env()?;
        let programmed = running.wait_routes(&subnets(before.clone()), LIMIT)?;
        let cpu = running.process().cpu()?;
        std::thread::sleep(REST);
        let memory = running.process().memory()?;

        let at_rest = running.process().cpu()?;
        let begin = Instant::now();
        let writer = leases::start_change(host, Pace::Single, gone.clone(), come.clone())?;
        let churned = running.wait_routes(&subnets(gone.end..come.end), LIMIT);
        let churn = begin.elapsed();
        leases::finish(writer)?;
        // What is done last, such as to answer the last change.
        std::thread::sleep(REST / 2);
        let churn_cpu = running.process().cpu()?.saturating_sub(at_rest);
        leases::change(host, Pace::Bulk, come, gone)?;
        churned?;

        figures.add(Metric::Start, milliseconds(start));
        figures.add(Metric::Programmed, programmed.as_secs_f64());
        figures.add(Metric::ProgrammedCpu, cpu.as_secs_f64());
        add_memory(figures, &memory);
        figures.add(Metric::Churn, churn.as_secs_f64());
        figures.add(Metric::ChurnCpu, churn_cpu.as_secs_f64());
        Ok(())
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn add_memory(figures: &mut Figures, memory: &crate::process::Memory) {
    // Exact up to 2^53 bytes.
    figures.add(Metric::Resident, memory.now as f64 / MILLION);
    figures.add(Metric::ResidentPeak, memory.peak as f64 / MILLION);
    figures.add(Metric::Private, memory.private as f64 / MILLION);
}

/// One row for now, one for the peak and one for what is not pages of the program's file; the targets are for the first.
pub(crate) fn add_memory_rows(table: &mut Table, what: &str, all: &[Figures], targets: &[Target]) {
    for (name, metric, targets) in [
        ("resident memory at rest", Metric::Resident, targets),
        ("resident memory, peak", Metric::ResidentPeak, &[]),
        ("memory of its own at rest", Metric::Private, &[]),
    ] {
        table.add(&Row {
            what: format!("{name}, {what}"),
            unit: Unit::Megabytes,
            metric,
            own: &all[0],
            beside: Beside::Rival(all.get(1)),
            targets,
        });
    }
}
