//! Opens a backend: claims its network and devices against other agents on this host, and answers its questions from
//! the kernel, the state directory and the network config's first command.

use thiserror::Error;

use super::executor::{ClaimError, Executor};
use super::hooks::{self, CommandError};
use super::identity::{IdentityError, vxlan, wireguard};
use super::netlink::KernelError;
use crate::plan::backend::{Backend, BackendConfig, FirstCommand, Opening, Setup, Unfit};
use crate::plan::state::Object;

/// Failed to open a backend.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another network on this host has the backend's network or device.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// It cannot work on this host.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// A netlink request failed.
    #[error("failed to look up the overlay device")]
    Kernel(#[from] KernelError),
    /// A command of the network config failed.
    #[error("failed to run {key}")]
    Command {
        /// Its key.
        key: &'static str,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The MAC address or private key cannot be read, generated or stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Opens the backend of the network config, after claiming the network and the device against other agents on this
/// host. Creates nothing in the kernel.
///
/// # Errors
///
/// Another agent has them; the identity cannot be read from the kernel or stored in the state directory; or the backend
/// cannot work on this host.
pub async fn open(
    config: &BackendConfig,
    setup: Setup<'_>,
    executor: &mut Executor,
) -> Result<Box<dyn Backend>, OpenError> {
    let networks: Vec<_> = setup.config.networks().collect();
    executor.claim_network(&networks)?;
    for device in config.devices(setup.config) {
        executor.claim_device(&device, &networks).await?;
    }
    let mut opening = config.open(setup)?;
    loop {
        opening = match opening {
            Opening::Ready(backend) => return Ok(backend),
            Opening::Tun(then) => then(executor.claim_tun().await?),
            Opening::Device(name, then) => then(match executor.kernel_mut().link(&name).await? {
                Some(Object::Link(link)) => Some(*link),
                _ => None,
            }),
            Opening::Mac {
                device,
                existing,
                then,
            } => {
                let file = vxlan::file(setup.state_dir, &device);
                then(match setup.new_identity {
                    true => vxlan::renew(existing, &file)?,
                    false => vxlan::choose(existing, &file)?,
                })
            }
            Opening::PrivateKey(then) => {
                let files = wireguard::Files::of_environment(setup.state_dir);
                then(match setup.new_identity {
                    true => files.renew()?,
                    false => files.key()?,
                })
            }
            Opening::Output { command, then } => then(match setup.printed {
                Some(printed) => printed.to_owned(),
                None => output(&command).await?,
            }),
        }
    }
}

/// Runs the first command of a config; returns its output.
///
/// # Errors
///
/// The command failed; the error includes its output.
pub(crate) async fn output(first: &FirstCommand) -> Result<String, OpenError> {
    let output = hooks::run(&first.command, &[], None).await;
    output.map_err(|source| OpenError::Command {
        key: first.key,
        source,
    })
}
