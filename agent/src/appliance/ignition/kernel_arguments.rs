//! Kernel arguments of an Ignition config, for an image whose command line is part of its signed kernel (UKI).
//!
//! An *add-on* on the EFI system partition, a tiny program without code, holds more of them: systemd-stub appends those of
//! every file in `/loader/addons` to its own. The initrd's `ignition-kargs-helper`, which Ignition's kargs stage runs,
//! calls [`command`] with the partition mounted, and restarts the machine once if it wrote an add-on. It ends there: where
//! the add-on is as it has to be and the kernel still lacks its arguments, something is wrong that a restart does not mend.
//!
//! With Secure Boot on, firmware takes no add-on that is not signed, and this machine has no key. Source: systemd-stub(7).

mod addon;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::appliance::update::secure_boot;
use crate::base::atomic_file;

/// The add-on, below the EFI system partition.
const ADDON: &str = "loader/addons/selvage-ignition.addon.efi";
/// systemd-boot's program without code that add-ons are made of, below the initrd's `/sysusr`.
const STUBS: &str = "usr/lib/systemd/boot/efi";
#[cfg(target_arch = "aarch64")]
const STUB: &str = "addonaa64.efi.stub";
#[cfg(not(target_arch = "aarch64"))]
const STUB: &str = if cfg!(target_arch = "aarch64") {
    "addonaa64.efi.stub"
} else {
    "addonx64.efi.stub"
};

/// Why the arguments are not as a config wants them.
#[derive(Debug, Error)]
pub enum KernelArgumentsError {
    /// No key for an add-on.
    #[error(
        "kernelArguments cannot be applied with Secure Boot on: they would go into an add-on beside the signed kernel, and \
         firmware takes only what is signed. Switch Secure Boot off, or remove kernelArguments (asked for: {0})"
    )]
    SecureBoot(String),
    /// What the image, the boot loader or the firmware gives cannot be taken back by an add-on.
    #[error(
        "kernelArguments.shouldNotExist: {0} is on the command line that is part of the signed kernel, or given by whoever \
         starts it, so nothing here can remove it; take it out of the list"
    )]
    BuiltIn(String),
    /// The add-on was there already when this kernel started.
    #[error(
        "kernelArguments: an add-on on the EFI system partition holds {0}, but the kernel was started without; did another \
         boot loader or disk start this machine?"
    )]
    NotTaken(String),
    /// The add-on cannot be made or is none of ours.
    #[error("{}: {fault}", .path.display())]
    Addon {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A file cannot be read or written.
    #[error("failed to access {}", .path.display())]
    Access {
        /// Which one.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The firmware does not tell whether Secure Boot is on.
    #[error("failed to find out whether Secure Boot is on")]
    Firmware(#[from] secure_boot::SecureBootError),
}

/// What a config wants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// `kernelArguments.shouldExist`.
    pub present: Vec<String>,
    /// `kernelArguments.shouldNotExist`.
    pub absent: Vec<String>,
}

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'p> {
    /// The root with `/proc` and `/sys`.
    pub root: &'p Path,
    /// The root of the image's `/usr`.
    pub image: &'p Path,
    /// The EFI system partition that this machine was started from.
    pub esp: &'p Path,
}

/// Makes the add-on what the config wants, and returns whether the machine must restart for it.
///
/// # Errors
///
/// Each reason why the machine would not have these arguments after a restart.
pub fn command(places: Places<'_>, wanted: &Wanted) -> Result<bool, KernelArgumentsError> {
    let access = |path: &Path| {
        let path = path.to_owned();
        |source| KernelArgumentsError::Access { path, source }
    };
    let path = places.root.join("proc/cmdline");
    let line = fs::read_to_string(&path).map_err(access(&path))?;
    let path = places.esp.join(ADDON);
    let ours = match fs::read(&path) {
        Ok(program) => addon::arguments(&program).ok_or(KernelArgumentsError::Addon {
            path: path.clone(),
            fault: "this is no add-on; remove it",
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(KernelArgumentsError::Access { path, source }),
    };
    let Some(arguments) = plan(&line, &ours, wanted)? else {
        return Ok(false);
    };
    if secure_boot::is_on(places.root)? {
        let all = wanted.present.iter().chain(&wanted.absent);
        let all: Vec<&str> = all.map(String::as_str).collect();
        return Err(KernelArgumentsError::SecureBoot(all.join(" ")));
    }
    if arguments.is_empty() {
        fs::remove_file(&path).map_err(access(&path))?;
        return Ok(true);
    }
    let stub = places.image.join(STUBS).join(STUB);
    let program = fs::read(&stub).map_err(access(&stub))?;
    let program =
        addon::with_arguments(&program, &arguments).ok_or(KernelArgumentsError::Addon {
            path: stub,
            fault: "this is no program that an add-on can be made of",
        })?;
    // The mode of every file there: vfat has no other, and refuses to change it.
    atomic_file::replace(&path, &program, 0o700).map_err(access(&path))?;
    Ok(true)
}

/// What the add-on has to hold; `None` if the kernel has its arguments already.
fn plan(line: &str, ours: &str, wanted: &Wanted) -> Result<Option<String>, KernelArgumentsError> {
    let line = words(line);
    let has = |list: &[&str], argument: &str| {
        let argument = words(argument);
        !argument.is_empty()
            && list
                .windows(argument.len())
                .any(|window| window == argument)
    };
    let is_lacking = wanted.present.iter().any(|argument| !has(&line, argument));
    let excess: Vec<&String> = wanted.absent.iter().filter(|a| has(&line, a)).collect();
    if !is_lacking && excess.is_empty() {
        return Ok(None);
    }
    let mut kept: Vec<&str> = words(ours);
    // Behind those of the kernel, and before those that the firmware adds.
    let built_in = match line
        .windows(kept.len().max(1))
        .rposition(|window| window == kept)
    {
        Some(at) => [&line[..at], &line[at + kept.len()..]].concat(),
        None => line.clone(),
    };
    if let Some(argument) = excess.iter().find(|argument| has(&built_in, argument)) {
        return Err(KernelArgumentsError::BuiltIn((*argument).clone()));
    }
    for argument in &excess {
        let argument = words(argument);
        if let Some(at) = kept.windows(argument.len()).position(|w| w == argument) {
            kept.drain(at..at + argument.len());
        }
    }
    for argument in &wanted.present {
        if !has(&line, argument) && !has(&kept, argument) {
            kept.extend(words(argument));
        }
    }
    let arguments = kept.join(" ");
    if arguments == words(ours).join(" ") {
        return Err(KernelArgumentsError::NotTaken(arguments));
    }
    Ok(Some(arguments))
}

/// The words of a command line. In double quotes, spaces do not end one (kernel, `lib/cmdline.c`, `next_arg`).
fn words(line: &str) -> Vec<&str> {
    let mut is_quoted = false;
    line.split(|c: char| {
        is_quoted ^= c == '"';
        c.is_whitespace() && !is_quoted
    })
    .filter(|word| !word.is_empty())
    .collect()
}
