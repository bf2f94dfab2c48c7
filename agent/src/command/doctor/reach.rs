//! Checks of the paths to peers, by probe packets.
//!
//! All share one survey, which is made once, with our own sockets:
//!
//! 1. every peer is sent an echo of the least and of the greatest size over the overlay, and one on the underlay;
//! 2. with `--deep`, those who did not answer are tried by TCP, since packet filters often drop echoes alone;
//! 3. for those whose underlay address answers and whose overlay address does not, it is looked what of their packets is
//!    seen, and with `--deep` in which direction packets are lost ([`direction`]); for those who answer only short echoes,
//!    which size passes ([`size`]);
//! 4. where the kernel counted wrong checksums, it is looked whose they are ([`checksum`]).
//!
//! `--deep` adds probes that port security and intrusion detection treat as an attack: TCP to a closed port, and echoes
//! whose source address does not belong to this host on that link.
//!
//! On a healthy cluster only the first step runs, and takes as long as the slowest reply. The whole survey takes at
//! most ten seconds.
//!
//! Which address of a peer answers: the first of its subnet, which is on its overlay device, with every backend but
//! host-gw; there, and with `DirectRouting`, the peer itself is the gateway, and its public address is asked instead. A
//! peer that is a real flannel answers likewise.

mod checksum;
mod direction;
mod findings;
mod opening;
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
use self::direction::{Seen, Verdict};
use self::findings::{
    BLOCKED_PORT, CHECKSUM_OFFLOAD, Issue, MTU_BLACK_HOLE, ONE_WAY, PEER_UNREACHABLE,
};
use self::opening::Keeper;
use self::path::{Ground, Path};
use self::size::Search;
use super::{Check, Context, Finding, NotChecked, Outcome};
use crate::host::probe::packet;
use crate::host::probe::ping::{Echo, Outcome as Fate, Pinger};

/// How long to wait for replies to the first echoes, and how often to resend them.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(400),
    Duration::from_millis(500),
    Duration::from_millis(600),
];
/// How many faulty peers are examined closely. Further ones get the most frequent result.
const MOST_SUSPECTS: usize = 64;
/// How many are probed by TCP: processes are usually limited to 1024 file descriptors.
const MOST_CONNECTIONS: usize = 256;
/// How long a TCP connection may take to be refused.
const CONNECT: Duration = Duration::from_secs(1);
/// `discard`: hardly ever open, so that the kernel replies with a reset.
const DISCARD: u16 = 9;

/// The checks, in the order in which they are told.
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
            looks_for: "peers that are reached in one direction only",
            run: |context| Box::pin(ask(context, ONE_WAY)),
        },
        Check {
            name: MTU_BLACK_HOLE,
            looks_for: "paths that lose long packets in silence",
            run: |context| Box::pin(ask(context, MTU_BLACK_HOLE)),
        },
        Check {
            name: CHECKSUM_OFFLOAD,
            looks_for: "peers whose packets come with wrong checksums",
            run: |context| Box::pin(ask(context, CHECKSUM_OFFLOAD)),
        },
    ]
}

/// What came of the packets: what is wrong, or why none could be sent.
#[derive(Debug, Default)]
pub(crate) struct Survey(OnceCell<Result<Vec<Finding>, String>>);

/// What the survey has for one check.
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
        return Err("--no-probes forbids to send packets to peers".to_owned());
    }
    let status = context.status().map_err(|NotChecked(reason)| reason)?;
    let ground = Ground::find(status, context.deep)
        .await
        .map_err(|error| format!("the ways to the peers are not known: {error}"))?
        .ok_or("there is no overlay yet")?;
    let open = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "to send packets to peers needs root, or the capability CAP_NET_RAW".to_owned()
        }
        _ => format!("no packets can be sent to peers: {error}"),
    };
    let mut pinger = Pinger::open().map_err(open)?;
    let mut second = Pinger::open().map_err(open)?;

    let heard = reach(&ground, &mut pinger).await;
    let refused = |heard: &Heard| matches!(heard.over, Fate::Refused(_));
    if !heard.is_empty() && heard.iter().all(refused) {
        return Err("the packet filter of this host lets no echo requests out".to_owned());
    }
    let (suspects, mut issues) = sort(&ground, &heard).await;
    let close: Vec<&Path> = suspects
        .iter()
        .take(MOST_SUSPECTS)
        .filter_map(|&at| ground.paths.get(at))
        .collect();
    let (seen, sizes) = tokio::join!(
        look(&ground, &close, &mut pinger),
        narrow(&ground, &heard, &mut second)
    );
    let seen = seen.map_err(|error| format!("devices cannot be listened to: {error}"))?;
    let lost = |seen: Seen| Issue::Lost(seen.verdict(), seen.port);
    issues.extend(spread(&suspects, seen.into_iter().map(lost).collect()));
    issues.extend(sizes);

    checksum::provoke(&ground).await;
    let dropped = checksum::dropped();
    if dropped > 0 && !ground.paths.is_empty() {
        let corrupt = checksum::listen(&ground)
            .await
            .map_err(|error| format!("devices cannot be listened to: {error}"))?;
        for Corruption {
            path,
            layer,
            packets,
        } in corrupt
        {
            // That is why nothing comes out of the overlay device.
            let dropped = Issue::Lost(Verdict::DroppedHere, None);
            issues.retain(|(at, issue)| *at != path || !issue.is_like(&dropped));
            issues.push((path, Issue::Corrupt(layer, packets)));
        }
    }
    if issues.is_empty() {
        return Ok(Vec::new());
    }
    let keeper = Keeper::of_this_host().await;
    Ok(findings::write(&ground, &issues, keeper, &context.names))
}

