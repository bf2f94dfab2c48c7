//! How a version comes into its slot, and how the next boot comes to try it.

use std::time::SystemTime;

use tracing::warn;

use super::{Machine, Progress, Step, UpdateError, seconds};
use crate::appliance::update::choose::too_old_for;
use crate::appliance::update::index::Release;
use crate::appliance::update::secure_boot;
use crate::appliance::update::slots::partition::{Fault, faults, own_disk};
use crate::appliance::update::slots::uki::{self, MACHINE};
use crate::appliance::update::slots::{self, SlotError};
use crate::appliance::update::state::{Health, State};
use crate::appliance::update::version::Version;

impl Machine {
    /// Brings a release into its slot, and has the next boot try it. `health` takes the health of this machine, with which
    /// its boot check compares: after a download, which may take hours.
    ///
    /// # Errors
    /// As [`Self::install`] and [`Self::arm`].
    pub async fn apply(
        &self,
        release: &Release,
        health: impl AsyncFnOnce() -> Health,
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        self.install(release, progress).await?;
        self.arm(&release.version, health().await)
    }

    /// Brings a release into the slot that the running version is not in, with its boot entry aside: no reboot starts it
    /// before [`Self::arm`]. What is there already is read and compared; what differs is written anew.
    ///
    /// # Errors
    /// It is too old or running, a step failed, or what was written is not what is read.
    pub async fn install(
        &self,
        release: &Release,
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        let version = &release.version;
        self.refuse(release)?;
        slots::clear_damaged(&self.root, &self.running)?;
        if self.faults(release)?.is_empty() {
            self.bring_sysexts(release, progress).await;
        } else {
            self.fill_slot(release, progress).await?;
        }
        // Until here, the version that was in the slot may be what the next boot starts.
        let versions = [&self.running, version];
        if let Err(error) = self.sysexts().keep_only(&versions) {
            warn!("failed to remove the system extensions of earlier versions: {error}");
        }
        Ok(())
    }

    /// Writes what a release has into the slot, and its boot entry, which is aside.
    async fn fill_slot(
        &self,
        release: &Release,
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        let version = &release.version;
        self.download(release, progress).await?;
        let of = release.unpacked_size();
        self.staging
            .unpack(release, &mut |done| progress(Step::Unpack { done, of }))?;
        self.refuse_other_machines(version)?;
        secure_boot::check(&self.root, &self.staging.uki(version))?;
        // The release itself has its space by now, and a power cut leaves it to be installed, with its extensions.
        self.bring_sysexts(release, progress).await;
        self.disarm_what_is_overwritten(version)?;
        self.write(version, &self.faults(release)?, progress)
            .await?;
        let entries = slots::entries(&self.root)?;
        if !entries.iter().any(|entry| entry.version == *version) {
            return Err(SlotError::NoEntry(version.clone()).into());
        }
        // The transfers of another image may have given it tries at once.
        slots::put_aside(&self.root, version)?;
        if let Some(fault) = self.faults(release)?.first() {
            let name = fault.file.unpacked_name().to_owned();
            return Err(UpdateError::NotWritten { name });
        }
        if let Err(error) = self.staging.keep_only(None) {
            warn!("failed to remove what was installed: {error}");
        }
        Ok(())
    }

    fn refuse(&self, release: &Release) -> Result<(), UpdateError> {
        let version = release.version.clone();
        if version == self.running {
            return Err(UpdateError::Running(version));
        }
        match too_old_for(release, &self.running) {
            None => Ok(()),
            Some(from) => Err(UpdateError::TooOld {
                version,
                from,
                running: self.running.clone(),
            }),
        }
    }

    /// Firmware of another architecture starts nothing of it, and no boot check would ever run.
    fn refuse_other_machines(&self, version: &Version) -> Result<(), UpdateError> {
        let path = self.staging.uki(version);
        match uki::machine(&path) {
            Ok(Some(MACHINE)) => Ok(()),
            Ok(machine) => Err(UpdateError::OtherMachines {
                version: version.clone(),
                machine: machine.map_or("none".to_owned(), |machine| format!("{machine:#06x}")),
            }),
            Err(source) => Err(UpdateError::Unpacked { path, source }),
        }
    }

