//! Clusters of a thousand and of sixty-five thousand: joining one, what that needs, and its end.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Instant;

use anyhow::Result;

use crate::Bench;
use crate::leases::{self, FIRST, LEN, Pace, subnet, subnets};
use crate::limit;
use crate::scale::{LIMIT, REST, add_memory, add_memory_rows};
use crate::table::{Beside, Row, Table, Target, Unit};
use crate::turns::{self, Figures, Metric};

/// A size of a cluster.
struct Size {
    peers: u16,
    turns: usize,
    /// Whether the rival takes part. What needs time by the square of the peers has no figure for the largest cluster.
    rival: bool,
    /// Seconds from the start to all routes, seconds of processor time for a look at everything, megabytes at rest.
    most: [Option<f64>; 3],
}

const SIZES: [Size; 2] = [
    Size {
        peers: 1_000,
        turns: 5,
        rival: true,
        most: [Some(0.04), None, None],
    },
    Size {
        peers: 65_000,
        turns: 3,
        rival: false,
        // 64 MiB.
        most: [Some(1.2), Some(0.5), Some(67.1)],
    },
];

impl Bench {
    /// Both sizes, each beside the limit.
    pub(crate) fn growth(&self, table: &mut Table) -> Result<()> {
        for size in &SIZES {
            let peers = FIRST..FIRST + size.peers;
            let count = peers.len();
            let contestants = if size.rival { self.programs.len() } else { 1 };
            let mut names = self.names();
            names.truncate(contestants);
            names.push(limit::NAME);
            let host = &self.hosts[0];
            leases::change(host, Pace::Bulk, 0..0, peers.clone())?;
            let what = format!("{count} peers");
            let all = turns::take(&what, size.turns, &names, |place, figures| {
                self.scrub();
                if place < contestants {
                    self.grow(place, peers.clone(), figures)
                } else {
                    limit::program(host, peers.clone(), figures)
                }
            });
            self.scrub();
            leases::change(host, Pace::Bulk, peers, 0..0)?;
            add_rows(table, &what, size, &all);
        }
        Ok(())
    }

    /// One program's turn: it joins, looks at everything once more, and all peers go.
    fn grow(&self, place: usize, peers: Range<u16>, figures: &mut Figures) -> Result<()> {
        let host = &self.hosts[0];
        let wanted = subnets(peers.clone());
        let mut running = self.programs[place].start(host)?;
        running.wait_subnet_env()?;
        let programmed = running.wait_routes(&wanted, LIMIT)?;
        let cpu = running.process().cpu()?;
        figures.add(Metric::Programmed, programmed.as_secs_f64());
        figures.add(Metric::ProgrammedCpu, cpu.as_secs_f64());
        std::thread::sleep(REST);
        add_memory(figures, &running.process().memory()?);

        // Only ours mends what another program has changed.
        if place == 0 {
            let before = running.process().cpu()?;
            let first = subnet(peers.start);
            host.namespace.ip(&format!("route del {first}/{LEN}"));
            running.wait_routes(&wanted, LIMIT)?;
            std::thread::sleep(REST / 2);
            let cost = running.process().cpu()?.saturating_sub(before);
            figures.add(Metric::ResyncCpu, cost.as_secs_f64());
        }

        let (before, begin) = (running.process().cpu()?, Instant::now());
        let writer = leases::start_change(host, Pace::Bulk, peers.clone(), 0..0)?;
        let removed = running.wait_routes(&HashSet::new(), LIMIT);
        let time = begin.elapsed();
        leases::finish(writer)?;
        let cost = running.process().cpu()?.saturating_sub(before);
        drop(running);
        leases::change(host, Pace::Bulk, 0..0, peers)?;
        removed?;
        figures.add(Metric::Removed, time.as_secs_f64());
        figures.add(Metric::RemovedCpu, cost.as_secs_f64());
        Ok(())
    }
}

fn add_rows(table: &mut Table, peers: &str, size: &Size, all: &[Figures]) {
    let (limit, programs) = all.split_last().unwrap_or((&all[0], all));
    let limit = || Beside::Other(limit::NAME, limit);
    let rival = || Beside::Rival(programs.get(1));
    let [programmed, resync, resident] = size.most.map(|most| most.map(Target::AtMost));
    let mut add = |what: String, metric, beside, target: Option<Target>| {
        table.add(&Row {
            what,
            unit: Unit::Seconds,
            metric,
            own: &all[0],
            beside,
            targets: target.as_slice(),
        });
    };
    let what = format!("start to {peers} in the kernel");
    if size.rival {
        add(what.clone(), Metric::Programmed, rival(), None);
    }
    add(what.clone(), Metric::Programmed, limit(), programmed);
    add(
        format!("{what}, processor time"),
        Metric::ProgrammedCpu,
        limit(),
        None,
    );
    let what = format!("all of {peers} go");
    add(what.clone(), Metric::Removed, limit(), None);
    add(
        format!("{what}, processor time"),
        Metric::RemovedCpu,
        limit(),
        None,
    );
    let what = format!("a look at {peers} in the kernel, processor time");
    add(what, Metric::ResyncCpu, Beside::Nothing, resync);
    add_memory_rows(
        table,
        &format!("with {peers}"),
        programs,
        resident.as_slice(),
    );
}
