//! What happened while the program ran: its rounds, the outages, and the bytes between the hosts. Pure.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;

use super::{expected::Job, node::Traffic, tally::Tally};
use crate::report::table;

/// Less than this during an outage, in bytes, would not be the shuffle: Spark's processes say less to each other besides.
pub(super) const SHUFFLE: u64 = 1_000_000;
/// One round before the outages, one after, and what lies between.
const LEAST_ROUNDS: usize = 3;

/// A run of the program.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// What the program did.
    pub job: Job,
    /// The hosts.
    pub hosts: Vec<HostRecord>,
    /// What was out of order, and when.
    pub outages: Vec<Outage>,
    /// The program's rounds.
    pub rounds: Vec<RoundRecord>,
    /// What had gone over the overlay at each moment, in the order of time. The first is when the program was started, the last
    /// when it had ended.
    pub samples: Vec<Sample>,
    /// What Spark says of its own work.
    pub tally: Tally,
}

/// A host of the run.
#[derive(Debug, Clone)]
pub(crate) struct HostRecord {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub underlay: Ipv4Addr,
    /// Its subnet before the outages.
    pub subnet: Ipv4Net,
    /// Its subnet after them.
    pub subnet_after: Ipv4Net,
    /// Its pod's address.
    pub pod: Ipv4Addr,
    /// What went through its devices while the program ran.
    pub traffic: Traffic,
}

/// Something was killed, and started again later.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outage {
    /// What.
    pub what: String,
    /// When it was killed, in seconds since the Unix epoch.
    pub from: f64,
    /// When it was started again.
    pub until: f64,
    /// When all agents were ready after that.
    pub ready: f64,
    /// What went over the overlay from `from` to `until`, in bytes.
    pub bytes: u64,
}

/// A round of the program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RoundRecord {
    /// When it began, in seconds since the Unix epoch.
    pub started: f64,
    /// When its result was there.
    pub ended: f64,
    /// Whether that is the right one.
    pub is_right: bool,
}

/// What all hosts had sent over the overlay at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// The moment, in seconds since the Unix epoch.
    pub at: f64,
    /// The bytes, since the program was started.
    pub bytes: u64,
}

impl Record {
    /// When the program was started and had ended, in seconds since the Unix epoch.
    pub(crate) fn span(&self) -> (f64, f64) {
        let ends = self.samples.first().zip(self.samples.last());
        ends.map_or((0.0, 0.0), |(first, last)| (first.at, last.at))
    }

    /// How many seconds the program took.
    pub(crate) fn seconds(&self) -> f64 {
        let (from, until) = self.span();
        until - from
    }

    /// What all hosts sent over the overlay, in bytes.
    pub(crate) fn overlay(&self) -> u64 {
        self.hosts
            .iter()
            .map(|host| host.traffic.overlay.sent)
            .sum()
    }

    /// What all hosts sent over the underlay, in bytes.
    pub(crate) fn underlay(&self) -> u64 {
        self.hosts
            .iter()
            .map(|host| host.traffic.underlay.sent)
            .sum()
    }

    /// A run that shows something broken must not end as if all were well.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        let rounds = self.rounds.len();
        for (place, round) in self.rounds.iter().enumerate() {
            ensure!(
                round.is_right,
                "round {} of {rounds} has a wrong result",
                place + 1
            );
        }
        ensure!(
            rounds >= LEAST_ROUNDS,
            "{rounds} rounds are less than {LEAST_ROUNDS}"
        );
        let last = self.rounds.last().map_or(0.0, |round| round.started);
        for outage in &self.outages {
            ensure!(
                outage.bytes >= SHUFFLE,
                "{} bytes went over the overlay while {} was gone: that is no shuffle",
                outage.bytes,
                outage.what
            );
            ensure!(
                outage.ready <= last,
                "no round began after {} was back",
                outage.what
            );
        }
        for host in &self.hosts {
            ensure!(
                host.subnet == host.subnet_after,
                "{} had the subnet {} and has {} now",
                host.name,
                host.subnet,
                host.subnet_after
            );
        }
        self.check_tally()
    }

    fn check_tally(&self) -> Result<()> {
        let tally = self.tally;
        let hosts = self.hosts.len();
        ensure!(
            usize::try_from(tally.executors) == Ok(hosts),
            "{} executors joined on {hosts} hosts",
            tally.executors
        );
        for (count, what) in [
            (tally.lost_executors, "executors were lost"),
            (tally.failed_tasks, "tasks failed"),
            (tally.failed_stages, "stages failed or were run again"),
        ] {
            ensure!(count == 0, "{count} {what}");
        }
        ensure!(
            self.overlay() >= tally.fetched,
            "tasks fetched {} bytes from other hosts, of which only {} went over the overlay",
            tally.fetched,
            self.overlay()
        );
        Ok(())
    }

    /// The closing screen.
    pub(crate) fn screen(&self) -> String {
        let tally = self.tally;
        let right = self.rounds.iter().filter(|round| round.is_right).count();
        format!(
            "\n  Hosts\n\n{}\n  Outages while the program ran\n\n{}\n  The program: joins of two tables of {} rows on three hosts\n\n\
             \x20 {right} of {} rounds have the right result. {:.0} s in all, {:.1} s a round.\n\
             \x20 {} executors, {} lost; {} tasks, {} failed; {} stages run again.\n\
             \x20 Shuffled: {} between hosts, {} within one. Sent over the overlay: {}; over the underlay: {}.\n",
            table(&self.host_rows()),
            table(&self.outage_rows()),
            self.job.rows,
            self.rounds.len(),
            self.seconds(),
            self.seconds_a_round(),
            tally.executors,
            tally.lost_executors,
            tally.tasks,
            tally.failed_tasks,
            tally.failed_stages,
            megabytes(tally.fetched),
            megabytes(tally.local),
            megabytes(self.overlay()),
            megabytes(self.underlay()),
        )
    }

    fn seconds_a_round(&self) -> f64 {
        let all: f64 = self.rounds.iter().map(|r| r.ended - r.started).sum();
        // Exact for numbers of rounds.
        all / self.rounds.len().max(1) as f64
    }

    /// One row a host, after a heading.
    pub(crate) fn host_rows(&self) -> Vec<[String; 8]> {
        let mut rows = vec![
            [
                "host",
                "underlay IP",
                "subnet",
                "pod",
                "flannel.1 sent",
                "received",
                "eth0 sent",
                "received",
            ]
            .map(str::to_owned),
        ];
        rows.extend(self.hosts.iter().map(|host| {
            let Traffic { overlay, underlay } = host.traffic;
            [
                host.name.clone(),
                host.underlay.to_string(),
                host.subnet.to_string(),
                host.pod.to_string(),
                megabytes(overlay.sent),
                megabytes(overlay.received),
                megabytes(underlay.sent),
                megabytes(underlay.received),
            ]
        }));
        rows
    }

    /// One row an outage, after a heading.
    pub(crate) fn outage_rows(&self) -> Vec<[String; 5]> {
        let mut rows = vec![
            [
                "killed",
                "after",
                "gone for",
                "over the overlay meanwhile",
                "started again to ready",
            ]
            .map(str::to_owned),
        ];
        let (start, _) = self.span();
        rows.extend(self.outages.iter().map(|outage| {
            [
                outage.what.clone(),
                format!("{:.0} s", outage.from - start),
                format!("{:.1} s", outage.until - outage.from),
                megabytes(outage.bytes),
                format!("{:.1} s", outage.ready - outage.until),
            ]
        }));
        rows
    }
}

