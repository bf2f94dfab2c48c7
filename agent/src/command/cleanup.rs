//! Removes what the agent made on this host: `selvage cleanup`.
//!
//! Works without etcd, since a host that leaves its cluster may not reach it any more. The lease lapses by itself.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ipnet::IpNet;
use thiserror::Error;

use crate::base::lock::{self, Lock};
use crate::base::logging::chain;
use crate::base::machine_id;
use crate::base::net::InterfaceName;
use crate::base::network_name::NetworkName;
use crate::flannel::flanneld::several;
use crate::host::executor::{ClaimError, Executor};
use crate::host::firewall::{DEFAULT_RESYNC, Firewall, Mode};
use crate::host::former::identities;
use crate::host::netlink::KernelError;
use crate::host::reconcile::Reconciler;
use crate::host::subnet_file;
use crate::plan::backend;
use crate::plan::state::Scope;
use crate::settings::Settings;

/// Why not everything was removed.
#[derive(Debug, Error)]
pub enum Error {
    /// An agent runs, and would put everything back.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Some parts resisted; the others are gone.
    #[error("not everything could be removed: {}", .0.join("; "))]
    Left(Vec<String>),
    /// Nobody reads what we print.
    #[error("failed to print")]
    Output(#[from] io::Error),
}

/// Removes the overlay devices with their entries, all routes and next hops that carry our protocol number, the
/// firewall's rules in every mode, `subnet.env`, and what the state directory keeps: the devices' MAC addresses,
/// WireGuard's private key and the machine's random id. What is already gone is no error.
///
/// The state directory itself stays, with the lock file in it: who removed that could run beside who still has it open.
/// An overlay device is found by its kept MAC address or private key, or else by the routes to peers over it; one that
/// lost both stays.
///
/// Goes on after a failure, also when nobody reads `output` any more, and names all of them at the end.
///
/// # Errors
/// When an agent runs nothing is touched; else what is left.
pub async fn run(settings: &Settings, output: &mut impl Write) -> Result<(), Error> {
    let state_dir = &settings.files.state_dir;
    let _lock = Lock::take(state_dir)?;
    let mut report = Report {
        output,
        printed: Ok(()),
        left: Vec::new(),
    };

    let previous = subnet_file::read_previous(&settings.files.subnet_file).unwrap_or_default();
    let v4 = previous.network.map(IpNet::V4);
    let known: Vec<_> = v4
        .into_iter()
        .chain(previous.network_v6.map(IpNet::V6))
        .collect();
    // Without a memory of the networks every address on our devices is ours.
    let networks = vec![
        previous.network.unwrap_or_default().into(),
        previous.network_v6.unwrap_or_default().into(),
    ];
    let (mut candidates, mut kept): (Vec<_>, Vec<_>) = identities(state_dir).into_iter().unzip();
    for backend in backend::table::all() {
        let memory = backend.memory.map(|file| state_dir.join(file));
        if memory.as_ref().is_some_and(|file| file.exists()) {
            candidates.extend(backend.devices());
        }
        kept.extend(memory);
    }
    kept.push(state_dir.join(machine_id::FILE));
    kept.push(state_dir.join(several::MEMORY));
    // The commands that undo an extension's work are run.
    let hooks = backend::extension::memory(state_dir);
    let scope = Scope {
        links: Vec::new(),
        networks,
        shared: None,
        hooks: Some(hooks),
    };
    let network = settings.agent.network.as_ref();
    match remove_from_kernel(network, scope, candidates, &known).await {
        Ok(removed) => report.done(format_args!("kernel: {removed} objects removed")),
        Err(error) => report.failed("kernel", &error),
    }
    let mut firewall = Firewall::new(Mode::Auto, DEFAULT_RESYNC).of_network(network);
    match firewall.clear(&known).await {
        Ok(true) => report.done("firewall: rules removed"),
        Ok(false) => report.done("firewall: nothing to remove"),
        Err(error) => report.failed("firewall", &error),
    }
    match subnet_file::remove(&settings.files.subnet_file) {
        Ok(true) => report.removed(&settings.files.subnet_file),
        Ok(false) => (),
        Err(error) => report.failed("subnet file", &error),
    }
    for path in kept {
        match fs::remove_file(&path) {
            Ok(()) => report.removed(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => report.failed(path.display(), &error),
        }
    }
    report.end()
}

/// What was done is printed at once, what was not is kept for the end.
struct Report<'a, W> {
    output: &'a mut W,
    /// The first failure to print.
    printed: io::Result<()>,
    left: Vec<String>,
}

impl<W: Write> Report<'_, W> {
    fn done(&mut self, what: impl Display) {
        if self.printed.is_ok() {
            self.printed = writeln!(self.output, "{what}");
        }
    }

    fn removed(&mut self, path: &Path) {
        self.done(format_args!("{} removed", path.display()));
    }

    fn failed(&mut self, part: impl Display, error: &dyn std::error::Error) {
        self.left.push(format!("{part}: {}", chain(error)));
    }

    fn end(self) -> Result<(), Error> {
        if self.left.is_empty() {
            Ok(self.printed?)
        } else {
            Err(Error::Left(self.left))
        }
    }
}

/// What the kernel did not let go of.
#[derive(Debug, Error)]
enum RemoveError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An agent with another state directory runs in this network.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("{0}")]
    Failures(String),
}

/// Removes what is ours: also the devices among `candidates` that are not another network's. `known` are the networks that
/// are remembered.
async fn remove_from_kernel(
    network: Option<&NetworkName>,
    mut scope: Scope,
    candidates: Vec<InterfaceName>,
    known: &[IpNet],
) -> Result<u64, RemoveError> {
    let mut executor = Executor::open()?.of_network(network);
    executor.claim_network(known)?;
    let kernel = executor.kernel_mut();
    let mut found = kernel.marked_links(known).await?;
    // The names of devices without a memory need no peers to be known by.
    let without = backend::table::all().filter(|backend| backend.memory.is_none());
    for name in without.flat_map(|backend| backend.devices()) {
        if let Some(object) = kernel.own_device(&name, known).await? {
            found.push((name, object));
        }
    }
    for name in candidates {
        if kernel.own_device(&name, known).await?.is_some() {
            scope.links.push(name);
        }
    }
    for (name, object) in found {
        // Routes may lead over the underlay too, which is not ours.
        let overlay = backend::table::maker(&name, &object).is_some();
        if overlay && !scope.links.contains(&name) {
            scope.links.push(name);
        }
    }
    let mut reconciler = Reconciler::new(executor, scope);
    let report = reconciler.remove_all().await?;
    if report.failures.is_empty() {
        return Ok(report.counts.removed);
    }
    let failures: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
    Err(RemoveError::Failures(failures.join("; ")))
}
