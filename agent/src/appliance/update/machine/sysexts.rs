//! How a release's system extensions come to this machine: by themselves with an update, one that it uses, or by hand.

use std::time::Instant;

use tracing::warn;

use super::{Machine, Progress, Step, UpdateError};
use crate::appliance::update::download::{Download, Pace};
use crate::appliance::update::index::{File, Release};
use crate::appliance::update::server::Server;
use crate::appliance::update::sysext::{Name, Store, StoreError};
use crate::appliance::update::version::Version;
use crate::base::logging::chain;

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
        let directory = store.downloads();
        let mut download = Download {
            server: server
                .or(self.server.as_ref())
                .ok_or(UpdateError::NoServer)?,
            directory: &directory,
            pace: Pace::new(self.settings.rate_limit, Instant::now()),
            backoff: self.backoff.clone(),
        };
        let of = file.size;
        let mut hear = |done| progress(Step::Download { done, of });
        if let Err(error) = download.run(file, &mut hear).await {
            if error.is_full_disk()
                && let Err(error) = store.clear_downloads()
            {
                warn!("failed to remove what was downloaded: {error}");
            }
            return Err(error.into());
        }
        store.adopt(&directory.join(file.name()), version, name)?;
        Ok(())
    }

    /// Brings for a release the extensions that the running version has here. One that does not come is no reason to stay
    /// without the release: `selvage update status` names it.
    pub(super) async fn bring_sysexts(&self, release: &Release, progress: Progress<'_>) {
        let (store, version) = (self.sysexts(), &release.version);
        let listed = || -> Result<_, StoreError> {
            Ok((store.names(&self.running)?, store.names(version)?))
        };
        let (names, here) = match listed() {
            Ok(listed) => listed,
            Err(error) => {
                warn!(
                    "the update goes on without system extensions: {}",
                    chain(&error)
                );
                return;
            }
        };
        for name in names.iter().filter(|name| !here.contains(name)) {
            let Some(file) = release.sysexts.get(name) else {
                warn!(
                    "version {version} comes without the system extension {name}, which this machine has: it is not there \
                     after the update"
                );
                continue;
            };
            let brought = self.bring_sysext(None, file, version, name, progress);
            if let Err(error) = brought.await {
                warn!(
                    "the update to {version} goes on without the system extension {name}: {}; after it, selvage sysext add \
                     {name} brings it",
                    chain(&error)
                );
            }
        }
    }
}
