//! The accelerator, chosen by booting something.
//!
//! A `/dev/kvm` that opens proves nothing: software hypervisors offer one on which stock kernels die at once with "KVM
//! internal error". So the image's own kernel is booted without initrd or disk; when it gets as far as complaining that
//! it has no root file system, KVM works.

use std::{
    fmt, fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{architecture::Architecture, child::Child, qemu};

/// A working KVM needs about one second.
const PROBE_DEADLINE: Duration = Duration::from_secs(15);
/// What the kernel says at the very end of a boot without a root file system (init/do_mounts.c).
const PROBE_WORDS: &str = "Unable to mount root fs";

/// How QEMU runs guest code.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accelerator {
    /// The host's hardware virtualisation.
    Kvm,
    /// Translation in software: runs everywhere, ten times slower or more.
    Tcg,
}

impl Accelerator {
    /// Kernel arguments for machines of this speed.
    pub(crate) fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Kvm => "",
            // systemd gives a device 90 s to appear, and an emulated machine on a busy host may take longer until udev
            // comes to its serial port (kernel-command-line(7); systemd 254 and later).
            Self::Tcg => "systemd.default_device_timeout_sec=600",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG (software emulation)",
        })
    }
}

/// Boots `kernel` under KVM and gives KVM if that works, else TCG with the reason.
///
/// # Errors
/// When there is no QEMU at all.
pub(crate) async fn choose(
    architecture: Architecture,
    kernel: &Path,
) -> Result<(Accelerator, Option<String>)> {
    if !architecture.is_the_hosts() {
        return Ok((
            Accelerator::Tcg,
            Some("the image is for another architecture".to_owned()),
        ));
    }
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return Ok((Accelerator::Tcg, Some(format!("/dev/kvm: {error}"))));
    }
    let dir = tempfile::tempdir().context("failed to make a directory for the KVM probe")?;
    let console = dir.path().join("console");
    let refusal = probe(architecture, kernel, &console, &dir.path().join("stderr")).await?;
    Ok(match refusal {
        None => (Accelerator::Kvm, None),
        Some(reason) => (Accelerator::Tcg, Some(reason)),
    })
}

/// Why the kernel did not come up, or `None` when it did.
async fn probe(
    architecture: Architecture,
    kernel: &Path,
    console: &Path,
    stderr: &Path,
) -> Result<Option<String>> {
    let errors = fs::File::create(stderr)
        .with_context(|| format!("failed to create {}", stderr.display()))?;
    let mut command = qemu::base(architecture, Accelerator::Kvm);
    command
        .args([
            "-m",
            "256",
            "-no-reboot",
            "-append",
            &format!("{} panic=-1", architecture.kernel_arguments()),
            "-kernel",
        ])
        .arg(kernel)
        .args(["-serial", &format!("file:{}", console.display())])
        .stdout(std::process::Stdio::null())
        .stderr(errors);
    let started = Instant::now();
    let mut child = Child::spawn("the KVM probe", command)?;
    loop {
        let exited = child.exited()?.is_some();
        if fs::read(console).is_ok_and(|text| String::from_utf8_lossy(&text).contains(PROBE_WORDS))
        {
            return Ok(None);
        }
        let said = fs::read_to_string(stderr).unwrap_or_default();
        let internal_error = said.contains("KVM internal error");
        if exited || internal_error || started.elapsed() > PROBE_DEADLINE {
            let first = said
                .lines()
                .next()
                .unwrap_or("a kernel booted under KVM stays silent");
            return Ok(Some(first.to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
