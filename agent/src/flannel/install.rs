//! Installs the CNI plugin and its config list where container runtimes look for them: `selvage cni`, and the agent at
//! its start if `cni.install` says so.
//!
//! What kube-flannel has two init containers for: one copies its plugin to `/opt/cni/bin/flannel`, the other its
//! ConfigMap to `/etc/cni/net.d/10-flannel.conflist`. Files appear in one step and are synced. The config list comes
//! last: with it the node is ready for pods in the eyes of a runtime. What is there already is treated so:
//!
//! | what is there | what happens |
//! |---|---|
//! | the same | nothing is written |
//! | our plugin, newer than this program | kept, and said; `force` replaces it |
//! | any other plugin called `flannel` | replaced, and said |
//! | a config list of ours, or kube-flannel's | replaced |
//! | a config list that somebody else wrote | without a file to copy it is kept, with a warning. A file to copy, the ConfigMap's, is what counts on all nodes: it is put in its place, as kube-flannel does, and the other is kept beside it |

mod ask;
mod binary;
mod conf_dir;
mod conflist;
pub mod status;

use std::cmp::Ordering;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use thiserror::Error;
use tracing::{info, warn};

use self::binary::Program;
use self::conf_dir::ConfDir;
pub(crate) use self::conf_dir::{NAME as CONFLIST, configs};
pub use self::conflist::BUILT_IN;
use self::conflist::{Conflist, Fault};
pub(crate) use self::conflist::{check, leads_to_flannel, plugin_types};
use crate::base::atomic_file;
use crate::base::logging::chain;
use crate::flannel::cni;
use crate::settings::Settings;

/// Why something was not installed or removed.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or directory.
    #[error("failed to {verb} {}{hint}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file to copy is no config list for flannel.
    #[error("{} is no config list for flannel", path.display())]
    Conflist {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Fault,
    },
    /// Our own config list has a fault, which a test excludes.
    #[error("the built-in config list is no config list for flannel")]
    BuiltIn(#[from] Fault),
}

impl Error {
    fn file(verb: &'static str, path: &Path, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                " (mount the host's directory writable; for a systemd unit: ReadWritePaths=)"
            }
            io::ErrorKind::PermissionDenied => {
                " (as root? in another user's directory a pod needs CAP_DAC_OVERRIDE, too)"
            }
            _ => "",
        };
        Self::File {
            verb,
            path: path.to_owned(),
            hint,
            source,
        }
    }

    /// Whether only another config list helps.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(self, Self::Conflist { .. })
    }
}

fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where container runtimes look.
#[derive(Clone, Debug)]
pub struct Places {
    /// For plugins.
    pub bin_dir: PathBuf,
    /// For configs.
    pub conf_dir: PathBuf,
}

impl Places {
    fn program(&self) -> PathBuf {
        self.bin_dir.join(binary::NAME)
    }
}

/// How to install.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The config list to copy; `None` for kube-flannel's.
    pub conf_from: Option<PathBuf>,
    /// Replace a newer plugin, and a config list that somebody else wrote.
    pub force: bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// A line for each file.
    pub done: Vec<String>,
    /// What keeps pods from the overlay nevertheless.
    pub warnings: Vec<String>,
    /// Whether something stayed that should have been removed.
    pub is_left: bool,
}

/// Installs this program as the plugin, and its config list.
///
/// # Errors
/// The file to copy is wrong, and nothing is changed; or a file cannot be written, and those before it are.
pub fn install(places: &Places, wish: &Wish) -> Result<Outcome, Error> {
    install_program(&Program::own(), places, wish)
}

fn install_program(program: &Program, places: &Places, wish: &Wish) -> Result<Outcome, Error> {
    let conflist = match &wish.conf_from {
        Some(path) => Conflist::read(path)?,
        None => Conflist::built_in()?,
    };
    let mut outcome = Outcome::default();
    let _lock = lock(&places.bin_dir)?;
    place_program(program, &places.program(), wish.force, &mut outcome)?;
    let conf_dir = ConfDir(&places.conf_dir);
    place_conflist(&conf_dir, &conflist, wish, &mut outcome)?;
    // If it was kept, what pods get is another one.
    match Conflist::read(&conf_dir.path()) {
        Ok(conflist) => outcome.warnings.extend(warnings(places, &conflist)?),
        Err(error) => outcome.warnings.push(chain(&error)),
    }
    Ok(outcome)
}

