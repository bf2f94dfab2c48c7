//! `selvage cleanup`: removes everything that the agent created on this host.
//!
//! Works without etcd, because a host that leaves its cluster may no longer reach it. The lease expires by itself.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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
use crate::host::identity::vxlan::stored_devices;
use crate::host::ike;
use crate::host::netlink::KernelError;
use crate::host::reconcile::Reconciler;
use crate::host::subnet_file;
use crate::plan::backend;
use crate::plan::state::Scope;
use crate::settings::Settings;

/// Why not everything was removed.
#[derive(Debug, Error)]
pub enum Error {
    /// An agent is running and would restore everything.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Some parts could not be removed; the others are gone.
    #[error("failed to remove everything: {}", .0.join("; "))]
    Left(Vec<String>),
    /// Writing to stdout failed.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

/// Removes the overlay devices with their entries, all routes and next hops with our protocol number, IPsec's policies
/// and charon's connections for the networks in `subnet.env`, the firewall rules of every mode, `subnet.env`, and the contents of the state directory: MAC addresses, WireGuard's private key
/// and the random machine ID. A missing object is no error.
///
/// The state directory itself stays, with the lock file in it: if that were removed, another agent could start while a
/// process still holds the old file locked. An overlay device is found by its stored MAC address or private key,
/// otherwise by the routes to peers over it; one without either stays.
///
/// Continues after a failure, also if `output` is closed, and reports all failures at the end.
///
/// # Errors
/// If an agent is running, nothing is changed; otherwise the error lists what is left.
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
    // The networks are unknown, so every address on our devices counts as ours.
    let networks = vec![
        previous.network.unwrap_or_default().into(),
        previous.network_v6.unwrap_or_default().into(),
    ];
    let (candidates, files) = recorded(state_dir);
    // Runs the undo commands of the extension backend.
    let hooks = backend::extension::memory(state_dir);
    let scope = Scope {
        links: Vec::new(),
        networks,
        shared: None,
        hooks: Some(hooks),
        ipsec: true,
    };
    let network = settings.agent.network.as_ref();
    match remove_from_kernel(network, scope, candidates, &known).await {
        Ok(removed) => report.done(format_args!("kernel: {removed} objects removed")),
        Err(error) => report.failed("kernel", &error),
    }
    match ike::remove_all(&settings.ipsec.vici, &known).await {
        Ok(true) => report.done("charon: connections removed"),
        Ok(false) => (),
        Err(error) => report.failed("charon", &error),
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
    for path in files {
        match fs::remove_file(&path) {
            Ok(()) => report.removed(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => report.failed(path.display(), &error),
        }
    }
    report.end()
}

/// The devices that the state directory records, and its files.
fn recorded(state_dir: &Path) -> (Vec<InterfaceName>, Vec<PathBuf>) {
    let (mut devices, mut files): (Vec<_>, Vec<_>) = stored_devices(state_dir).into_iter().unzip();
    for backend in backend::table::all() {
        let memory = backend.memory.map(|file| state_dir.join(file));
        if memory.as_ref().is_some_and(|file| file.exists()) {
            devices.extend(backend.devices());
        }
        files.extend(memory);
    }
    files.push(state_dir.join(machine_id::FILE));
    files.push(state_dir.join(several::MEMORY));
    (devices, files)
}

/// Successes are printed at once, failures at the end.
struct Report<'a, W> {
    output: &'a mut W,
    /// The first error of printing.
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

/// Why kernel objects could not be removed.
#[derive(Debug, Error)]
enum RemoveError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An agent with another state directory is running in this network.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("{0}")]
    Failures(String),
}

/// Removes our objects, including the devices among `candidates` that do not belong to another network. `known` are the
/// recorded networks.
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
    // Devices of backends without a state file are recognised by name, even without peers.
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
        // Our routes may also lead over the underlay, which is not ours.
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