/// What became of the first echoes to one peer.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// The shortest, to the overlay address; to the underlay address if the peer is a gateway.
    over: Fate,
    /// The longest, to the same.
    full: Fate,
    /// The shortest on the underlay.
    under: Fate,
}

/// Where a path's echoes go to that tell whether it carries the overlay, and the longest that it has to carry.
fn target(ground: &Ground, path: &Path) -> (IpAddr, usize) {
    match &path.tunnel {
        Some(tunnel) => (path.over, tunnel.mtu),
        None => (path.under, ground.mtu),
    }
}

async fn reach(ground: &Ground, pinger: &mut Pinger) -> Vec<Heard> {
    let echoes: Vec<Echo> = ground
        .paths
        .iter()
        .flat_map(|path| {
            let (to, full) = target(ground, path);
            let under = path.under;
            [(to, 0), (to, full), (under, 0)].map(|(to, len)| Echo { to, len })
        })
        .collect();
    let fates = pinger.ask(&echoes, &PATIENCE).await;
    let three = fates.chunks(3).filter_map(|fates| match *fates {
        [over, full, under] => Some(Heard { over, full, under }),
        _ => None,
    });
    three.collect()
}

/// Sorts out who does not answer: those to look at closely, and what is clear already.
async fn sort(ground: &Ground, heard: &[Heard]) -> (Vec<usize>, Vec<(usize, Issue)>) {
    let silent = |heard: &Heard| {
        heard.over == Fate::Silent && !matches!(heard.full, Fate::Answered | Fate::Refused(_))
    };
    let quiet: Vec<(usize, &Path, Fate)> = ground
        .paths
        .iter()
        .zip(heard)
        .enumerate()
        .filter(|(_, (_, heard))| silent(heard))
        .map(|(at, (path, heard))| (at, path, heard.under))
        .collect();
    let opinions = quiet.iter().enumerate();
    let opinions = opinions.map(|(nth, &(at, path, under))| async move {
        let heard = under == Fate::Answered;
        let allowed = ground.deep && nth < MOST_CONNECTIONS;
        let (over, under) = tokio::join!(
            async { allowed && path.tunnel.is_some() && answers(path.over).await },
            async { heard || allowed && answers(path.under).await },
        );
        (at, path, over, under)
    });
    let (mut suspects, mut issues) = (Vec::new(), Vec::new());
    for (at, path, over, under) in join_all(opinions).await {
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

async fn look(ground: &Ground, paths: &[&Path], pinger: &mut Pinger) -> io::Result<Vec<Seen>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    direction::look(ground, paths, pinger).await
}

/// Finds the largest size that passes if the longest does not.
async fn narrow(ground: &Ground, heard: &[Heard], pinger: &mut Pinger) -> Vec<(usize, Issue)> {
    let narrow: Vec<(usize, &Path, &Heard)> = ground
        .paths
        .iter()
        .zip(heard)
        .enumerate()
        .filter(|(_, (_, heard))| (heard.over, heard.full) == (Fate::Answered, Fate::Silent))
        .map(|(at, (path, heard))| (at, path, heard))
        .collect();
    let whole = usize::try_from(ground.underlay.mtu).unwrap_or_default();
    let close = || narrow.iter().take(MOST_SUSPECTS);
    let searches = close().flat_map(|(_, path, _)| {
        let (to, full) = target(ground, path);
        let passes = packet::shortest(to);
        // The underlay may well carry its whole MTU.
        let under = Search {
            to: path.under,
            passes: packet::shortest(path.under),
            fails: whole + 1,
        };
        let over = Search {
            to,
            passes,
            fails: full,
        };
        [over, under]
    });
    let sizes = size::largest(pinger, searches.collect()).await;
    let pairs = close().zip(sizes.chunks(2));
    let issues = pairs.filter_map(|((_, _, heard), sizes)| match *sizes {
        [over, under] => Some(Issue::Narrow {
            over,
            under: (heard.under == Fate::Answered).then_some(under),
        }),
        _ => None,
    });
    let paths: Vec<usize> = narrow.iter().map(|&(at, ..)| at).collect();
    spread(&paths, issues.collect())
}

/// Assigns each path its issue, and the most frequent issue to paths beyond the last one.
fn spread(paths: &[usize], issues: Vec<Issue>) -> Vec<(usize, Issue)> {
    let alike = |issue: &&Issue| issues.iter().filter(|other| other == issue).count();
    let Some(usual) = issues.iter().max_by_key(alike).copied() else {
        return Vec::new();
    };
    let all = issues.into_iter().chain(std::iter::repeat(usual));
    paths.iter().copied().zip(all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_looked_at_closely_has_the_usual_fault() {
        let blocked = Issue::Lost(Verdict::Blocked, None);
        let issues = vec![Issue::Unreachable, blocked, blocked];
        let spread_out = spread(&[7, 8, 9, 10, 11], issues);
        let at: Vec<usize> = spread_out.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [7, 8, 9, 10, 11]);
        assert_eq!(spread_out[0].1, Issue::Unreachable);
        assert!(spread_out[1..].iter().all(|(_, issue)| *issue == blocked));
        assert!(spread(&[1], Vec::new()).is_empty());
    }
}
