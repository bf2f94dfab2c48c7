//! Changes of devices, each on its own: what follows needs their indices.

use std::fs;

use tracing::debug;

use super::super::link;
use super::{Change, ChangeError, Kernel, KernelError, Work};
use crate::base::net::InterfaceName;
use crate::plan::state::{Link, LinkKind, Object, Wireguard};

impl Kernel {
    /// Creates, changes or deletes a device; what fails is kept in `work`.
    pub(super) async fn apply_link(
        &mut self,
        work: &mut Work<'_>,
        index: usize,
        name: &InterfaceName,
        change: &Change,
    ) -> Result<(), KernelError> {
        let outcome = match change {
            Change::Del { .. } => self.delete_link(work, name).await?,
            Change::Set {
                object: Object::Link(want),
                was: Some(Object::Link(was)),
                ..
            } => self.change_link(work, name, was, want).await?,
            Change::Set {
                object: Object::Link(want),
                ..
            } => self.create_link(work, name, want).await?,
            Change::Set { .. } => Ok(()),
        };
        // A working device remains useful to the peers even if, say, its MTU cannot be changed.
        let works = matches!(
            change,
            Change::Set { was: Some(Object::Link(was)), .. } if was.up && !work.applied.recreated
        );
        if outcome.is_err() && !works {
            work.applied.broken.insert(name.clone());
        }
        if let Err(error) = outcome {
            work.fail(index, error);
        }
        Ok(())
    }

    async fn create_link(
        &mut self,
        work: &mut Work<'_>,
        name: &InterfaceName,
        want: &Link,
    ) -> Result<Result<(), ChangeError>, KernelError> {
        let created = match (link::create(name, want), &want.kind) {
            (Some(request), _) => self.request(request).await?,
            (None, LinkKind::Tun(tun)) => work.tuns.open(name, tun, want.mtu),
            (None, _) => Ok(()),
        };
        if created.is_err() {
            return Ok(created);
        }
        // No router on the overlay may configure the host; flannel sets this, too. Ignored: without IPv6 the file is
        // missing.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
        match self.find_link(name).await? {
            Some(found) => {
                let nothing = Wireguard::default();
                if let Err(error) = self.set_wireguard(found.index, &nothing, want).await? {
                    return Ok(Err(error));
                }
                if let Some(mark) = self.mark()
                    && let Err(error) = self.request(link::set_alias(found.index, mark)).await?
                {
                    return Ok(Err(error));
                }
                // The data plane creates the TUN device with its own MTU.
                let was = Link {
                    mtu: found.mtu,
                    up: found.up,
                    kind: want.kind.clone(),
                };
                self.request(link::change(found.index, &was, want)).await
            }
            None => Ok(Err(ChangeError::NoDevice(name.clone()))),
        }
    }

    async fn change_link(
        &mut self,
        work: &mut Work<'_>,
        name: &InterfaceName,
        was: &Link,
        want: &Link,
    ) -> Result<Result<(), ChangeError>, KernelError> {
        let Some(&index) = self.indices.get(name) else {
            return Ok(Err(ChangeError::NoDevice(name.clone())));
        };
        if let Some(options) = link::change_options(index, was, want)
            && let Err(error) = self.request(options).await?
        {
            debug!(link = %name, %error, "failed to change the device in place; recreating it");
            work.applied.recreated = true;
            return match self.delete_link(work, name).await? {
                Ok(()) => self.create_link(work, name, want).await,
                Err(error) => Ok(Err(error)),
            };
        }
        if let LinkKind::Wireguard(was) = &was.kind
            && let Err(error) = self.set_wireguard(index, was, want).await?
        {
            return Ok(Err(error));
        }
        work.tuns.set_mtu(name, want.mtu);
        self.request(link::change(index, was, want)).await
    }

    async fn delete_link(
        &mut self,
        work: &mut Work<'_>,
        name: &InterfaceName,
    ) -> Result<Result<(), ChangeError>, KernelError> {
        work.tuns.close(name);
        let Some(found) = self.find_link(name).await? else {
            return Ok(Ok(()));
        };
        let outcome = self.request(link::delete(found.index)).await?;
        if outcome.is_ok() {
            self.indices.remove(name);
            self.ids.remove_link(name);
        }
        Ok(outcome)
    }
}
