//! Checks of the paths to peers, by probe packets.
//!
//! All share one survey, which is made once, with our own sockets:
//!
//! 1. every peer gets an echo request of the least and of the greatest size over the overlay, and one on the underlay;
//! 2. with `--deep`, those that did not answer are tried by TCP, since packet filters often drop only echoes;
//! 3. for those whose underlay address answers and whose overlay address does not, their packets are captured, and with
//!    `--deep` the direction in which packets are lost is found ([`direction`]); for those that answer only short echoes,
//!    the size that passes ([`size`]);
//! 4. where the kernel counted wrong checksums, the peers that sent them are found ([`checksum`]).
//!
//! `--deep` adds probes that port security and intrusion detection treat as an attack: TCP to a closed port, and echoes
//! whose source address does not belong to this host on that link.
//!
//! On a healthy cluster only the first step runs, and takes as long as the slowest reply. The whole survey takes at
//! most ten seconds.
//!
//! The address of a peer that answers is the first of its subnet, on its overlay device. With host-gw and
//! `DirectRouting` the peer itself is the gateway, and its public address is probed instead. A flannel peer answers
//! likewise.

mod checksum;
mod direction;
mod filter_manager;
mod findings;
mod path;
mod size;
mod tap;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use self::checksum::Corruption;
use self::direction::{Observation, Verdict};
use self::filter_manager::FilterManager;
use self::findings::{
    BLOCKED_PORT, CHECKSUM_OFFLOAD, Issue, MTU_BLACK_HOLE, ONE_WAY, PEER_UNREACHABLE,
};
use self::path::{Path, Topology};
use self::size::Search;
use super::{Check, Context, Finding, NotChecked, Outcome};
use crate::host::probe::packet;
use crate::host::probe::ping::{Echo, EchoResult, Pinger};

/// How long to wait for replies to the first echoes, and how often to resend them.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(400),
    Duration::from_millis(500),
    Duration::from_millis(600),
];
/// How many faulty peers are examined closely. Further ones get the most frequent result.
const MAX_SUSPECTS: usize = 64;
/// How many are probed by TCP: processes are usually limited to 1024 file descriptors.
const MAX_CONNECTIONS: usize = 256;
/// How long a TCP connection may take to be refused.
const CONNECT: Duration = Duration::from_secs(1);
/// `discard`: hardly ever open, so that the kernel replies with a reset.
const DISCARD: u16 = 9;

/// The checks, in the order of the report.
pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: PEER_UNREACHABLE,
            looks_for: "peers that answer neither over the overlay nor on the underlay",
            run: |context| Box::pin(ask(context, PEER_UNREACHABLE)),
        },
        Check {
            name: BLOCKED_PORT,
            looks_for: "packet filters that drop encapsulated packets",
            run: |context| Box::pin(ask(context, BLOCKED_PORT)),
        },
        Check {
            name: ONE_WAY,
            looks_for: "peers that are reachable in one direction only",
            run: |context| Box::pin(ask(context, ONE_WAY)),
        },
        Check {
            name: MTU_BLACK_HOLE,
            looks_for: "paths that drop large packets silently",
            run: |context| Box::pin(ask(context, MTU_BLACK_HOLE)),
        },
        Check {
            name: CHECKSUM_OFFLOAD,
            looks_for: "peers whose packets arrive with wrong checksums",
            run: |context| Box::pin(ask(context, CHECKSUM_OFFLOAD)),
        },
    ]
}

/// The result of the probes: the faults, or why none could be sent.
#[derive(Debug, Default)]
pub(crate) struct Survey(OnceCell<Result<Vec<Finding>, String>>);

/// The survey's findings for one check.
async fn ask(context: &Context<'_>, check: &'static str) -> Outcome {
    let survey = context.survey.0.get_or_init(|| survey(context)).await;
    match survey {
        Ok(findings) => {
            let findings = findings.iter().filter(|finding| finding.check == check);
            Ok(findings.cloned().collect())
        }
        Err(reason) => Err(NotChecked(reason.clone())),
    }
}

