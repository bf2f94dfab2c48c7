//! What Spark's log of events says of a program's tasks and executors. Pure.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The figures of one program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tasks that ended, each attempt counted.
    pub tasks: u64,
    /// Those of them that failed, or were killed.
    pub failed_tasks: u64,
    /// Stages that had to be run again, wholly or in part, or failed.
    pub failed_stages: u64,
    /// Executors that joined.
    pub executors: u64,
    /// Executors that were lost while the program ran.
    pub lost_executors: u64,
    /// Bytes of a shuffle that tasks fetched from other executors.
    pub fetched: u64,
    /// Bytes of a shuffle that tasks had on their own executor.
    pub local: u64,
}

impl Tally {
    /// Reads a log: one event a line, as JSON, by `JsonProtocol` of Spark's core.
    ///
    /// # Errors
    /// When a line is not JSON, or the log does not end with the end of a program.
    pub(super) fn of(log: &str) -> Result<Self> {
        let mut tally = Self::default();
        let mut has_ended = false;
        for line in log.lines() {
            let event: Value =
                serde_json::from_str(line).with_context(|| format!("no event: {line}"))?;
            match event["Event"].as_str().unwrap_or_default() {
                "SparkListenerTaskEnd" => tally.add_task(&event),
                "SparkListenerStageCompleted" => tally.add_stage(&event["Stage Info"]),
                "SparkListenerExecutorAdded" => tally.executors += 1,
                // All are removed when a program ends, which is no loss.
                "SparkListenerExecutorRemoved" if !has_ended => tally.lost_executors += 1,
                "SparkListenerApplicationEnd" => has_ended = true,
                _ => {}
            }
        }
        anyhow::ensure!(has_ended, "the program has no end");
        Ok(tally)
    }

    fn add_task(&mut self, event: &Value) {
        self.tasks += 1;
        if event["Task End Reason"]["Reason"] != "Success" {
            self.failed_tasks += 1;
        }
        let read = &event["Task Metrics"]["Shuffle Read Metrics"];
        let bytes = |name: &str| read[name].as_u64().unwrap_or_default();
        self.fetched += bytes("Remote Bytes Read");
        self.local += bytes("Local Bytes Read");
    }

    fn add_stage(&mut self, stage: &Value) {
        let is_again = stage["Stage Attempt ID"] != 0;
        if is_again || stage["Failure Reason"].is_string() {
            self.failed_stages += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: &str = r#"{"Event":"SparkListenerApplicationEnd","Timestamp":1}"#;

    fn tally(lines: &[&str]) -> Tally {
        Tally::of(&[lines, &[END]].concat().join("\n")).unwrap()
    }

    #[test]
    fn bytes_and_tasks_are_summed_up() {
        let task = r#"{"Event":"SparkListenerTaskEnd","Stage ID":1,"Task End Reason":{"Reason":"Success"},
            "Task Metrics":{"Shuffle Read Metrics":{"Remote Blocks Fetched":2,"Remote Bytes Read":700,"Local Bytes Read":30}}}"#
            .replace('\n', "");
        let tally = tally(&[
            r#"{"Event":"SparkListenerLogStart","Spark Version":"4.0.5"}"#,
            r#"{"Event":"SparkListenerExecutorAdded","Executor ID":"0"}"#,
            &task,
            &task,
            r#"{"Event":"SparkListenerStageCompleted","Stage Info":{"Stage ID":1,"Stage Attempt ID":0}}"#,
        ]);
        let expected = Tally {
            tasks: 2,
            executors: 1,
            fetched: 1400,
            local: 60,
            ..Tally::default()
        };
        assert_eq!(tally, expected);
    }

    #[test]
    fn whatever_had_to_be_done_again_is_counted() {
        let tally = tally(&[
            r#"{"Event":"SparkListenerTaskEnd","Task End Reason":{"Reason":"FetchFailed","Message":"x"}}"#,
            r#"{"Event":"SparkListenerTaskEnd","Task End Reason":{"Reason":"ExecutorLostFailure"}}"#,
            r#"{"Event":"SparkListenerStageCompleted","Stage Info":{"Stage Attempt ID":0,"Failure Reason":"x"}}"#,
            r#"{"Event":"SparkListenerStageCompleted","Stage Info":{"Stage Attempt ID":1}}"#,
            r#"{"Event":"SparkListenerExecutorRemoved","Executor ID":"1","Removed Reason":"heartbeat"}"#,
        ]);
        assert_eq!((tally.failed_tasks, tally.failed_stages), (2, 2));
        assert_eq!(tally.lost_executors, 1);
    }

    #[test]
    fn executors_that_go_with_the_program_are_not_lost() {
        let removed = r#"{"Event":"SparkListenerExecutorRemoved"}"#;
        let log = [END, removed].join("\n");
        assert_eq!(Tally::of(&log).unwrap().lost_executors, 0);
    }

    #[test]
    fn a_log_that_is_not_whole_is_an_error() {
        assert!(Tally::of("").is_err());
        assert!(Tally::of("{").is_err());
    }
}
