//! A clock that a test can set, for one agent alone, by libfaketime.

use std::fs;

use tempfile::TempDir;

/// What a process shows for the time of day, as an offset to the machine's; its monotonic clock, which nobody can set,
/// stays as it is.
pub(crate) struct Clock {
    library: String,
    directory: TempDir,
}

impl Clock {
    /// A clock that is right.
    pub(crate) fn new() -> Self {
        let library = format!(
            "/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1",
            std::env::consts::ARCH
        );
        assert!(
            fs::exists(&library).is_ok_and(|there| there),
            "{library} (package libfaketime) is needed for this test"
        );
        let directory = TempDir::new().expect("a directory for the clock");
        let clock = Self { library, directory };
        clock.set("+0");
        clock
    }

    /// Sets the clock: `+800d`, `-2h`. The file is read at every look at the clock, and must never be there in part.
    pub(crate) fn set(&self, offset: &str) {
        let [now, next] = ["now", "next"].map(|name| self.directory.path().join(name));
        fs::write(&next, offset)
            .and_then(|()| fs::rename(&next, &now))
            .expect("to set the clock");
    }

    /// What a process that goes by the clock has in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let file = self.directory.path().join("now").display().to_string();
        vec![
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}
