//! Credentials as variables: those of the environment, and of a file in the form of an environment file or `openrc.sh`.

use std::path::Path;

use crate::base::env_file::{Variables as File, source};
use crate::cloud::access::Access;
use crate::cloud::error::CloudError;

/// The variables. No derived `Debug`: one of them may be a password.
pub(super) struct Variables {
    environment: fn(&str) -> Option<String>,
    file: File,
}

impl Variables {
    /// Reads the file, if the settings name one.
    ///
    /// # Errors
    /// The file cannot be read, or needs a shell.
    pub(super) fn read(access: &Access) -> Result<Self, CloudError> {
        let file = access.credentials_file.as_deref().map(read).transpose()?;
        Ok(Self {
            environment: access.variable,
            file: file.unwrap_or_default(),
        })
    }

    /// A variable; empty ones count as none. The environment goes first.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let of_file = || {
            self.file
                .get(name)
                .filter(|value| !value.is_empty())
                .cloned()
        };
        (self.environment)(name).or_else(of_file)
    }
}

fn read(path: &Path) -> Result<File, CloudError> {
    let wrong = |problem: String| CloudError::Credentials {
        problem: format!("{}: {problem}", path.display()),
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let mut variables = File::new();
    source(&text, &mut variables).map_err(|error| wrong(error.to_string()))?;
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::transport::Transport;
    use crate::plan::backend::CloudConfig;

    #[test]
    fn the_environment_goes_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("openrc.sh");
        // As Horizon gives it out, but with the password in it.
        let file = "#!/usr/bin/env bash\nexport OS_AUTH_URL=http://keystone:5000/v3\nexport OS_USERNAME=\"demo\"\n\
                    export OS_PASSWORD='a b'\nunset OS_TENANT_ID\nexport OS_REGION_NAME=\"\"\n";
        std::fs::write(&path, file).unwrap();
        let mut access = Access {
            transport: Transport::new(None, None),
            config: CloudConfig::default(),
            address: [10, 0, 0, 7].into(),
            credentials_file: Some(path.clone()),
            variable: |name| (name == "OS_USERNAME").then(|| "other".to_owned()),
        };
        let variables = Variables::read(&access).unwrap();
        for (name, value) in [
            ("OS_AUTH_URL", Some("http://keystone:5000/v3")),
            ("OS_USERNAME", Some("other")),
            ("OS_PASSWORD", Some("a b")),
            ("OS_REGION_NAME", None),
            ("OS_TENANT_ID", None),
        ] {
            assert_eq!(variables.get(name).as_deref(), value, "{name}");
        }
        std::fs::write(&path, "OS_PASSWORD='s3cret\n").unwrap();
        let error = Variables::read(&access).err().unwrap().to_string();
        assert!(error.contains("openrc.sh: line 1"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        access.credentials_file = Some(folder.path().join("none"));
        assert!(Variables::read(&access).is_err());
    }
}
