//! The two architectures that an image can be for, and what QEMU's machines of each are made of.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// What an image is built for; mkosi's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) enum Architecture {
    /// PCs and most servers; QEMU's machine is `q35`.
    #[default]
    #[serde(rename = "x86-64")]
    X86_64,
    /// Servers by Arm's SystemReady; QEMU's machine is `virt`.
    #[serde(rename = "arm64")]
    Arm64,
}

/// What `image/build` writes down about itself.
#[derive(serde::Deserialize)]
struct Build {
    architecture: Architecture,
}

impl Architecture {
    /// That of the image in the directory `image`.
    ///
    /// # Errors
    /// When its `build.json` is missing or names no architecture that machines are known of.
    pub(crate) fn of(image: &Path) -> Result<Self> {
        let path = image.join("build.json");
        let text = fs::read(&path)
            .with_context(|| format!("no {}; build the image with `make image`", path.display()))?;
        let build: Build = serde_json::from_slice(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        Ok(build.architecture)
    }

    /// The program; the distribution's packages `qemu-system-x86` and `qemu-system-arm`.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// The machine.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "q35",
            // The third version of Arm's interrupt controller is what servers have.
            Self::Arm64 => "virt,gic-version=3",
        }
    }

    /// The processor that TCG emulates.
    pub(crate) fn processor(self) -> &'static str {
        match self {
            // Of AMD's make, so the kernel need not guard against Meltdown: page-table isolation flushes the translations
            // that TCG has made at every system call, and a boot with it takes half as long again. No newer model, for
            // TCG emulates AVX and the like instruction by instruction.
            Self::X86_64 => "qemu64",
            // One of servers. Newer ones authenticate pointers, which costs TCG a cipher a call.
            Self::Arm64 => "neoverse-n1",
        }
    }

    /// Kernel arguments that are the machine's business.
    pub(crate) fn kernel_arguments(self) -> &'static str {
        match self {
            // The timer check (arch/x86/kernel/apic/io_apic.c, timer_irq_works) counts ticks against a busy loop: on a busy
            // host a software-emulated timer fails it, and the kernel may even panic.
            Self::X86_64 => "console=ttyS0 no_timer_check",
            Self::Arm64 => "console=ttyAMA0",
        }
    }

    /// UEFI firmware, without Secure Boot; the distribution's packages `ovmf` and `qemu-efi-aarch64`.
    pub(crate) fn firmware(self) -> &'static str {
        match self {
            Self::X86_64 => "/usr/share/OVMF/OVMF_CODE_4M.fd",
            Self::Arm64 => "/usr/share/AAVMF/AAVMF_CODE.fd",
        }
    }

    /// Its variables as they are in a new machine: without keys, so that Secure Boot is in Setup Mode.
    pub(crate) fn firmware_variables(self) -> &'static str {
        match self {
            Self::X86_64 => "/usr/share/OVMF/OVMF_VARS_4M.fd",
            Self::Arm64 => "/usr/share/AAVMF/AAVMF_VARS.fd",
        }
    }

    /// Whether this host's processors can run it by themselves.
    pub(crate) fn is_the_hosts(self) -> bool {
        let own = match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "aarch64",
        };
        std::env::consts::ARCH == own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_what_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            fs::write(dir.path().join("build.json"), text).unwrap();
            Architecture::of(dir.path()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(
            of(r#"{ "version": "1", "architecture": "arm64" }"#),
            Ok(Architecture::Arm64)
        );
        assert_eq!(
            of(r#"{ "architecture": "x86-64" }"#),
            Ok(Architecture::X86_64)
        );
        let error = of(r#"{ "architecture": "riscv64" }"#).unwrap_err();
        assert!(
            error.contains("riscv64") && error.contains("build.json"),
            "{error}"
        );
    }
}
