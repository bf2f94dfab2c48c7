//! `selvage`: the overlay network agent.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use selvage::cli::{Cli, Command, SettingsFlags};
use selvage::settings::{self, Environment, Settings, Sources};
use selvage::{logging, privileges, service};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nowhere to report that the terminal is gone.
            let _ = error.print();
            let asked_for_help = !error.use_stderr();
            return ExitCode::from(if asked_for_help {
                0
            } else {
                settings::EXIT_USAGE
            });
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            let settings_error = error.downcast_ref::<settings::Error>();
            ExitCode::from(settings_error.map_or(1, settings::Error::exit_code))
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(flags) | Command::Cleanup(flags) => {
            let _settings = start(&flags)?;
            privileges::restrict()?;
            let _runtime = runtime()?;
            anyhow::bail!("this build has neither the agent's loop nor its clean-up")
        }
        Command::Network(_) | Command::Ignition(_) => {
            anyhow::bail!("this build has neither lease store nor Ignition")
        }
    }
}

/// Loads the settings and starts the log that they ask for.
fn start(flags: &SettingsFlags) -> anyhow::Result<Settings> {
    let settings = settings::load(Sources {
        root: Path::new("/"),
        config: flags.config.as_deref(),
        environment: &Environment::of_process(),
        flags,
    })?;
    logging::init(&settings.agent.log)?;
    Ok(settings)
}

/// One thread does everything: little memory, and capabilities, which belong to threads, stay the same for all.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")
}

/// Says why we end: in the log, with the level that sd-daemon(3) defines, and in the service's status.
fn report(error: &anyhow::Error) {
    let level = if logging::stderr_is_journal() {
        "<3>"
    } else {
        ""
    };
    eprintln!("{level}selvage: {error:#}");
    service::failed(&format!("{error:#}"));
}
