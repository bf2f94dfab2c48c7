//! Rules in iptables, read with `iptables-save` and written with `iptables-restore`: two calls per family instead of
//! one per rule, always for whole chains. Each table is replaced in one transaction.
//!
//! A host may have two variants of iptables: `iptables-nft` and `iptables-legacy`. They do not see each other's rules,
//! but both sets apply. Our rules go to the variant that is called plain `iptables`. The other variant is checked too,
//! because flannel may have left rules there and Docker may drop there.

use std::collections::BTreeMap;
use std::fs;

use super::nftables::Tables;
use super::program::{self, Error};
use super::{Failures, Rules};
use crate::base::net::Family;
use crate::base::network_name::NetworkName;

mod plan;
pub(crate) mod save;

use plan::{Chains, Role, Wanted};
use save::Save;

/// The first version that knows `--random-fully`, and `--wait` in `iptables-restore`.
const RANDOM_FULLY: (u32, u32, u32) = (1, 6, 2);

/// Which of the kernel's two interfaces a program changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Nft,
    Legacy,
}

/// One installed set of programs.
#[derive(Debug)]
struct Tools {
    kind: Kind,
    /// The suffix of their names after `iptables`: nothing, `-nft` or `-legacy`.
    suffix: &'static str,
    version: (u32, u32, u32),
}

/// The names of a network's chains.
pub(super) fn chain_names(network: Option<&NetworkName>) -> [String; 3] {
    Chains::new(network).names().map(str::to_owned)
}

/// Input of one pass.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Whether to create the rules in this variant, not only accepts in other programs' chains.
    pub(super) main: bool,
    pub(super) tables: &'a Tables,
    /// Whether nothing in nftables changed since the last pass.
    pub(super) quiet: bool,
}

/// Our chains in the network namespace of the caller.
pub(super) struct Iptables {
    chains: Chains,
    /// The installed programs; those without a suffix come first. `None` as long as nobody needs them.
    tools: Option<Vec<Tools>>,
    /// The rules last written, and how the programs print them if that differs from our text.
    printed: BTreeMap<(Kind, Family), (Wanted, Vec<String>)>,
}

impl Iptables {
    /// Starts without state for the chains of that network.
    pub(super) fn new(network: Option<&NetworkName>) -> Self {
        Self {
            chains: Chains::new(network),
            tools: None,
            printed: BTreeMap::new(),
        }
    }

    /// Finds the programs, once: the mode must not change because a package was installed. That runs them for their
    /// versions.
    async fn tools(&mut self) -> &[Tools] {
        if self.tools.is_none() {
            self.tools = Some(Tools::find().await);
        }
        self.tools.as_deref().unwrap_or_default()
    }

    /// Whether the programs that flannel would use are installed.
    pub(super) async fn is_installed(&mut self) -> bool {
        let first = self.tools().await.first();
        first.is_some_and(|first| first.suffix.is_empty())
    }

    /// Whether rules may change here without a notification.
    pub(super) fn needs_polling(&self) -> bool {
        let is_legacy = |tools: &Tools| tools.kind == Kind::Legacy;
        let may_be_installed = |tools: &Vec<Tools>| tools.iter().any(is_legacy);
        self.tools.as_ref().is_none_or(may_be_installed)
            && Family::BOTH.into_iter().any(legacy_is_in_use)
    }

    /// Corrects our chains; returns whether anything changed.
    pub(super) async fn ensure(
        &mut self,
        rules: &Rules,
        view: View<'_>,
        failures: &mut Failures,
    ) -> Result<bool, Error> {
        if view.main {
            if !rules.is_empty() && !self.is_installed().await {
                return Err(not_installed("iptables-restore".to_owned()));
            }
        } else if !may_have_rules(view.tables) {
            // Nothing closes the overlay's way, and nothing of ours is left. Starting a program takes longer than all the
            // rest of a pass.
            return Ok(false);
        }
        self.tools().await;
        let mut changed = false;
        for (index, tools) in self.tools.iter().flatten().enumerate() {
            if view.quiet && tools.kind == Kind::Nft {
                continue;
            }
            let role = Role {
                main: view.main && index == 0 && tools.suffix.is_empty(),
                random_fully: tools.version >= RANDOM_FULLY,
                raw: tools.kind == Kind::Nft,
            };
            for ip in Family::BOTH {
                let (chains, printed) = (&self.chains, &mut self.printed);
                let want = |save: &Save| Wanted::new(chains, rules, ip, role, save);
                match tools.ensure(chains, ip, want, view.tables, printed).await {
                    Ok(made) => changed |= made,
                    Err(error) if role.main && rules.family(ip).is_some() => return Err(error),
                    Err(Error::NoProgram { .. }) => {}
                    Err(error) => failures.log(&error),
                }
            }
        }
        Ok(changed)
    }