/// One installation at a time.
fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    fs::create_dir_all(directory).map_err(|source| Error::file("make", directory, source))?;
    let failed = |source| Error::file("lock", directory, source);
    let file = File::open(directory).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))
}

fn place_program(
    program: &Program,
    path: &Path,
    force: bool,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    atomic_file::remove_leftovers(path).map_err(|source| Error::file("clear", path, source))?;
    let own = &program.version;
    let what = match program.standing(path)? {
        binary::Standing::Missing => format!("version {own} written"),
        binary::Standing::Same => {
            mend(path, binary::MODE, outcome);
            outcome.done.push(format!(
                "{}: is this version, {own}, already",
                path.display()
            ));
            return Ok(());
        }
        binary::Standing::Link(to) if !force => {
            outcome.warnings.push(format!(
                "{} is kept: it is a link to {}, which cannot be seen here; if that is missing on the host, too, \
                 --force replaces the link",
                path.display(),
                to.display()
            ));
            return Ok(());
        }
        binary::Standing::Ours(version, Ordering::Greater) if !force => {
            outcome.done.push(format!(
                "{}: kept, since its version {version} is newer than this, {own}; --force replaces it",
                path.display()
            ));
            return Ok(());
        }
        binary::Standing::Ours(version, _) => format!("version {version} replaced by {own}"),
        binary::Standing::Other(Some(version)) => {
            format!("flannel's plugin {version} replaced by Selvage's {own}")
        }
        binary::Standing::Other(None) => {
            format!("replaced by Selvage's {own}; what was there did not say what it is")
        }
        binary::Standing::Link(to) => format!("link to {} replaced by {own}", to.display()),
    };
    program.write(path)?;
    outcome.done.push(format!("{}: {what}", path.display()));
    Ok(())
}

fn place_conflist(
    conf_dir: &ConfDir<'_>,
    conflist: &Conflist,
    wish: &Wish,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let path = conf_dir.path();
    let shown = path.display();
    conf_dir.clear()?;
    let standing = conf_dir.standing(conflist)?;
    let what = match standing {
        conf_dir::Standing::Missing => "written".to_owned(),
        conf_dir::Standing::Same => {
            mend(&path, conf_dir::MODE, outcome);
            conf_dir.adopt(conflist)?;
            outcome
                .done
                .push(format!("{shown}: is as it should be already"));
            return Ok(());
        }
        conf_dir::Standing::Ours => "replaced".to_owned(),
        conf_dir::Standing::Changed if wish.force || wish.conf_from.is_some() => {
            conf_dir.keep_copy()?;
            format!(
                "replaced; what somebody had changed is in {} beside it",
                conf_dir::REPLACED
            )
        }
        conf_dir::Standing::Changed => {
            outcome.warnings.push(format!(
                "{shown} is kept, since somebody has changed it: --force replaces it, --conf-from names another"
            ));
            return Ok(());
        }
    };
    conf_dir.write(conflist)?;
    mend(&path, conf_dir::MODE, outcome);
    outcome.done.push(format!("{shown}: {what}"));
    Ok(())
}

/// Gives a file with the right contents its mode, and root as its owner if we are root. What a link points to belongs to
/// somebody else. A pod without the privileges for that leaves them as they are, and says so.
fn mend(path: &Path, mode: u32, outcome: &mut Outcome) {
    let mended = fs::symlink_metadata(path).and_then(|metadata| {
        if metadata.is_symlink() {
            return Ok(());
        }
        if geteuid().is_root() && (metadata.uid(), metadata.gid()) != (0, 0) {
            chown(path, Some(0), Some(0))?;
        }
        if metadata.mode() & 0o7777 != mode {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        Ok(())
    });
    if let Err(source) = mended {
        let error = Error::file("change the mode or owner of", path, source);
        outcome.warnings.push(chain(&error));
    }
}

/// What keeps pods from the overlay although all is installed.
fn warnings(places: &Places, conflist: &Conflist) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    for name in ConfDir(&places.conf_dir).before()? {
        warnings.push(format!(
            "{} comes before {}: container runtimes take that one; remove it, unless its network is meant",
            places.conf_dir.join(name).display(),
            conf_dir::NAME
        ));
    }
    let version = conflist.version.as_str();
    for name in &conflist.others {
        let program = places.bin_dir.join(name);
        // What a link points to may be outside of a container.
        if fs::symlink_metadata(&program).is_err() {
            warnings.push(format!(
                "{} is missing, so no pod can start: install CNI's plugins (package containernetworking-plugins or \
                 kubernetes-cni)",
                program.display()
            ));
        } else if let Some(known) = ask::versions(&program)
            && !known.iter().any(|known| known == version)
        {
            warnings.push(format!(
                "{} does not know version {version} of CNI, which the config list names, so no pod can start: it \
                 knows {}",
                program.display(),
                known.join(", ")
            ));
        }
    }
    Ok(warnings)
}

