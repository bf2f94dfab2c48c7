//! Validation of `[etcd]`.

use std::time::Duration;

use super::{absolute, optional, seconds};
use crate::base::endpoint::{self, Endpoint};
use crate::base::network_name::NetworkName;
use crate::settings::Inputs;
use crate::settings::inputs::Sourced;
use crate::settings::key::Key;
use crate::settings::table::key;
use crate::settings::{Error, Etcd};

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
pub(crate) const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// flannel's TTL.
const DEFAULT_LEASE_TTL_SECS: u64 = 24 * 60 * 60;

/// From one minute, enough for a restart of etcd, to one year.
const LEASE_TTL_SECS: std::ops::RangeInclusive<u64> = 60..=365 * 24 * 60 * 60;

pub(super) fn etcd(inputs: Inputs, network: Option<&NetworkName>) -> Result<Etcd, Error> {
    let certfile = optional(inputs.etcd.certfile.as_ref(), absolute)?;
    let keyfile = optional(inputs.etcd.keyfile.as_ref(), absolute)?;
    let username = optional(inputs.etcd.username.as_ref(), |name| Ok(name.value.clone()))?;
    let password_file = optional(inputs.etcd.password_file.as_ref(), absolute)?;
    let has_password = password_file.is_some() || inputs.password.is_some();
    together(
        &inputs.etcd.certfile,
        certfile.is_some(),
        key::ETCD_KEYFILE,
        keyfile.is_some(),
    )?;
    together(
        &inputs.etcd.keyfile,
        keyfile.is_some(),
        key::ETCD_CERTFILE,
        certfile.is_some(),
    )?;
    together(
        &inputs.etcd.username,
        username.is_some(),
        key::ETCD_PASSWORD_FILE,
        has_password,
    )?;
    together(
        &inputs.etcd.password_file,
        password_file.is_some(),
        key::ETCD_USERNAME,
        username.is_some(),
    )?;
    let cafile = optional(inputs.etcd.cafile.as_ref(), absolute)?;
    let tls_by_default = cafile.is_some() || certfile.is_some();
    Ok(Etcd {
        endpoints: endpoints(inputs.etcd.endpoints.as_ref(), tls_by_default)?,
        prefix: match (&inputs.etcd.prefix, network) {
            (None, Some(network)) => {
                let base = prefix(inputs.base_prefix.as_ref())?;
                format!("{base}/{network}")
            }
            (given, _) => prefix(given.as_ref())?,
        },
        cafile,
        certfile,
        keyfile,
        // flanneld ignores its password variable without a user name; do the same.
        password: inputs.password.filter(|_| username.is_some()),
        username,
        lease_ttl: seconds(
            inputs.etcd.lease_ttl.as_ref(),
            DEFAULT_LEASE_TTL_SECS,
            LEASE_TTL_SECS,
        )?,
    })
}

impl Default for Etcd {
    /// The settings when nothing is configured.
    fn default() -> Self {
        Self {
            endpoints: vec![DEFAULT_ENDPOINT.to_owned()],
            prefix: DEFAULT_PREFIX.to_owned(),
            cafile: None,
            certfile: None,
            keyfile: None,
            username: None,
            password: None,
            lease_ttl: Duration::from_secs(DEFAULT_LEASE_TTL_SECS),
        }
    }
}

/// Checks that a setting has its partner if it is set.
pub(super) fn together(
    input: &Option<Sourced<String>>,
    is_set: bool,
    partner: Key,
    partner_is_set: bool,
) -> Result<(), Error> {
    match input {
        Some(input) if is_set && !partner_is_set => Err(Error::Alone {
            place: input.place.clone(),
            key: input.key.path,
            partner: partner.path,
        }),
        _ => Ok(()),
    }
}

/// The endpoints with a scheme; `tls_by_default` selects it where the input has none.
fn endpoints(
    input: Option<&Sourced<Vec<String>>>,
    tls_by_default: bool,
) -> Result<Vec<String>, Error> {
    let Some(input) = input else {
        return Ok(vec![DEFAULT_ENDPOINT.to_owned()]);
    };
    let read = |text: &String| Endpoint::parse(text, tls_by_default).map(|endpoint| endpoint.url);
    let checked: Option<Vec<_>> = input.value.iter().map(read).collect();
    if let Some(endpoints) = checked.filter(|endpoints| !endpoints.is_empty()) {
        return Ok(endpoints);
    }
    let shown = Sourced {
        value: input
            .value
            .iter()
            .map(|text| endpoint::without_user(text))
            .collect::<Vec<_>>(),
        place: input.place.clone(),
        key: input.key,
    };
    Err(shown.error(format!("at least one URL {}", endpoint::FORM)))
}

/// The prefix in the form of Go's `path.Join`: no empty elements, and no slash at the end.
fn prefix(input: Option<&Sourced<String>>) -> Result<String, Error> {
    let Some(input) = input else {
        return Ok(DEFAULT_PREFIX.to_owned());
    };
    let text = &input.value;
    let elements: Vec<&str> = text
        .split('/')
        .filter(|element| !element.is_empty())
        .collect();
    if text.is_empty()
        || text.chars().any(char::is_control)
        || elements
            .iter()
            .any(|element| matches!(*element, "." | ".."))
    {
        return Err(input.error(
            "a key prefix such as /coreos.com/network, without \".\" and \"..\" and control characters",
        ));
    }
    let path = elements.join("/");
    let rooted = text.starts_with('/') && !path.is_empty();
    Ok(if rooted { format!("/{path}") } else { path })
}
