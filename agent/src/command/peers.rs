//! `selvage peers`: the owner of an address, and whether its kernel objects exist.

use std::io::{self, Write};

use ipnet::IpNet;
use serde::Serialize;

use crate::base::terminal::{self, Style};
use crate::command::cli::PeersFlags;
use crate::command::status::text::describe_peers;
use crate::command::status::{Error, NOT_RUNNING, json, look, print};
use crate::settings::Settings;
use crate::telemetry::control::{self, Client};
use crate::telemetry::status::{
    Health, Owner, Peer, PeerDetail, PeerState, SCHEMA, State, Status, now,
};

mod text;

/// What `selvage peers --json` prints.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    /// Version of the schema: [`SCHEMA`].
    schema: u32,
    /// The time of the data.
    time: u64,
    /// As in the status, because the list of peers may be incomplete while something is wrong.
    health: &'a Health,
    peers: &'a [Peer],
}

/// Shows one peer with its kernel objects, or all peers. Returns the exit status: 0 all objects exist, 1 some do not, 3
/// no agent runs.
///
/// # Errors
/// An agent is running but does not answer, or printing failed.
pub async fn run(
    settings: &Settings,
    flags: &PeersFlags,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let style = Style::choose(flags.color);
    let width = terminal::size().map(|(columns, _)| columns);
    let Some(asked) = flags.address else {
        let status = look(settings).await?;
        if flags.json {
            print(output, &json(&Listing::of(&status))?)?;
        } else {
            let text = text::all(&status, describe_peers(&status, width, style));
            print(output, &text)?;
        }
        return Ok(exit_status(&status));
    };
    let detail = match Client::new(&settings.files.socket).peer(asked).await {
        Ok(detail) => detail,
        Err(control::Error::NotRunning { path, source })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            return Err(Error::NotAllowed { path, source });
        }
        Err(control::Error::NotRunning { .. }) => {
            return without_agent(settings, flags, asked, output).await;
        }
        Err(error) => return Err(error.into()),
    };
    if flags.json {
        print(output, &json(&detail)?)?;
    } else {
        print(output, &text::one(&detail, now(), width, style))?;
    }
    Ok(u8::from(!is_well(&detail)))
}

/// Whether the address has an owner and is reachable.
fn is_well(detail: &PeerDetail) -> bool {
    let programmed = |peer: &Peer| peer.state == PeerState::Programmed;
    match detail.owner {
        Owner::Own => true,
        Owner::Nobody | Owner::Outside => false,
        Owner::Peer => {
            detail.peer.as_ref().is_some_and(programmed)
                && detail.objects.iter().all(|object| object.present)
        }
    }
}

fn exit_status(status: &Status) -> u8 {
    if status.health.state == State::Stopped {
        return NOT_RUNNING;
    }
    let programmed = |peer: &Peer| peer.state == PeerState::Programmed;
    u8::from(status.health.state == State::Joining || !status.peers.iter().all(programmed))
}

/// The owner of an address according to the kernel's routes.
async fn without_agent(
    settings: &Settings,
    flags: &PeersFlags,
    asked: IpNet,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let mut status = look(settings).await?;
    let single = asked.prefix_len() == asked.max_prefix_len();
    status.peers.retain(|peer| {
        peer.nets().any(|net| net.contains(&asked))
            || single && peer.addresses().any(|address| address == asked.addr())
    });
    if flags.json {
        print(output, &json(&Listing::of(&status))?)?;
    } else {
        let style = Style::choose(flags.color);
        let width = terminal::size().map(|(columns, _)| columns);
        let table = text::offline(&status, asked, (width, style));
        print(output, &text::all(&status, table))?;
    }
    Ok(exit_status(&status))
}

impl<'a> Listing<'a> {
    fn of(status: &'a Status) -> Self {
        Self {
            schema: SCHEMA,
            time: status.time,
            health: &status.health,
            peers: &status.peers,
        }
    }
}