/// Removes what [`install`] wrote: the config list unless somebody has changed it, and the plugin if it is ours, the
/// config list is gone and no container has been attached by it. `force` removes both nevertheless, but never another
/// plugin.
///
/// # Errors
/// A file cannot be read or removed.
pub fn uninstall(places: &Places, force: bool) -> Result<Outcome, Error> {
    uninstall_program(&Program::own(), places, force)
}

fn uninstall_program(program: &Program, places: &Places, force: bool) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let has_plugins = places.bin_dir.is_dir();
    let _lock = has_plugins.then(|| lock(&places.bin_dir)).transpose()?;
    let built_in = Conflist::built_in()?;
    let conf_dir = ConfDir(&places.conf_dir);
    let path = conf_dir.path();
    let conflist = Conflist::read(&path).unwrap_or_else(|_| built_in.clone());
    match conf_dir.standing(&built_in)? {
        conf_dir::Standing::Missing => outcome
            .done
            .push(format!("{}: is not there", path.display())),
        conf_dir::Standing::Changed if !force => {
            outcome.is_left = true;
            outcome.done.push(format!(
                "{}: kept, since somebody has changed it; --force removes it",
                path.display()
            ));
        }
        _ => {
            conf_dir.remove()?;
            outcome.done.push(format!("{}: removed", path.display()));
        }
    }
    remove_program(program, &places.program(), &conflist, force, &mut outcome)?;
    Ok(outcome)
}

fn remove_program(
    program: &Program,
    path: &Path,
    conflist: &Conflist,
    force: bool,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let shown = path.display();
    let kept = match program.standing(path)? {
        binary::Standing::Missing => Some("is not there".to_owned()),
        binary::Standing::Other(_) => Some("kept, since it is another plugin".to_owned()),
        binary::Standing::Link(_) => {
            Some("kept, since it is a link that was not installed here".to_owned())
        }
        _ if path.is_symlink() => {
            Some("kept, since it is a link that was not installed here".to_owned())
        }
        _ if force => None,
        _ if outcome.is_left => {
            Some("kept, since no pod could start with the config list without it".to_owned())
        }
        _ => match cni::count_attachments(conflist.configuration(conflist.version).as_bytes()) {
            Ok(0) => None,
            Ok(count) => {
                outcome.is_left = true;
                Some(format!(
                    "kept, since {count} of the containers that it has attached still need it to be removed; \
                     --force removes it"
                ))
            }
            Err(error) => {
                outcome.is_left = true;
                Some(format!(
                    "kept, since it is unknown whether containers need it: {error}"
                ))
            }
        },
    };
    let what = match kept {
        Some(why) => why,
        None => {
            fs::remove_file(path).map_err(|source| Error::file("remove", path, source))?;
            "removed".to_owned()
        }
    };
    outcome.done.push(format!("{shown}: {what}"));
    Ok(())
}

/// What the agent does at its start: installs if the settings say so. A failure is no reason not to join the overlay.
pub fn at_start(settings: &Settings) {
    let settings = &settings.cni;
    if !settings.install {
        return;
    }
    let places = Places {
        bin_dir: settings.bin_dir.clone(),
        conf_dir: settings.conf_dir.clone(),
    };
    let wish = Wish {
        conf_from: settings.conf_from.clone(),
        force: false,
    };
    match install(&places, &wish) {
        Ok(outcome) => {
            for line in outcome.done {
                info!("{line}");
            }
            for warning in outcome.warnings {
                warn!("{warning}");
            }
        }
        Err(error) => warn!("the CNI plugin is not installed: {}", chain(&error)),
    }
}

#[cfg(test)]
mod tests;
