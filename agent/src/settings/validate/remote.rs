//! Validation of `[remote]`.

use super::etcd::together;
use super::{absolute, is_on, optional};
use crate::base::endpoint::{self, Endpoint};
use crate::base::network_name::NetworkName;
use crate::settings::Inputs;
use crate::settings::inputs::Sourced;
use crate::settings::remote::{NETWORK_NAME, is_network_name};
use crate::settings::table::key;
use crate::settings::{Error, Listen, Remote};

/// The unnamed network, as flannel writes it in a path.
const NO_NAME: &str = "_";

const SERVER: &str = "HOST:PORT, http://HOST:PORT or https://HOST:PORT (HOST:PORT alone is https if remote.cafile or \
     remote.certfile is set, else http), with a port from 1 to 65535 and no user, path or query";

/// `name` is the network's name on this host, if it has one.
pub(super) fn remote(inputs: &Inputs, name: Option<&NetworkName>) -> Result<Remote, Error> {
    let cafile = optional(inputs.remote.cafile.as_ref(), absolute)?;
    let certfile = optional(inputs.remote.certfile.as_ref(), absolute)?;
    let keyfile = optional(inputs.remote.keyfile.as_ref(), absolute)?;
    together(
        &inputs.remote.certfile,
        certfile.is_some(),
        key::REMOTE_KEYFILE,
        keyfile.is_some(),
    )?;
    together(
        &inputs.remote.keyfile,
        keyfile.is_some(),
        key::REMOTE_CERTFILE,
        certfile.is_some(),
    )?;
    let tls_by_default = cafile.is_some() || certfile.is_some();
    let listen = optional(inputs.remote.listen.as_ref(), |input| {
        Listen::parse(&input.value).ok_or_else(|| input.error(Listen::FORM))
    })?;
    // In this case flannel's server admits every client, although it has a CA to verify them with.
    if listen.is_some() {
        together(
            &inputs.remote.cafile,
            cafile.is_some(),
            key::REMOTE_CERTFILE,
            certfile.is_some(),
        )?;
    }
    Ok(Remote {
        servers: servers(inputs.remote.server.as_ref(), tls_by_default)?,
        network: optional(inputs.remote.network.as_ref(), network)?
            .unwrap_or_else(|| name.map_or(NO_NAME, NetworkName::as_str).to_owned()),
        listen,
        cafile,
        certfile,
        keyfile,
        insecure: is_on(inputs.remote.insecure.as_ref(), false),
    })
}

fn servers(
    input: Option<&Sourced<Vec<String>>>,
    tls_by_default: bool,
) -> Result<Vec<String>, Error> {
    let Some(input) = input else {
        return Ok(Vec::new());
    };
    let texts = input.value.iter().flat_map(|text| text.split(','));
    texts
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| match Endpoint::parse(text, tls_by_default) {
            Some(endpoint) => Ok(endpoint.url),
            None => {
                let shown = Sourced {
                    value: endpoint::without_user(text),
                    place: input.place.clone(),
                    key: input.key,
                };
                Err(shown.error(SERVER))
            }
        })
        .collect()
}

fn network(input: &Sourced<String>) -> Result<String, Error> {
    if input.value == NO_NAME || is_network_name(&input.value) {
        Ok(input.value.clone())
    } else {
        Err(input.error(NETWORK_NAME))
    }
}
