//! One virtual machine: its process, its console and the way in.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    accel::Accelerator,
    boot_watch::{BootWatch, Patience, Sight},
    child::Child,
    console::{Console, rules},
    firmware::{self, Stillness},
    progress::{Progress, clip},
    qemu::{self, Spec},
    qmp,
    ssh::Ssh,
};

/// From sshd's greeting to a connection that takes commands.
const LOGIN_DEADLINE: Duration = Duration::from_secs(120);
/// For a TPM to start.
const TPM_DEADLINE: Duration = Duration::from_secs(10);
/// For one command to a machine that may go down any moment.
const PROBE_DEADLINE: Duration = Duration::from_secs(40);
/// As much of a console's end as its last lines may have.
const END_BYTES: u64 = 4096;
/// From a running sshd to the end of the boot's last job.
const SETTLE_DEADLINE: Duration = Duration::from_secs(420);
/// For stopping services, containers included.
const POWER_DOWN_DEADLINE: Duration = Duration::from_secs(120);

/// A machine that was started.
#[derive(Debug)]
pub(crate) struct Machine {
    /// What it was started with.
    pub spec: Spec,
    /// The way in.
    pub ssh: Ssh,
    /// Its console.
    pub console: Console,
    process: u32,
    /// The process itself, unless another process keeps it.
    qemu: Option<Child>,
    /// The process that is its TPM, for as long as this value is there.
    _tpm: Option<Child>,
    master: Option<Child>,
}

/// Starts QEMU; its own messages go to a file beside the console.
///
/// # Errors
/// When QEMU cannot be started.
pub(crate) fn start_qemu(spec: &Spec, accelerator: Accelerator) -> Result<Child> {
    let path = spec.console.with_extension("qemu");
    let messages = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("failed to open {}", path.display()))?;
    let errors = messages.try_clone().context("failed to share a log file")?;
    let mut command: Command = qemu::command(spec, accelerator);
    command
        .stdout(Stdio::from(messages))
        .stderr(Stdio::from(errors));
    Child::spawn(format!("QEMU for {}", spec.name), command)
}

/// Starts the machine's TPM, if it has one, and waits until QEMU can use it.
///
/// # Errors
/// When it cannot be started, or ends at once.
pub(crate) fn start_tpm(spec: &Spec) -> Result<Option<Child>> {
    let Some(socket) = &spec.tpm else {
        return Ok(None);
    };
    let name = format!("the TPM of {} (package swtpm)", spec.name);
    let mut child = Child::spawn(&name, qemu::tpm(spec, socket))?;
    let deadline = Instant::now() + TPM_DEADLINE;
    while !socket.exists() {
        if let Some(status) = child.exited()? {
            bail!("{name} ended: {status}");
        }
        ensure!(Instant::now() < deadline, "{name} has no socket");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(child))
}

impl Machine {
    /// A machine whose process dies with this value.
    pub(crate) fn owned(spec: Spec, ssh: Ssh, qemu: Child) -> Self {
        let process = qemu.id();
        Self {
            qemu: Some(qemu),
            ..Self::kept(spec, ssh, process)
        }
    }

    /// The same with a TPM, which dies with it.
    pub(crate) fn with_tpm(self, tpm: Option<Child>) -> Self {
        Self { _tpm: tpm, ..self }
    }