    fn faults<'a>(&self, release: &'a Release) -> Result<Vec<Fault<'a>>, UpdateError> {
        Ok(faults(&self.root, &self.running, release)?)
    }

    /// A chance reboot must not start what is half overwritten: the version itself, if its slot is written anew, and one
    /// that has its tries still, whose slot this is.
    fn disarm_what_is_overwritten(&self, version: &Version) -> Result<(), UpdateError> {
        for entry in slots::entries(&self.root)? {
            let is_affected = entry.version == *version || entry.is_on_trial();
            if entry.version != self.running && is_affected && !entry.is_aside() {
                entry.set_aside()?;
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        version: &Version,
        faults: &[Fault<'_>],
        progress: Progress<'_>,
    ) -> Result<(), UpdateError> {
        let mut is_missing = false;
        for fault in faults {
            if let Some(path) = &fault.at {
                let name = path.display();
                warn!("{name} is not what version {version} has: it is written anew");
                progress(Step::Install(&format!("Writing {name} anew.")));
            }
            is_missing |= fault.mend(&self.staging.unpacked)?;
        }
        if is_missing {
            let mut hear = |line: &str| progress(Step::Install(line));
            let disk = own_disk(&self.root, &self.running)?;
            self.sysupdate
                .update(disk.as_deref(), version, &mut hear)
                .await?;
        }
        Ok(())
    }

    /// Has the next boot try an installed version, with all its tries, also if it is older than the running one.
    /// `health_before` is what its boot check compares with.
    ///
    /// # Errors
    /// The version has no boot entry, or the state or the entry cannot be written. The running version is then still the
    /// one that boots, and nothing is recorded.
    pub fn arm(&self, version: &Version, health_before: Health) -> Result<(), UpdateError> {
        let at = seconds(SystemTime::now());
        let record = |state: &mut State| {
            state.begin(version.as_str(), self.running.as_str(), health_before, at);
            if *version < self.running {
                state.prefer(version, &self.running, at);
            }
        };
        self.record_and(record, || {
            slots::try_next(&self.root, &self.running, version)
        })
    }

    /// Takes [`Self::arm`] back: the reboot did not start.
    ///
    /// # Errors
    /// The entry or the state cannot be written.
    pub fn disarm(&self, version: &Version) -> Result<(), UpdateError> {
        slots::put_aside(&self.root, version)?;
        Ok(self
            .state
            .change(|state| state.drop_pending(version.as_str()))?)
    }

    /// Has the next boot start the other version, and remembers that this one is not wanted. Returns the other.
    ///
    /// # Errors
    /// There is none that would boot, or the state or the entry cannot be written; then nothing is recorded.
    pub fn roll_back(&self) -> Result<Version, UpdateError> {
        let rollback = slots::rollback(&self.root, &self.running)?;
        let at = seconds(SystemTime::now());
        let record = |state: &mut State| state.roll_back(&rollback.to, &self.running, at);
        self.record_and(record, || rollback.run())?;
        Ok(rollback.to)
    }

    /// Records first what is going to be done: after a power cut, the boot check finds out from the boot entries whether it
    /// was. Takes the record back if it cannot be done.
    fn record_and(
        &self,
        record: impl FnOnce(&mut State),
        act: impl FnOnce() -> Result<(), SlotError>,
    ) -> Result<(), UpdateError> {
        let former = self.state.read();
        self.state.change(record)?;
        let Err(error) = act() else {
            return Ok(());
        };
        self.state.change(|state| {
            state.pending = former.pending;
            state.failed = former.failed;
            state.by_hand = former.by_hand;
        })?;
        Err(error.into())
    }
}

#[cfg(test)]
mod tests;
