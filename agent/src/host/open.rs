//! Opening a backend: no other agent on this host may have its network or devices, and the questions of its plan are
//! answered from the kernel, the state directory and the administrator's first command.

use thiserror::Error;

use super::executor::{ClaimError, Executor};
use super::hooks::{self, CommandError};
use super::identity::{IdentityError, vxlan, wireguard};
use super::netlink::KernelError;
use crate::plan::backend::{Backend, BackendConfig, FirstCommand, Opening, Setup, Unfit};
use crate::plan::state::Object;

/// Failed to make a backend.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another network of this host has what the backend needs.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// It cannot work here.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The kernel would not say what exists.
    #[error("failed to look for an existing overlay device")]
    Kernel(#[from] KernelError),
    /// A command of the network config's did not succeed.
    #[error("{key}")]
    Command {
        /// Which.
        key: &'static str,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// MAC address or private key cannot be read, made or kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Makes the backend that the network config asks for, after it was made sure that no other agent on this host has the
/// network or the device. Nothing is created in the kernel.
///
/// # Errors
///
/// Another agent has them; the identity could not be read from the kernel, or kept in the state directory; or the backend does not work here.
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

/// Runs the first command of a config; returns what it printed.
///
/// # Errors
///
/// It failed; the text has what it printed.
pub(crate) async fn output(first: &FirstCommand) -> Result<String, OpenError> {
    let output = hooks::run(&first.command, &[], None).await;
    output.map_err(|source| OpenError::Command {
        key: first.key,
        source,
    })
}