/// Bytes in megabytes (10^6).
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::demo::spark::namespace::Bytes;

    fn host(number: u8) -> HostRecord {
        let subnet = Ipv4Net::new(Ipv4Addr::new(10, 5, number, 0), 24).unwrap();
        let bytes = |sent| Bytes {
            received: sent / 2,
            sent,
        };
        HostRecord {
            name: format!("node{number}"),
            underlay: Ipv4Addr::new(10, 77, 0, 10 + number),
            subnet,
            subnet_after: subnet,
            pod: Ipv4Addr::new(10, 5, number, 2),
            traffic: Traffic {
                overlay: bytes(300_000_000),
                underlay: bytes(310_000_000),
            },
        }
    }

    /// A run in which all went well.
    pub(crate) fn sample() -> Record {
        let outage = |what: &str, from: f64, until: f64| Outage {
            what: what.to_owned(),
            from,
            until,
            ready: until + 0.5,
            bytes: 90_000_000,
        };
        let round = |started: f64| RoundRecord {
            started,
            ended: started + 19.0,
            is_right: true,
        };
        Record {
            job: Job {
                rows: 500_000,
                groups: 16,
                left: 7,
                right: 11,
            },
            hosts: [1, 2, 3].map(host).to_vec(),
            outages: vec![
                outage("the agent of node2", 1030.0, 1045.0),
                outage("etcd", 1050.0, 1080.0),
            ],
            rounds: (0..5)
                .map(|n| round(1005.0 + 20.0 * f64::from(n)))
                .collect(),
            samples: (0..=110u32)
                .map(|second| Sample {
                    at: 1000.0 + f64::from(second),
                    bytes: u64::from(second) * 8_000_000,
                })
                .collect(),
            tally: Tally {
                tasks: 180,
                executors: 3,
                fetched: 800_000_000,
                local: 400_000_000,
                ..Tally::default()
            },
        }
    }

    #[test]
    fn screen_has_the_figures() {
        let screen = sample().screen();
        for words in [
            "node3   10.77.0.13    10.5.3.0/24   10.5.3.2   300.0 MB         150.0 MB   310.0 MB    155.0 MB",
            "etcd                 50 s    30.0 s     90.0 MB",
            "5 of 5 rounds have the right result. 110 s in all, 19.0 s a round.",
            "3 executors, 0 lost; 180 tasks, 0 failed; 0 stages run again.",
            "Shuffled: 800.0 MB between hosts, 400.0 MB within one. Sent over the overlay: 900.0 MB; over the underlay: 930.0 MB.",
        ] {
            assert!(screen.contains(words), "{words} is missing in\n{screen}");
        }
    }

    #[test]
    fn a_good_run_passes_and_no_other() {
        sample().check().unwrap();
        type Fault = fn(&mut Record);
        let faults: [(&str, Fault); 10] = [
            ("round 2 of 5 has a wrong result", |run| {
                run.rounds[1].is_right = false;
            }),
            ("2 rounds are less than 3", |run| run.rounds.truncate(2)),
            ("no round began after etcd was back", |run| {
                run.outages[1].ready = 1200.0;
            }),
            ("while the agent of node2 was gone", |run| {
                run.outages[0].bytes = 999_999;
            }),
            ("node1 had the subnet 10.5.1.0/24", |run| {
                run.hosts[0].subnet_after = "10.5.9.0/24".parse().unwrap();
            }),
            ("2 executors joined on 3 hosts", |run| {
                run.tally.executors = 2
            }),
            ("1 executors were lost", |run| run.tally.lost_executors = 1),
            ("4 tasks failed", |run| run.tally.failed_tasks = 4),
            ("1 stages failed", |run| run.tally.failed_stages = 1),
            ("of which only 900000000", |run| {
                run.tally.fetched = 900_000_001
            }),
        ];
        for (words, spoil) in faults {
            let mut run = sample();
            spoil(&mut run);
            let error = run.check().unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
