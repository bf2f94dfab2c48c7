//! Waiting for a condition, never for a while.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Between two looks; one more look a second costs a slow guest nothing it would notice.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks `probe` until it gives `Ok`; says what was awaited and the last answer when `deadline` has passed.
///
/// # Errors
/// When time is up, with `what` and the reason that the probe gave last (`Err` means "not yet").
pub(crate) async fn until<T, F>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let started = Instant::now();
    loop {
        let reason = match probe().await {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if started.elapsed() > deadline {
            bail!(
                "{what}: not within {} s; last: {reason:#}",
                deadline.as_secs()
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_reason_is_told() {
        let error = until("tea", Duration::ZERO, || async {
            Err::<(), _>(anyhow::anyhow!("too hot"))
        })
        .await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "tea: not within 0 s; last: too hot"
        );
    }

    #[tokio::test]
    async fn success_ends_the_wait() {
        assert_eq!(
            until("x", Duration::ZERO, || async { Ok(7) })
                .await
                .unwrap(),
            7
        );
    }
}
