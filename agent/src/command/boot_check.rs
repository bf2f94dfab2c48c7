//! `selvage boot-check`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::appliance::update::boot_check::{self, Options};
use crate::settings::{Settings, StatusSettings};

/// What `selvage boot-check` is asked.
#[derive(Args, Clone, Debug)]
pub struct BootCheckFlags {
    /// How long to wait while nothing changes.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub patience: u64,
    /// How long to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub limit: u64,
    /// Print what holds now, as JSON in the form of the state file, and change nothing. Runs the site's checks as well.
    #[arg(long, conflicts_with_all = ["next_try", "deadline"])]
    pub show: bool,
    /// This boot has failed: record that, and reboot if that is another try or a fall-back. Needs no settings.
    #[arg(long)]
    pub next_try: bool,
    /// The same, unless a check of this boot has come to a verdict.
    #[arg(long, conflicts_with = "next_try")]
    pub deadline: bool,
    /// Where this machine's files are.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
    /// How to reach the agent.
    #[command(flatten)]
    pub settings: StatusSettings,
}

/// Checks this boot. Returns the exit status.
///
/// # Errors
/// The output cannot be written.
pub async fn run(
    settings: &Settings,
    flags: &BootCheckFlags,
    output: &mut impl Write,
) -> io::Result<u8> {
    if flags.show {
        let health = boot_check::health(settings, &flags.root).await;
        let text = serde_json::to_string_pretty(&health)?;
        writeln!(output, "{text}")?;
        return Ok(0);
    }
    let options = Options {
        root: flags.root.clone(),
        patience: Duration::from_secs(flags.patience),
        limit: Duration::from_secs(flags.limit),
    };
    boot_check::run(settings, &options, output).await
}

/// Goes on after a boot that failed, or has come to no verdict in time. Returns the exit status; other than 0, it could
/// not.
///
/// # Errors
/// The output cannot be written.
pub async fn go_on(flags: &BootCheckFlags, output: &mut impl Write) -> io::Result<u8> {
    if flags.deadline {
        boot_check::deadline(&flags.root, output).await
    } else {
        boot_check::next_try(&flags.root, output).await
    }
}