    /// A machine that process number `process`, started by somebody else, runs.
    pub(crate) fn kept(spec: Spec, ssh: Ssh, process: u32) -> Self {
        let console = Console::new(spec.console.clone());
        Self {
            spec,
            ssh,
            console,
            process,
            qemu: None,
            _tpm: None,
            master: None,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Whether QEMU still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        match &mut self.qemu {
            Some(qemu) => matches!(qemu.exited(), Ok(None)),
            None => Path::new("/proc").join(self.process.to_string()).exists(),
        }
    }

    fn check_that_it_runs(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let why = self.why_it_ended();
        bail!("{}: QEMU ended: {why}", self.name())
    }

    /// Waits until commands can be run in the guest.
    ///
    /// # Errors
    /// When QEMU ends, the console shows a fatal message, nothing moves any more, or it takes absurdly long.
    pub(crate) async fn wait_for_ssh(&mut self, progress: &Progress) -> Result<()> {
        let from = self.console.len();
        self.wait_for_greeting(from, progress).await?;
        self.connect().await
    }

    async fn wait_for_greeting(&mut self, from: u64, progress: &Progress) -> Result<()> {
        let mut watch = BootWatch::new(Instant::now());
        let mut stillness = Stillness::new(Instant::now());
        let mut disk_operations = 0;
        let mut was_told = false;
        while self.ssh.greets().await.is_err() {
            self.check_that_it_runs()?;
            // No answer from a monitor on a busy host is no sign of life, nor of death.
            disk_operations = qmp::disk_operations(&self.spec.qmp)
                .await
                .unwrap_or(disk_operations);
            let console = self.console.text_from(from);
            if !was_told && rules::without_emulation_faults(&console).faults > 0 {
                progress.line(&format!(
                    "{}: kernel panic, a fault of the emulated processor (int3); the machine restarts by itself",
                    self.name()
                ));
                was_told = true;
            }
            let sight = Sight {
                console: &console,
                disk_operations,
            };
            if let Err(error) = watch.look(Instant::now(), sight) {
                let processors = self.processors().await;
                return Err(error.context(format!(
                    "{}: {}",
                    self.name(),
                    firmware::place(&processors)
                )));
            }
            if stillness.is_long(Instant::now(), self.console.len(), disk_operations) {
                self.reset_if_hung(progress).await?;
            }
            // A quiet kernel says nothing for long; its disk shows that it gets on.
            let said = console.lines().rfind(|line| !line.trim().is_empty());
            let said = clip(said.unwrap_or("booting").trim(), 160);
            progress.tell(
                self.name(),
                &format!("{said} ({disk_operations} disk operations)"),
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        progress.tell(self.name(), "sshd answers");
        Ok(())
    }

    /// Waits for a boot in which the script `probe` prints `expected`. Boots before it may fail in any way: nothing that the
    /// console says ends the wait.
    ///
    /// # Errors
    /// When QEMU ends, or `deadline` has passed and the machine moves no more; says what the last boot answered.
    pub(crate) async fn wait_through_failures(
        &mut self,
        probe: &str,
        expected: &str,
        deadline: Duration,
        progress: &Progress,
    ) -> Result<()> {
        let mut patience = Patience::new(Instant::now(), deadline);
        let mut stillness = Stillness::new(Instant::now());
        let mut disk_operations = 0;
        let mut last = "no boot takes commands".to_owned();
        loop {
            self.check_that_it_runs()?;
            if self.ssh.greets().await.is_ok() {
                last = match self.ssh.feed(probe, &[], PROBE_DEADLINE).await {
                    Ok(said) if said.contains(expected) => return self.connect().await,
                    Ok(said) => said,
                    Err(error) => format!("{error:#}"),
                };
            }
            disk_operations = qmp::disk_operations(&self.spec.qmp)
                .await
                .unwrap_or(disk_operations);
            let said = self.console.len();
            if stillness.is_long(Instant::now(), said, disk_operations) {
                self.reset_if_hung(progress).await?;
            }
            if patience.is_over(Instant::now(), said, disk_operations) {
                bail!(
                    "{}: no boot with {expected} after {} s and more; last: {last}; {}",
                    self.name(),
                    deadline.as_secs(),
                    firmware::place(&self.processors().await)
                );
            }
            // Seldom enough for sshd not to turn us away (PerSourcePenalties in sshd_config(5)).
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }

    /// Where its processors are; none when the monitor does not say.
    async fn processors(&self) -> Vec<firmware::Processor> {
        qmp::processors(&self.spec.qmp).await.unwrap_or_default()
    }

    /// Resets a machine that is still, if it hangs by a fault of the emulator.
    async fn reset_if_hung(&mut self, progress: &Progress) -> Result<()> {
        let processors = self.processors().await;
        let end = self
            .console
            .text_from(self.console.len().saturating_sub(END_BYTES));
        let Some(why) = firmware::hang(&end, &processors) else {
            return Ok(());
        };
        if self.spec.exit_on_reset {
            return Ok(());
        }
        progress.line(&format!(
            "{}: {why} ({}); the machine is reset",
            self.name(),
            firmware::place(&processors)
        ));
        if rules::ends_by_dead_timer(&end) {
            self.console.pass_over_dead_timers();
        }
        qmp::execute(&self.spec.qmp, "system_reset").await.map(drop)
    }

    /// Opens the master connection.
    async fn connect(&mut self) -> Result<()> {
        self.master = None;
        let _ = std::fs::remove_file(&self.ssh.control);
        let deadline = Instant::now() + LOGIN_DEADLINE;
        let mut master = self.ssh.master()?;
        while !self.ssh.control.exists() {
            // sshd turns a client away for a while that has asked for its greeting too often (PerSourcePenalties in
            // sshd_config(5)), as we do while we wait for a slow machine.
            if master.exited()?.is_some() {
                master = self.ssh.master()?;
            }
            ensure!(
                Instant::now() < deadline,
                "failed to log in to {}: no connection within {} s",
                self.name(),
                LOGIN_DEADLINE.as_secs()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.master = Some(master);
        self.ssh.run("true").await.map(drop)
    }

    /// Waits until the boot has no job left, and gives systemd's word for the outcome (`running`, `degraded`).
    ///
    /// # Errors
    /// When jobs are still queued after 7 minutes; the message lists them.
    pub(crate) async fn settle(&self, progress: &Progress) -> Result<String> {
        progress.tell(self.name(), "finishing the boot");
        let wait = format!(
            "timeout {} systemctl is-system-running --wait || true",
            SETTLE_DEADLINE.as_secs()
        );
        let state = self
            .ssh
            .feed(&wait, &[], SETTLE_DEADLINE + Duration::from_secs(60))
            .await?;
        if !matches!(state.as_str(), "running" | "degraded") {
            let jobs = self
                .ssh
                .run("systemctl list-jobs --no-legend --no-pager")
                .await
                .unwrap_or_default();
            bail!(
                "{}: boot not finished after {} s ({state}); jobs:\n{jobs}",
                self.name(),
                SETTLE_DEADLINE.as_secs()
            );
        }
        progress.tell(self.name(), &state);
        Ok(state)
    }

    /// Asks the guest to reboot, and waits until it has gone down. Wait for its sshd next.
    ///
    /// # Errors
    /// When it does not go down within 2 minutes.
    pub(crate) async fn reboot(&mut self) -> Result<()> {
        let before = self.ssh.run("cat /proc/sys/kernel/random/boot_id").await?;
        // The connection may die before the answer: that is what is wanted.
        let _ = self.ssh.run("sudo systemctl reboot").await;
        self.master = None;
        let _ = std::fs::remove_file(&self.ssh.control);
        self.wait_for_silence(&before)
            .await
            .with_context(|| format!("failed to reboot {}", self.name()))
    }

    /// Waits until the guest has gone down by itself. Wait for its sshd next.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub(crate) async fn wait_for_reboot(&mut self, patience: Duration) -> Result<()> {
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let before = self.ssh.run(boot).await?;
        let deadline = Instant::now() + patience;
        // Over the connection that is there: sshd turns away who asks for its greeting too often. Once that is broken, ssh
        // waits for a new one, which may be to the next boot.
        let last = loop {
            match self.ssh.run(boot).await {
                Ok(now) if now == before => {}
                last => break last,
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not reboot within {} s",
                self.name(),
                patience.as_secs()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        self.master = None;
        let _ = std::fs::remove_file(&self.ssh.control);
        if last.is_ok() {
            return Ok(());
        }
        self.wait_for_silence(&before).await
    }

    /// Waits until sshd is gone for good: a busy guest may miss one greeting, and not be down yet.
    async fn wait_for_silence(&self, boot: &str) -> Result<()> {
        let mut silent = 0;
        let deadline = Instant::now() + POWER_DOWN_DEADLINE;
        while silent < 3 {
            silent = if self.ssh.greets().await.is_ok() {
                0
            } else {
                silent + 1
            };
            ensure!(
                Instant::now() < deadline,
                "sshd of boot {boot} still answers"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Presses the power button and waits for QEMU to end; kills it when it does not, and says so by false.
    pub(crate) async fn power_down(&mut self) -> bool {
        let _ = qmp::execute(&self.spec.qmp, "system_powerdown").await;
        let deadline = Instant::now() + POWER_DOWN_DEADLINE;
        while self.is_running() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let ended = !self.is_running();
        self.qemu = None;
        self.master = None;
        ended
    }

    /// Starts a machine that was powered down. Wait for its sshd next.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub(crate) fn power_on(&mut self, accelerator: Accelerator) -> Result<()> {
        let qemu = start_qemu(&self.spec, accelerator)?;
        self.process = qemu.id();
        self.qemu = Some(qemu);
        Ok(())
    }

    /// Presses the reset button: no service hears of it, and nothing is written any more. Wait for its sshd next.
    ///
    /// # Errors
    /// As [`qmp::execute`].
    pub(crate) async fn reset(&mut self) -> Result<()> {
        self.master = None;
        qmp::execute(&self.spec.qmp, "system_reset").await.map(drop)
    }

    /// Why QEMU ended: how, when that is known, and the last that it said. A signal is its own fault, not the guest's.
    fn why_it_ended(&mut self) -> String {
        let text =
            std::fs::read_to_string(self.spec.console.with_extension("qemu")).unwrap_or_default();
        let said = text.lines().last().unwrap_or("without a word");
        match self.qemu.as_mut().map(Child::exited) {
            Some(Ok(Some(status))) => format!("{said} ({status})"),
            _ => said.to_owned(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine that was never started, for tests of what surrounds machines.
    pub(crate) fn machine(dir: &Path) -> Machine {
        let spec = Spec {
            console: dir.join("console.log"),
            qmp: dir.join("qmp"),
            ..qemu::tests::spec()
        };
        let ssh = Ssh {
            port: 1,
            key: "/nonexistent".into(),
            control: dir.join("ssh"),
        };
        Machine::kept(spec, ssh, 0)
    }

    #[tokio::test]
    async fn a_machine_that_ended_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        std::fs::write(
            machine.console.path().with_extension("qemu"),
            "no such device\n",
        )
        .unwrap();
        let error = machine
            .wait_for_ssh(&Progress::new())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("QEMU ended: no such device"), "{error}");
    }

    #[tokio::test]
    async fn a_crash_of_qemu_itself_is_told_from_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut crashing = Command::new("sh");
        crashing.args(["-c", "kill -SEGV $$"]);
        let qemu = Child::spawn("QEMU", crashing).unwrap();
        let mut machine = machine(dir.path());
        machine.process = qemu.id();
        machine.qemu = Some(qemu);
        while machine.is_running() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error = machine
            .wait_for_ssh(&Progress::new())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("without a word (signal: 11 (SIGSEGV)"),
            "{error}"
        );
    }
}