    /// Removes our chains everywhere; returns whether there were any.
    ///
    /// # Errors
    /// The first failure, after all the rest was tried.
    pub(super) async fn clear(&mut self, tables: &Tables) -> Result<bool, Error> {
        if !may_have_rules(tables) {
            return Ok(false);
        }
        self.tools().await;
        let mut changed = false;
        let mut failure = None;
        for tools in self.tools.iter().flatten() {
            for ip in Family::BOTH {
                let nothing = |_: &Save| Wanted::default();
                let (chains, printed) = (&self.chains, &mut self.printed);
                match tools.ensure(chains, ip, nothing, tables, printed).await {
                    Ok(removed) => changed |= removed,
                    Err(Error::NoProgram { .. }) => {}
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        failure.map_or(Ok(changed), Err)
    }
}

/// Whether there can be any rule of either kind.
fn may_have_rules(tables: &Tables) -> bool {
    let has = |kind: Kind| {
        Family::BOTH
            .into_iter()
            .any(|ip| kind.may_have_rules(ip, tables))
    };
    has(Kind::Legacy) || has(Kind::Nft)
}

impl Kind {
    /// Whether there can be any rule. Asking the program costs a process.
    fn may_have_rules(self, ip: Family, tables: &Tables) -> bool {
        match self {
            Self::Legacy => legacy_is_in_use(ip),
            Self::Nft => plan::TABLES
                .into_iter()
                .any(|table| tables.may_have(ip.into(), table)),
        }
    }
}

impl Tools {
    /// The installed ones.
    async fn find() -> Vec<Self> {
        let plain = Self::plain().await;
        let mut found = Vec::new();
        for (kind, suffix) in [(Kind::Nft, "-nft"), (Kind::Legacy, "-legacy")] {
            let version = match &plain {
                Some(plain) if plain.kind == kind => continue,
                _ if !has(suffix) => continue,
                // Both variants come from one package.
                Some(plain) => plain.version,
                None => version(suffix).await.unwrap_or_default().0,
            };
            found.push(Self {
                kind,
                suffix,
                version,
            });
        }
        plain.into_iter().chain(found).collect()
    }

    /// The programs without a suffix.
    async fn plain() -> Option<Self> {
        if !has("") {
            return None;
        }
        let (version, is_nft) = version("").await?;
        Some(Self {
            kind: if is_nft { Kind::Nft } else { Kind::Legacy },
            suffix: "",
            version,
        })
    }

    /// Changes one family to what `want` computes for it.
    async fn ensure(
        &self,
        chains: &Chains,
        ip: Family,
        want: impl Fn(&Save) -> Wanted,
        tables: &Tables,
        printed: &mut BTreeMap<(Kind, Family), (Wanted, Vec<String>)>,
    ) -> Result<bool, Error> {
        let save = match self.kind.may_have_rules(ip, tables) {
            true => self.save(ip).await?,
            false => Save::default(),
        };
        let wanted = want(&save);
        let key = (self.kind, ip);
        let spelling = match printed.get(&key) {
            Some((put, spelling)) if *put == wanted => Some(spelling.as_slice()),
            _ => None,
        };
        let Some(script) = plan::restore(chains, &save, &wanted, spelling) else {
            return Ok(false);
        };
        self.restore(ip, &script).await?;
        printed.remove(&key);
        if !wanted.is_empty() {
            let save = self.save(ip).await?;
            if plan::restore(chains, &save, &wanted, None).is_some() {
                printed.insert(key, (wanted, plan::ours(chains, &save)));
            }
        }
        Ok(true)
    }

    async fn save(&self, ip: Family) -> Result<Save, Error> {
        let text = self.run(ip, "save", "list the rules", &[], "").await?;
        Ok(Save::parse(&text))
    }

    async fn restore(&self, ip: Family, script: &str) -> Result<(), Error> {
        let arguments: &[&str] = match self.version >= RANDOM_FULLY {
            true => &["--noflush", "--wait"],
            false => &["--noflush"],
        };
        self.run(ip, "restore", "apply the rules", arguments, script)
            .await?;
        Ok(())
    }

    async fn run(
        &self,
        ip: Family,
        verb: &str,
        action: &'static str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, Error> {
        let name = format!("{}{}-{verb}", prefix(ip), self.suffix);
        let path = program::find(&name).ok_or_else(|| not_installed(name.clone()))?;
        let output = program::run(path, arguments, input).await?;
        program::printed(name, action, &output)
    }
}

fn not_installed(program: String) -> Error {
    Error::NoProgram {
        program,
        package: "iptables",
    }
}

fn prefix(ip: Family) -> &'static str {
    match ip {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Whether all programs with this suffix are installed.
fn has(suffix: &str) -> bool {
    let found = |verb| program::find(&format!("iptables{suffix}{verb}")).is_some();
    ["", "-save", "-restore"].into_iter().all(found)
}

/// The version of the programs with this suffix, and whether they are the nft variant.
async fn version(suffix: &str) -> Option<((u32, u32, u32), bool)> {
    let path = program::find(&format!("iptables{suffix}"))?;
    let output = program::run(path, &["--version"], "").await.ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Parses a line such as `iptables v1.8.9 (nf_tables)`. Versions before 1.8.0 have only the legacy variant and do not
/// say so.
fn parse_version(text: &str) -> Option<((u32, u32, u32), bool)> {
    let (_, rest) = text.split_once(" v")?;
    let number = rest.split_whitespace().next()?;
    let mut parts = number.split('.').map_while(|part| part.parse().ok());
    let version = (parts.next()?, parts.next()?, parts.next().unwrap_or(0));
    Some((version, rest.contains("nf_tables")))
}

/// Whether the kernel has legacy tables of this family (`/proc/net/ip_tables_names`). If that file cannot be read,
/// assume so.
pub(crate) fn legacy_is_in_use(ip: Family) -> bool {
    let names = match ip {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(names) {
        Ok(names) => !names.trim().is_empty(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_kinds_are_read_from_what_the_programs_print() {
        for (text, expected) in [
            ("iptables v1.8.9 (nf_tables)\n", Some(((1, 8, 9), true))),
            ("iptables v1.8.9 (legacy)\n", Some(((1, 8, 9), false))),
            ("iptables v1.6.2", Some(((1, 6, 2), false))),
            ("ip6tables v1.4.21\n", Some(((1, 4, 21), false))),
            ("iptables v2.0 (nf_tables)", Some(((2, 0, 0), true))),
            ("usage: something", None),
            ("iptables vx", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }
}