async fn survey(context: &Context<'_>) -> Result<Vec<Finding>, String> {
    if !context.probes {
        return Err("--no-probes disables probe packets to peers".to_owned());
    }
    let status = context.status().map_err(|NotChecked(reason)| reason)?;
    let topology = Topology::find(status, context.deep)
        .await
        .map_err(|error| format!("failed to look up the routes to peers: {error}"))?
        .ok_or("there is no overlay yet")?;
    let mut pinger = Pinger::open().map_err(open_error)?;
    let mut second = Pinger::open().map_err(open_error)?;

    let replies = probe(&topology, &mut pinger).await;
    let refused = |replies: &Replies| matches!(replies.over, EchoResult::Refused(_));
    if !replies.is_empty() && replies.iter().all(refused) {
        return Err("the packet filter of this host drops outgoing echo requests".to_owned());
    }
    let (suspects, mut issues) = classify(&topology, &replies).await;
    let examined: Vec<&Path> = suspects
        .iter()
        .take(MAX_SUSPECTS)
        .filter_map(|&at| topology.paths.get(at))
        .collect();
    let (observations, sizes) = tokio::join!(
        direction::observe(&topology, &examined, &mut pinger),
        search_sizes(&topology, &replies, &mut second)
    );
    let lost = |observed: Observation| Issue::Lost(observed.verdict(), observed.port);
    let lost = observations.map_err(capture_error)?.into_iter().map(lost);
    issues.extend(fill_with_most_frequent(&suspects, lost.collect()));
    issues.extend(sizes);
    add_corruption(&topology, &mut issues)
        .await
        .map_err(capture_error)?;
    if issues.is_empty() {
        return Ok(Vec::new());
    }
    let manager = FilterManager::of_this_host().await;
    Ok(findings::write(&topology, &issues, manager, &context.names))
}

fn open_error(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "probe packets need root or the capability CAP_NET_RAW".to_owned()
        }
        _ => format!("failed to open the sockets for probe packets: {error}"),
    }
}

fn capture_error(error: io::Error) -> String {
    format!("failed to capture packets: {error}")
}

/// Adds the peers whose packets arrive with wrong checksums, if the kernel counted any such packets.
async fn add_corruption(topology: &Topology, issues: &mut Vec<(usize, Issue)>) -> io::Result<()> {
    checksum::provoke(topology).await;
    if checksum::dropped() == 0 || topology.paths.is_empty() {
        return Ok(());
    }
    for Corruption {
        path,
        layer,
        packets,
    } in checksum::listen(topology).await?
    {
        // That is why nothing comes out of the overlay device.
        let dropped = Issue::Lost(Verdict::DroppedHere, None);
        issues.retain(|(at, issue)| *at != path || !issue.is_like(&dropped));
        issues.push((path, Issue::Corrupt(layer, packets)));
    }
    Ok(())
}

/// The results of the first echoes to one peer.
#[derive(Clone, Copy, Debug)]
struct Replies {
    /// The shortest, to the overlay address; to the underlay address if the peer is a gateway.
    over: EchoResult,
    /// The longest, to the same.
    full: EchoResult,
    /// The shortest on the underlay.
    under: EchoResult,
}

/// The address that shows whether a path carries the overlay, and the largest size that it must carry.
fn target(topology: &Topology, path: &Path) -> (IpAddr, usize) {
    match &path.tunnel {
        Some(tunnel) => (path.over, tunnel.mtu),
        None => (path.under, topology.mtu),
    }
}

async fn probe(topology: &Topology, pinger: &mut Pinger) -> Vec<Replies> {
    let echoes: Vec<Echo> = topology
        .paths
        .iter()
        .flat_map(|path| {
            let (to, full) = target(topology, path);
            let under = path.under;
            [(to, 0), (to, full), (under, 0)].map(|(to, len)| Echo { to, len })
        })
        .collect();
    let results = pinger.ask(&echoes, &PATIENCE).await;
    let replies = results.chunks(3).filter_map(|results| match *results {
        [over, full, under] => Some(Replies { over, full, under }),
        _ => None,
    });
    replies.collect()
}

