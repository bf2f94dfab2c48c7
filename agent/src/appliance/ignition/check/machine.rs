//! The machine that comes out of it: the image and what the config adds.

use std::collections::BTreeSet;

use ignition_config::v3_3::{Config, Unit};

use super::super::image::{Image, image, is_in};
use super::Findings;

/// Where units and drop-ins of the machine stand.
pub(super) const UNIT_DIRECTORY: &str = "/etc/systemd/system/";

/// What the checks ask about the machine as a whole.
pub(super) struct Machine<'c> {
    pub(super) image: &'static Image,
    pub(super) config: &'c Config,
    /// Paths of all files, directories and links of the config.
    paths: BTreeSet<&'c str>,
}

impl<'c> Machine<'c> {
    pub(super) fn new(config: &'c Config) -> Self {
        let mut paths = BTreeSet::new();
        if let Some(storage) = &config.storage {
            paths.extend(storage.directories.iter().flatten().map(|d| &*d.path));
            paths.extend(storage.files.iter().flatten().map(|file| &*file.path));
            paths.extend(storage.links.iter().flatten().map(|link| &*link.path));
        }
        Self {
            image: image(),
            config,
            paths,
        }
    }

    /// Reports what is nowhere: an error, unless another config, which is not read here, may bring it.
    pub(super) fn lacks(&self, path: String, message: &str, findings: &mut Findings<'_>) {
        if self.is_merged() {
            let message = format!("{message} (unless a merged config has it)");
            findings.warn(path, message);
        } else {
            findings.error(path, message);
        }
    }

    /// As [`lacks`](Self::lacks), where Ignition does not mind.
    pub(super) fn warn_of_lack(&self, path: &str, message: &str, findings: &mut Findings<'_>) {
        let doubt = if self.is_merged() {
            " (unless a merged config has it)"
        } else {
            ""
        };
        findings.warn(path, format!("{message}{doubt}"));
    }

    /// Whether other configs are merged with this one or take its place.
    fn is_merged(&self) -> bool {
        let others = self.config.ignition.config.as_ref();
        others.is_some_and(|others| {
            others.replace.is_some() || others.merge.iter().flatten().next().is_some()
        })
    }

    /// Whether the config has something at `path` itself.
    pub(super) fn brings(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// Whether the config has something below `directory`.
    pub(super) fn brings_below(&self, directory: &str) -> bool {
        self.paths.iter().any(|path| is_in(path, directory))
    }

    /// Whether a program is there: `None` where only the running machine knows.
    pub(super) fn has_program(&self, program: &str) -> Option<bool> {
        let programs = &self.image.programs;
        let is_in_path = |name: &str| programs.path.iter().any(|known| known == name);
        if !program.starts_with('/') {
            return Some(is_in_path(program));
        }
        let (directory, name) = program.rsplit_once('/').unwrap_or_default();
        match directory {
            "/bin" | "/sbin" | "/usr/bin" | "/usr/sbin" => Some(is_in_path(name)),
            "/usr/lib/cni" | "/usr/lib/coreos" | "/usr/lib/flatcar" | "/usr/lib/selvage" => {
                Some(programs.other.iter().any(|known| known == program))
            }
            _ => None,
        }
    }

    /// Units of the config.
    pub(super) fn units(&self) -> impl Iterator<Item = &'c Unit> {
        let systemd = self.config.systemd.as_ref();
        systemd.and_then(|s| s.units.as_ref()).into_iter().flatten()
    }

    /// Whether the config has a unit file of this name, as a unit or as a file.
    pub(super) fn brings_unit(&self, name: &str) -> bool {
        let has_contents = |unit: &Unit| unit.contents.as_ref().is_some_and(|c| !c.is_empty());
        self.units()
            .any(|unit| unit.name == name && has_contents(unit))
            || self.brings(&format!("{UNIT_DIRECTORY}{name}"))
    }

    /// Whether systemd will find a unit of this name: one of the image or the config, an instance of a template, or one
    /// that systemd makes by itself.
    pub(super) fn has_unit(&self, name: &str) -> bool {
        let suffix = name.rsplit_once('.').unwrap_or_default().1;
        let exists = |name: &str| self.image.has_unit(name) || self.brings_unit(name);
        let made_by_systemd = ["device", "scope", "slice"].contains(&suffix)
            || name == "-.mount"
            // From /etc/fstab, when the config writes one.
            || ["mount", "automount", "swap"].contains(&suffix) && self.brings("/etc/fstab");
        // A specifier may become anything.
        made_by_systemd
            || name.contains('%')
            || exists(name)
            || template_of(name).is_some_and(|t| exists(&t))
    }

    /// Whether the image, or the config, has a unit of the image enabled, by its own name or by one that stands for it.
    pub(super) fn is_on(&self, name: &str) -> bool {
        let units = &self.image.units;
        let stands_for = |other: &str| {
            let by_alias = units.enabled_by_alias.get(other);
            other == name || by_alias.is_some_and(|enabled| enabled.iter().any(|unit| unit == name))
        };
        units.enabled.iter().any(|unit| unit == name)
            || self
                .units()
                .any(|unit| unit.enabled == Some(true) && stands_for(&unit.name))
    }

    /// Whether the unit is masked on the machine.
    pub(super) fn is_masked(&self, name: &str) -> bool {
        let is_unmasked = self
            .units()
            .any(|unit| unit.name == name && (unit.mask == Some(false) || self.brings_unit(name)));
        let by_config = self
            .units()
            .any(|unit| unit.name == name && unit.mask == Some(true));
        let links = self
            .config
            .storage
            .iter()
            .flat_map(|s| s.links.iter().flatten());
        let mut masks = links.filter(|link| link.target.as_deref() == Some("/dev/null"));
        let by_link = masks.any(|link| link.path.strip_prefix(UNIT_DIRECTORY) == Some(name));
        by_config
            || by_link
            || !is_unmasked && self.image.units.masked.iter().any(|unit| unit == name)
    }
}

/// `name@.suffix` of `name@instance.suffix`.
pub(super) fn template_of(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.')?;
    let (template, instance) = stem.split_once('@')?;
    (!instance.is_empty()).then(|| format!("{template}@.{suffix}"))
}
