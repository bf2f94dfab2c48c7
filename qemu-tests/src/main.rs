//! Boots the Selvage image in QEMU: the demo, the tests that need a boot, and the boot measurements.
//!
//! `machine` is one QEMU, `cluster` several on a `switch`; `demo`, `tests` and `bench` are what is done with them. All
//! waiting is asynchronous on one thread, so that a signal at any moment drops, and thereby kills, every machine.

mod accel;
mod architecture;
mod artifacts;
mod bench;
mod boot_watch;
mod built;
mod child;
mod cli;
mod cluster;
mod console;
mod container;
mod demo;
mod description;
mod diagnose;
mod disk;
mod drive;
mod etcd;
mod facts;
mod firmware;
mod fleet;
mod host;
mod keep;
mod machine;
mod netns;
mod overlay;
mod page;
mod pod;
mod progress;
mod qemu;
mod qmp;
mod relay;
mod report;
mod serve;
mod ssh;
mod suite;
mod switch;
mod tests;
mod timeline;
mod wait;
mod write_log;

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use cli::{Cli, Command};

/// What a shell reports for a program ended by SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread only: see `child`.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("failed to start the runtime")
        .and_then(|runtime| runtime.block_on(until_signal(cli)));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("qemu-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_signal(cli: Cli) -> Result<ExitCode> {
    if let Command::Hold { dir } = &cli.command {
        return keep::hold(dir).await.map(|()| ExitCode::SUCCESS);
    }
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
    tokio::select! {
        result = run(cli) => result,
        _ = terminate.recv() => Ok(ExitCode::from(INTERRUPTED)),
        _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
        _ = hangup.recv() => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let common = &cli.common;
    match cli.command {
        Command::Demo { nodes, keep } => demo::run(common, nodes, keep).await?,
        Command::DemoUpdate => demo::update::run(common).await?,
        Command::Test {
            filter,
            all,
            power_cuts,
        } => {
            let good = tests::run(common, filter, all, &power_cuts).await?;
            return Ok(if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        // Whoever reads it may have seen enough, as `head` has.
        Command::List => drop(io::stdout().write_all(tests::list().as_bytes())),
        Command::Bench(asked) => bench::run(common, &asked).await?,
        Command::Ssh { node, command } => {
            keep::log_in(&keep::dir(&common.target), &node, &command)?
        }
        Command::Stop => keep::stop(&keep::dir(&common.target)).await?,
        Command::Hold { dir } => keep::hold(&dir).await?,
        Command::Serve { dir, notes } => {
            let notes = notes.as_deref().map(serve::Notes::new);
            let server = serve::Server { files: dir, notes };
            server.answer(io::stdin().lock(), io::stdout().lock())?;
        }
        Command::Relay { port } => {
            // A socket, and both standard input and output.
            let guest = io::stdin().as_fd().try_clone_to_owned();
            relay::run(port, guest.context("failed to share standard input")?)?
        }
    }
    Ok(ExitCode::SUCCESS)
}
