//! A connection to charon's VICI socket. A call that fails leaves the connection unusable, unless charon only refused.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::vici::{MAX_PACKET, Packet, PacketError, Section};
use crate::base::go_json::shorten;

/// How long charon may take for one packet. It answers at once, unless all of its threads are busy.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why charon does not do what it is told.
#[derive(Debug, Error)]
pub(crate) enum ViciError {
    /// Nobody answers at the socket.
    #[error(
        "strongSwan's charon, which IPsec needs beside the agent (selvage-charon.service), does not answer at {}", path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// charon ended, or closed the connection.
    #[error("strongSwan's charon ended, or closed the connection")]
    Lost(#[source] io::Error),
    /// No answer in time.
    #[error("strongSwan's charon did not answer {command} within {} s", DEADLINE.as_secs())]
    Deadline {
        /// What it was told.
        command: &'static str,
    },
    /// What it says is not VICI.
    #[error("strongSwan's charon sent an unreadable answer to {command}")]
    Packet {
        /// The command.
        command: &'static str,
        /// Why.
        source: PacketError,
    },
    /// The answer is of another kind than the command asks for.
    #[error(
        "strongSwan's charon does not know {0}; its version is too old, 5.6 or later is needed"
    )]
    Unknown(&'static str),
    /// It refuses a command.
    #[error("strongSwan's charon refuses {command} of {connection}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The connection.
        connection: String,
        /// Why, in its own words.
        reason: String,
    },
}

impl ViciError {
    /// Whether the connection to charon is still good.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client(UnixStream);

impl Client {
    /// Connects to the socket.
    pub(super) async fn connect(path: &Path) -> Result<Self, ViciError> {
        let failed = |source| ViciError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = timeout(DEADLINE, UnixStream::connect(path)).await;
        let stream = stream.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?;
        stream.map(Self).map_err(failed)
    }

    /// Sends a command, and returns the answer.
    pub(super) async fn call(
        &mut self,
        command: &'static str,
        arguments: Section,
    ) -> Result<Section, ViciError> {
        self.list(command, arguments, |_| ()).await
    }

    /// As [`Self::call`]; `take` gets the events that come before the answer.
    pub(super) async fn list(
        &mut self,
        command: &'static str,
        arguments: Section,
        mut take: impl FnMut(Section),
    ) -> Result<Section, ViciError> {
        let request = Packet::Request(command.to_owned(), arguments);
        self.send(command, &request).await?;
        loop {
            match self.receive(command).await? {
                Packet::Event(_, event) => take(event),
                Packet::Response(answer) => return Ok(answer),
                _ => return Err(ViciError::Unknown(command)),
            }
        }
    }

    /// Sends a command that succeeds or not, about a connection.
    pub(super) async fn order(
        &mut self,
        command: &'static str,
        connection: &str,
        arguments: Section,
    ) -> Result<(), ViciError> {
        let answer = self.call(command, arguments).await?;
        match answer.text("success") {
            Some("yes") => Ok(()),
            _ => Err(ViciError::Refused {
                command,
                connection: connection.to_owned(),
                reason: shorten(answer.text("errmsg").unwrap_or("it gives no reason")),
            }),
        }
    }

    /// Asks for the events of a name.
    pub(super) async fn register(&mut self, event: &'static str) -> Result<(), ViciError> {
        let register = Packet::Register(event.to_owned());
        self.send(event, &register).await?;
        match self.receive(event).await? {
            Packet::Confirm => Ok(()),
            _ => Err(ViciError::Unknown(event)),
        }
    }

    /// Waits until charon closes the connection; between calls it sends nothing. Cancel-safe.
    pub(super) async fn closed(&self) -> ViciError {
        loop {
            if let Err(error) = self.0.readable().await {
                return ViciError::Lost(error);
            }
            match self.0.try_read(&mut [0]) {
                // What was read before may count as readable.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return ViciError::Lost(error),
                Ok(0) => return ViciError::Lost(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return ViciError::Lost(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    async fn send(&mut self, command: &'static str, packet: &Packet) -> Result<(), ViciError> {
        let unfit = |source| ViciError::Packet { command, source };
        let packet = packet.write().map_err(unfit)?;
        let length = u32::try_from(packet.len()).map_err(|_| unfit(PacketError::Size))?;
        let bytes = [&length.to_be_bytes(), &packet[..]].concat();
        let sent = timeout(DEADLINE, self.0.write_all(&bytes)).await;
        sent.map_err(|_| ViciError::Deadline { command })?
            .map_err(ViciError::Lost)
    }

    async fn receive(&mut self, command: &'static str) -> Result<Packet, ViciError> {
        let unfit = |source| ViciError::Packet { command, source };
        let receive = async {
            let length = self.0.read_u32().await.map_err(ViciError::Lost)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MAX_PACKET {
                return Err(unfit(PacketError::Size));
            }
            let mut packet = vec![0; length];
            let read = self.0.read_exact(&mut packet).await;
            read.map_err(ViciError::Lost)?;
            Packet::read(&packet).map_err(unfit)
        };
        let received = timeout(DEADLINE, receive).await;
        received.map_err(|_| ViciError::Deadline { command })?
    }
}
