//! Delays between attempts: exponential backoff with jitter.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

/// Delays that double from `min` to `max`, each shortened by a random part, so that nodes that lost the same server do
/// not come back in lockstep.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
    next: Duration,
    seed: u64,
}

/// The settings of a [`Backoff`] are invalid.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum BackoffError {
    /// A zero delay would busy-loop.
    #[error("the shortest delay is 0: expected a longer one")]
    ZeroMin,
    /// The bounds are reversed.
    #[error("the longest delay, {max:?}, is shorter than the shortest, {min:?}")]
    MaxBelowMin {
        /// The shortest delay.
        min: Duration,
        /// The longest delay.
        max: Duration,
    },
    /// The jitter is outside of its range.
    #[error("jitter {0} is outside 0.0 to 0.9")]
    Jitter(f64),
}

impl Backoff {
    /// Delays from `min` to `max`; each is shortened by up to the fraction `jitter` (0.0 to 0.9).
    ///
    /// See [`Backoff::constant`] and [`Backoff::seeded`].
    pub const fn new(
        min: Duration,
        max: Duration,
        jitter: f64,
        seed: u64,
    ) -> Result<Self, BackoffError> {
        if min.is_zero() {
            return Err(BackoffError::ZeroMin);
        }
        if max.as_nanos() < min.as_nanos() {
            return Err(BackoffError::MaxBelowMin { min, max });
        }
        if !(jitter >= 0.0 && jitter <= 0.9) {
            return Err(BackoffError::Jitter(jitter));
        }
        Ok(Self {
            min,
            max,
            jitter,
            next: min,
            seed,
        })
    }

    /// The same for constants: values out of range do not compile.
    pub const fn constant(min: Duration, max: Duration, jitter: f64) -> Self {
        match Self::new(min, max, jitter, 0) {
            Ok(backoff) => backoff,
            Err(_) => panic!("constant out of range"),
        }
    }

    /// The same delays with another random seed.
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        jittered(full, self.jitter, &mut self.seed)
    }

    /// Call after success: the next delay is the shortest again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// A task that is retried, with growing delays, until it succeeds.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    backoff: Backoff,
    due: Option<Instant>,
}

impl Retry {
    /// Not due yet.
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, due: None }
    }

    /// The task failed or is blocked: it is due after the next delay.
    pub(crate) fn schedule(&mut self) {
        self.due = Some(Instant::now() + self.backoff.next_delay());
    }

    /// The task is due at once.
    pub(crate) fn now(&mut self) {
        self.due = Some(Instant::now());
    }

    /// The task is due at a certain time.
    pub(crate) fn at(&mut self, due: Instant) {
        self.due = Some(due);
    }

    /// Another task takes over: nothing is due, and the next delay is unchanged.
    pub(crate) fn suspend(&mut self) {
        self.due = None;
    }

    /// Whether the task is due now or later.
    pub(crate) fn is_waiting(&self) -> bool {
        self.due.is_some()
    }

    /// The task succeeded: nothing is due, and the next delay is the shortest again.
    pub(crate) fn done(&mut self) {
        self.due = None;
        self.backoff.reset();
    }

    /// Waits until the task is due; forever if nothing is. Cancel-safe.
    pub(crate) async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

/// `full` shortened by up to the fraction `jitter`, which must lie in 0.0 to 1.0.
pub(crate) fn jittered(full: Duration, jitter: f64, seed: &mut u64) -> Duration {
    // 32 random bits as a fraction of 1: an f64 represents them exactly.
    let fraction = f64::from(u32::try_from(next_random(seed) >> 32).unwrap_or(0))
        / (f64::from(u32::MAX) + 1.0);
    full.mul_f64((1.0 - jitter * fraction).clamp(0.0, 1.0))
}

/// The next number of the splitmix64 sequence (Steele, Lea, Flood 2014): evenly distributed for any seed, not secret.
pub(crate) fn next_random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed that differs per process: the standard library seeds its hash maps with random bytes from the kernel.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn delays_double_up_to_the_longest_and_start_again_after_success() {
        let mut backoff = Backoff::new(MIN, MAX, 0.0, 1).unwrap();
        let millis: Vec<_> = (0..8).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), MIN);
    }

    #[test]
    fn jitter_shortens_by_no_more_than_its_part_and_differs_between_seeds() {
        let delays = |seed| {
            let mut backoff = Backoff::new(MAX, MAX, 0.5, seed).unwrap();
            (0..100).map(|_| backoff.next_delay()).collect::<Vec<_>>()
        };
        assert!(delays(1).iter().all(|d| *d > MAX / 2 - MIN && *d <= MAX));
        assert!(delays(1).iter().any(|d| *d < MAX * 3 / 4));
        assert_ne!(delays(1), delays(2));
    }

    #[test]
    fn senseless_settings_are_refused() {
        assert_eq!(
            Backoff::new(Duration::ZERO, MAX, 0.0, 0).unwrap_err(),
            BackoffError::ZeroMin
        );
        assert!(Backoff::new(MAX, MIN, 0.0, 0).is_err());
        assert!(Backoff::new(MIN, MAX, 1.0, 0).is_err());
        assert!(Backoff::new(MIN, MAX, f64::NAN, 0).is_err());
    }
}
