//! The rules in nftables, put in place by the `nft` program.
//!
//! Text to `nft -f -` is the interface that every version has (JSON support is a build option); one call is one
//! transaction, so packets see the old rules or the new. The meaning of the rules is that of flannel's iptables rule
//! set, not of its nftables one, which confuses the two networks in its fourth rule.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use ipnet::Ipv4Net;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

mod script;

use script::Script;

/// Name of our table, in the `inet` family, so that one table serves IPv4 and IPv6.
pub const TABLE: &str = "selvage";

/// How long one call of `nft` may take. It takes milliseconds, and longer when other programs hold the ruleset.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where `nft` is looked for after `$PATH`, which for a service may lack the directories for administrators.
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The firewall cannot be read or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no `nft`.
    #[error(
        "the program nft is neither in PATH nor in {}: install nftables, or turn the firewall off with firewall.masquerade = false and firewall.forward = false",
        PROGRAM_DIRECTORIES.join(", ")
    )]
    NoProgram,
    /// It cannot be started or spoken to.
    #[error("failed to run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not end in time.
    #[error("{} did not end within {} s", program.display(), DEADLINE.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
    },
    /// It refused.
    #[error("nft failed to {action}: {message}")]
    Refused {
        /// What it was asked for.
        action: &'static str,
        /// What it said.
        message: String,
    },
}

/// What the firewall should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// This node's part of it.
    pub subnet: Ipv4Net,
    /// Whether packets that leave the overlay get this host's address.
    pub masquerade: bool,
    /// Whether packets from and to the overlay are accepted for forwarding.
    pub forward: bool,
    /// Whether masquerading picks source ports at random, which avoids the insertion races of parallel connections
    /// to one destination (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
    pub random_fully: bool,
}

/// Our table in the network namespace of the caller.
#[derive(Debug, Default)]
pub struct Nftables {
    /// The rules last seen in place, and the very text that `nft` listed them as.
    seen: Option<(Rules, String)>,
}

/// How the table is, compared with what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    /// It is as it should be.
    Same,
    /// There is none, but should be.
    Missing,
    /// It is there and should be otherwise, or not at all.
    Different,
}

impl Nftables {
    /// Knows nothing yet; reads and changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the table say what `rules` want, if it does not yet; returns whether anything was changed.
    ///
    /// # Errors
    /// As [`Self::apply`]. Nothing is half done.
    pub async fn ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        match self.compare(rules).await? {
            Comparison::Same => return Ok(false),
            // At the start of the agent others wait for it, and the kernel takes half as long when nothing is removed.
            Comparison::Missing => {
                match transact("make its table", &Script::new(rules).create()).await {
                    // Somebody made one since.
                    Err(Error::Refused { .. }) => self.apply(rules).await?,
                    done => done?,
                }
            }
            Comparison::Different => self.apply(rules).await?,
        }
        Ok(true)
    }

    /// Replaces the table in one transaction; without any rule to make, removes it.
    ///
    /// # Errors
    /// When `nft` is missing, fails or hangs; the rules are then what they were.
    pub async fn apply(&mut self, rules: &Rules) -> Result<(), Error> {
        self.seen = None;
        let script = Script::new(rules);
        if script.is_empty() {
            self.clear().await?;
            return Ok(());
        }
        transact("replace its table", &script.replace()).await
    }

    /// Whether the table says what `rules` want, so that neither a flush nor a change by hand goes unnoticed.
    ///
    /// Once this call has seen the rules in place, a later listing must not differ in a single letter. Before that (the
    /// agent was restarted) the table's fingerprint, and number and order of its commented rules decide: the text that
    /// `nft` lists differs between its versions, and a mere update of it must not change the rules.
    ///
    /// # Errors
    /// When `nft` is missing, fails or hangs.
    pub async fn is_current(&mut self, rules: &Rules) -> Result<bool, Error> {
        Ok(self.compare(rules).await? == Comparison::Same)
    }

    async fn compare(&mut self, rules: &Rules) -> Result<Comparison, Error> {
        let script = Script::new(rules);
        let listing = match list().await {
            // Rules that need no table need no nft either.
            Err(Error::NoProgram) if script.is_empty() => None,
            listing => listing?,
        };
        let comparison = match (&listing, &self.seen) {
            (None, _) if script.is_empty() => Comparison::Same,
            (None, _) => Comparison::Missing,
            (Some(_), _) if script.is_empty() => Comparison::Different,
            (Some(listing), Some((seen, text))) if seen == rules && text != listing => {
                Comparison::Different
            }
            (Some(listing), _) if script.made(listing) => Comparison::Same,
            (Some(_), _) => Comparison::Different,
        };
        self.seen = match (comparison, listing) {
            (Comparison::Same, Some(listing)) => Some((*rules, listing)),
            _ => None,
        };
        Ok(comparison)
    }

    /// Removes the table; returns whether there was one. Without `nft` there is none.
    ///
    /// # Errors
    /// When `nft` fails or hangs.
    pub async fn clear(&mut self) -> Result<bool, Error> {
        self.seen = None;
        match list().await {
            Ok(None) | Err(Error::NoProgram) => Ok(false),
            Ok(Some(_)) => {
                let mut script = String::new();
                script::remove_table(&mut script);
                transact("remove its table", &script).await?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }
}

/// The table as `nft list table` prints it; `None` when there is none.
async fn list() -> Result<Option<String>, Error> {
    let output = nft(&["list", "table", "inet", TABLE], "").await?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let error = refused("list its table", &output);
    match &error {
        // The words of ENOENT, in the locale that `nft()` sets.
        Error::Refused { message, .. } if message.contains("No such file or directory") => Ok(None),
        _ => Err(error),
    }
}

/// Hands `script` to the kernel as one transaction.
async fn transact(action: &'static str, script: &str) -> Result<(), Error> {
    let output = nft(&["-f", "-"], script).await?;
    if output.status.success() {
        Ok(())
    } else {
        Err(refused(action, &output))
    }
}

fn refused(action: &'static str, output: &Output) -> Error {
    // What follows the first lines is the script, with marks below the places that nft did not like.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).take(3).collect();
    let mut message = lines.join(" | ");
    if message.is_empty() {
        let _ = write!(message, "{}", output.status);
    }
    Error::Refused { action, message }
}

/// Runs `nft` with `arguments` and `input`. It is killed when it takes too long, or when the future is dropped.
async fn nft(arguments: &[&str], input: &str) -> Result<Output, Error> {
    let program = find_program().ok_or(Error::NoProgram)?;
    let run = async {
        let mut child = Command::new(&program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // It gave up before reading everything: what it printed says why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        child.wait_with_output().await
    };
    match timeout(DEADLINE, run).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(source)) => Err(Error::Run { program, source }),
        Err(_) => Err(Error::Timeout { program }),
    }
}

fn find_program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(PROGRAM_DIRECTORIES.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("nft"))
        .find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    fs::metadata(program)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
