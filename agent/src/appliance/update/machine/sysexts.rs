//! How a release's system extensions come to this machine: by themselves with an update, one that it uses, or by hand.

use std::time::Instant;

use tracing::warn;

use super::{Machine, Progress, Step, UpdateError};
use crate::appliance::update::download::{Download, Pace};
use crate::appliance::update::index::{File, Release};
use crate::appliance::update::server::Server;
use crate::appliance::update::sysext::{Name, Store};
use crate::appliance::update::version::Version;

impl Machine {
    /// The extensions on this disk.
    pub fn sysexts(&self) -> Store {
        Store::new(&self.root)
    }

    /// Downloads an extension, from `server` or the release server, to where its version has it.
    ///
    /// # Errors
    /// No server, or the file is not what was signed, or the disk is full.
    pub async fn bring_sysext(
        &self,
        server: Option<&Server>,
        file: &File,
        version: &Version,
        name: &Name,
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        let store = self.sysexts();
        let directory = store.directory(version);
        let mut download = Download {
            server: server
                .or(self.server.as_ref())
                .ok_or(UpdateError::NoServer)?,
            directory: &directory,
            pace: Pace::new(self.settings.rate_limit, Instant::now()),
            backoff: self.backoff.clone(),
        };
        let of = file.size;
        download
            .run(file, &mut |done| progress(Step::Download { done, of }))
            .await?;
        store.adopt(&directory.join(file.name()), version, name)?;
        Ok(())
    }

    /// Brings for a release the extensions that the running version has here, and forgets those of versions before.
    pub(super) async fn bring_sysexts(
        &self,
        release: &Release,
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        let (store, version) = (self.sysexts(), &release.version);
        let here = store.names(version)?;
        for name in store.names(&self.running)? {
            match release.sysexts.get(&name) {
                _ if here.contains(&name) => {}
                Some(file) => {
                    self.bring_sysext(None, file, version, &name, progress)
                        .await?;
                }
                None => warn!(
                    "version {version} comes without the system extension {name}, which this machine has: it is not there \
                     after the update"
                ),
            }
        }
        if let Err(error) = store.keep_only(&[&self.running, version]) {
            warn!("failed to remove the system extensions of earlier versions: {error}");
        }
        Ok(())
    }
}
