//! What nodes answer, as far as the command line looks into it.
//!
//! Everything but what names a thing may be absent: a node of another version may say less, or more. What is
//! printed as JSON is the node's own answer, untouched; these values are for tables and decisions only.

use flockwork::model::attempt::Phase;
use flockwork::model::record::JobState;
use flockwork::model::time::Timestamp;
use serde::Deserialize;

use super::failure::exit;

/// Why a job does not run.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Explained {
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    nodes: Vec<Fit>,
}

#[derive(Debug, Clone, Deserialize)]
struct Fit {
    #[serde(default)]
    fits: bool,
}

impl Explained {
    /// No live node could run it, however little there were to do.
    pub(crate) fn is_stuck(&self) -> bool {
        self.nodes.iter().all(|node| !node.fits)
    }
}

/// A job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) state: JobState,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default, rename = "final")]
    pub(crate) is_final: bool,
    #[serde(default)]
    pub(crate) timed_out: bool,
    #[serde(default)]
    pub(crate) retry_of: Option<String>,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) spec: serde_json::Value,
    #[serde(default)]
    pub(crate) submitted_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) ended_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) exit_code: Option<i32>,
    #[serde(default)]
    pub(crate) signal: Option<i32>,
    #[serde(default)]
    pub(crate) progress: Option<Progress>,
    #[serde(default)]
    pub(crate) checkpoint: Option<Checkpoint>,
    #[serde(default)]
    pub(crate) result: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) result_bytes: Option<u64>,
    /// Whose it is.
    #[serde(default)]
    pub(crate) result_attempt: Option<u32>,
    #[serde(default)]
    pub(crate) attempts: Vec<Attempt>,
    #[serde(default)]
    pub(crate) replicas: Option<Replicas>,
}

/// How far a job says it has come.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Progress {
    pub(crate) fraction: f64,
    #[serde(default)]
    pub(crate) message: String,
}

impl Progress {
    /// In a few words.
    pub(crate) fn text(&self) -> String {
        let percent = format!("{:.1}%", self.fraction * 100.0);
        if self.message.is_empty() { percent } else { format!("{percent}, {}", self.message) }
    }
}

/// Work that a job has saved.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) size: u64,
    pub(crate) attempt: u32,
    #[serde(default)]
    pub(crate) saved_at: Option<Timestamp>,
}

/// One execution of a job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) number: u32,
    #[serde(default)]
    pub(crate) node: String,
    #[serde(default)]
    pub(crate) node_name: Option<String>,
    pub(crate) phase: Phase,
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) ended_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) exit_code: Option<i32>,
    #[serde(default)]
    pub(crate) signal: Option<i32>,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// What is worth knowing of its end beside how it ended.
    #[serde(default)]
    pub(crate) remark: Option<String>,
    #[serde(default)]
    pub(crate) usage: Option<Usage>,
    #[serde(default)]
    pub(crate) overlaps: Vec<Overlap>,
}

/// What an attempt used of its machine.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) cpu_ms: Option<u64>,
    #[serde(default)]
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Usage {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let cpu = self.cpu_ms.map(|ms| format!("{:.1} s of processor time", ms as f64 / 1_000.0));
        let memory =
            self.peak_memory_bytes.map(|bytes| format!("at most {:.1} MiB of memory", bytes as f64 / 1_048_576.0));
        [cpu, memory].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Another attempt that ran, or may have run, at the same time.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Overlap {
    pub(crate) number: u32,
    #[serde(default)]
    pub(crate) node: String,
    #[serde(default)]
    pub(crate) certain: bool,
}

/// How many replicas hold this very version.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Replicas {
    pub(crate) agree: u32,
    pub(crate) of: u32,
}

impl Job {
    /// What it is called: its name, or else its command.
    pub(crate) fn title(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let words = self.spec.get("command").and_then(serde_json::Value::as_array);
        let command = words.into_iter().flatten().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(" ");
        match self.spec.get("handler").and_then(serde_json::Value::as_str) {
            Some(handler) if command.is_empty() => handler.to_owned(),
            _ => command,
        }
    }

    /// The attempt that tells best how it stands: the one that succeeded, else a live one, else the last.
    pub(crate) fn telling(&self) -> Option<&Attempt> {
        let newest = |wanted: &dyn Fn(&Attempt) -> bool| {
            self.attempts.iter().filter(|attempt| wanted(attempt)).max_by_key(|attempt| attempt.number)
        };
        newest(&|a| a.phase == Phase::Succeeded)
            .or_else(|| newest(&|a| a.phase.is_live()))
            .or_else(|| newest(&|_| true))
    }

    /// What `run` and `wait` end with for a job that has ended.
    pub(crate) fn exit_code_for_shell(&self) -> u8 {
        match self.state {
            JobState::Succeeded => exit::SUCCESS,
            JobState::Cancelled => exit::CANCELLED,
            JobState::Pending | JobState::Running | JobState::Failed => {
                if self.timed_out {
                    return exit::TIMED_OUT;
                }
                let by_code = self.exit_code.and_then(|code| u8::try_from(code).ok());
                let by_signal = self.signal.and_then(|signal| u8::try_from(128 + signal).ok());
                by_code.or(by_signal).filter(|code| *code != exit::SUCCESS).unwrap_or(exit::FAILED)
            }
        }
    }
}

impl Attempt {
    /// Where it ran, for people.
    pub(crate) fn place(&self) -> &str {
        self.node_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.node)
    }

    /// How it ended, in a word.
    pub(crate) fn exit_text(&self) -> String {
        match (self.exit_code, self.signal) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => String::new(),
        }
    }
}

/// A page of jobs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct JobsPage {
    pub(crate) jobs: Vec<serde_json::Value>,
    #[serde(default)]
    pub(crate) next_cursor: Option<String>,
    #[serde(default)]
    pub(crate) partial: bool,
    #[serde(default)]
    pub(crate) missing: Vec<String>,
}

/// What durability a submit reached.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) stored: u32,
    pub(crate) wanted: u32,
    #[serde(default)]
    pub(crate) replicas: Vec<String>,
}

/// One outcome of a submit.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Submitted {
    #[serde(default)]
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) receipt: Option<Receipt>,
    #[serde(default)]
    pub(crate) error: Option<RefusedJob>,
}

/// Why one job of many was refused.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RefusedJob {
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn exit_code(json: serde_json::Value) -> u8 {
        let mut job = serde_json::json!({"id": "00", "state": "failed"});
        for (name, value) in json.as_object().unwrap() {
            job[name] = value.clone();
        }
        serde_json::from_value::<Job>(job).unwrap().exit_code_for_shell()
    }

    #[test]
    fn a_job_ends_as_a_shell_would_say_it() {
        use serde_json::json;
        assert_eq!(exit_code(json!({"state": "succeeded", "exit_code": 0})), 0);
        assert_eq!(exit_code(json!({"exit_code": 3})), 3);
        assert_eq!(exit_code(json!({"exit_code": 127})), 127);
        assert_eq!(exit_code(json!({"signal": 9})), 137);
        assert_eq!(exit_code(json!({"timed_out": true, "signal": 9})), 124);
        assert_eq!(exit_code(json!({"state": "cancelled", "signal": 15})), 130);
        assert_eq!(exit_code(json!({})), 1);
        assert_eq!(exit_code(json!({"exit_code": 0})), 1, "failed is never success");
    }
}