/// Classifies the peers that do not answer: those to examine closely, and those whose fault is clear already.
async fn classify(topology: &Topology, replies: &[Replies]) -> (Vec<usize>, Vec<(usize, Issue)>) {
    let is_silent = |replies: &Replies| {
        replies.over == EchoResult::Silent
            && !matches!(replies.full, EchoResult::Answered | EchoResult::Refused(_))
    };
    let silent = topology.paths.iter().zip(replies).enumerate();
    let silent = silent.filter(|(_, (_, replies))| is_silent(replies));
    let by_tcp = silent
        .enumerate()
        .map(|(nth, (at, (path, replies)))| async move {
            let answered = replies.under == EchoResult::Answered;
            let allowed = topology.deep && nth < MAX_CONNECTIONS;
            let (over, under) = tokio::join!(
                async { allowed && path.tunnel.is_some() && answers(path.over).await },
                async { answered || allowed && answers(path.under).await },
            );
            (at, path, over, under)
        });
    let (mut suspects, mut issues) = (Vec::new(), Vec::new());
    for (at, path, over, under) in join_all(by_tcp).await {
        match (over, under) {
            (true, _) => {}
            (false, true) if path.tunnel.is_some() => suspects.push(at),
            // A gateway that drops echoes.
            (false, true) => {}
            (false, false) => issues.push((at, Issue::Unreachable)),
        }
    }
    (suspects, issues)
}

/// Whether there is any answer by TCP: a connection, or its refusal by the host itself.
async fn answers(address: IpAddr) -> bool {
    let connecting = TcpStream::connect(SocketAddr::new(address, DISCARD));
    match timeout(CONNECT, connecting).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

/// Finds the largest size that passes if the longest does not.
async fn search_sizes(
    topology: &Topology,
    replies: &[Replies],
    pinger: &mut Pinger,
) -> Vec<(usize, Issue)> {
    let limited: Vec<(usize, &Path, &Replies)> = topology
        .paths
        .iter()
        .zip(replies)
        .enumerate()
        .filter(|(_, (_, replies))| {
            (replies.over, replies.full) == (EchoResult::Answered, EchoResult::Silent)
        })
        .map(|(at, (path, replies))| (at, path, replies))
        .collect();
    let interface_mtu = usize::try_from(topology.underlay.mtu).unwrap_or_default();
    let examined = || limited.iter().take(MAX_SUSPECTS);
    let searches = examined().flat_map(|(_, path, _)| {
        let (to, full) = target(topology, path);
        let passes = packet::shortest(to);
        // The underlay may carry the whole MTU of its interface.
        let under = Search {
            to: path.under,
            passes: packet::shortest(path.under),
            fails: interface_mtu + 1,
        };
        let over = Search {
            to,
            passes,
            fails: full,
        };
        [over, under]
    });
    let sizes = size::largest(pinger, searches.collect()).await;
    let pairs = examined().zip(sizes.chunks(2));
    let issues = pairs.filter_map(|((_, _, replies), sizes)| match *sizes {
        [over, under] => Some(Issue::SizeLimit {
            over,
            under: (replies.under == EchoResult::Answered).then_some(under),
        }),
        _ => None,
    });
    let paths: Vec<usize> = limited.iter().map(|&(at, ..)| at).collect();
    fill_with_most_frequent(&paths, issues.collect())
}

/// Assigns each path its issue, and the most frequent issue to paths beyond the last one.
fn fill_with_most_frequent(paths: &[usize], issues: Vec<Issue>) -> Vec<(usize, Issue)> {
    let alike = |issue: &&Issue| issues.iter().filter(|other| other == issue).count();
    let Some(most_frequent) = issues.iter().max_by_key(alike).copied() else {
        return Vec::new();
    };
    let all = issues.into_iter().chain(std::iter::repeat(most_frequent));
    paths.iter().copied().zip(all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_was_not_examined_has_the_most_frequent_fault() {
        let blocked = Issue::Lost(Verdict::Blocked, None);
        let issues = vec![Issue::Unreachable, blocked, blocked];
        let filled = fill_with_most_frequent(&[7, 8, 9, 10, 11], issues);
        let at: Vec<usize> = filled.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [7, 8, 9, 10, 11]);
        assert_eq!(filled[0].1, Issue::Unreachable);
        assert!(filled[1..].iter().all(|(_, issue)| *issue == blocked));
        assert!(fill_with_most_frequent(&[1], Vec::new()).is_empty());
    }
}
