//! The demo's work: small real computations whose results are known, and a ledger of what really ran.
//!
//! Each job is a shell loop that steps a generator of pseudo-random numbers. Its result is computed here as
//! well, so that every output can be checked. Each attempt also writes a line when it begins and one when it is
//! done into a file that flockwork knows nothing of; the ledger is therefore a witness of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flockwork::model::spec::Spec;

/// How far each generator is stepped: a few hundredths of a second of a shell's time.
const STEPS: u64 = 10_000;

/// Arguments: seed, steps, pause, ledger.
const SCRIPT: &str = r#"echo "begin $FLOCKWORK_ATTEMPT $FLOCKWORK_NODE" >> "$4"
i=0 x=$1
while [ "$i" -lt "$2" ]; do i=$((i + 1)); x=$(((x * 1103515245 + 12345 + i) % 2147483648)); done
sleep "$3"
echo "done $FLOCKWORK_ATTEMPT $FLOCKWORK_NODE" >> "$4"
echo "$x""#;

/// One of the demo's jobs.
#[derive(Debug, Clone)]
pub(super) struct Work {
    number: u64,
    ledger: PathBuf,
}

impl Work {
    pub(super) fn new(number: usize, folder: &Path) -> Self {
        Self { number: number as u64, ledger: folder.join(format!("{number}")) }
    }

    /// Between half a second and two seconds.
    fn pause(&self) -> Duration {
        Duration::from_millis(500 + self.number * 7_919 % 1_500)
    }

    pub(super) fn spec(&self) -> Spec {
        let words = [
            "sh".to_owned(),
            "-c".to_owned(),
            SCRIPT.to_owned(),
            "demo".to_owned(),
            self.number.to_string(),
            STEPS.to_string(),
            self.pause().as_secs_f64().to_string(),
            self.ledger.display().to_string(),
        ];
        Spec { command: words.into(), name: Some(format!("demo-{}", self.number)), ..Spec::default() }
    }

    /// What it must write.
    pub(super) fn expected_output(&self) -> String {
        let step = |x: u64, i: u64| (x * 1_103_515_245 + 12_345 + i) % 2_147_483_648;
        format!("{}\n", (1..=STEPS).fold(self.number, step))
    }

    /// What the ledger says of it.
    pub(super) fn witnessed(&self) -> std::io::Result<Witnessed> {
        let text = match std::fs::read_to_string(&self.ledger) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let count = |word: &str| text.lines().filter(|line| line.split(' ').next() == Some(word)).count();
        Ok(Witnessed { begun: count("begin"), done: count("done") })
    }
}

/// How often a job really began, and was really done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witnessed {
    pub(super) begun: usize,
    pub(super) done: usize,
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_computes_what_is_expected_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(3, folder.path());
        assert_eq!(work.witnessed().unwrap(), Witnessed { begun: 0, done: 0 });
        let mut words = work.spec().command;
        words[6] = "0".to_owned();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .env("FLOCKWORK_ATTEMPT", "1")
            .env("FLOCKWORK_NODE", "n1")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), work.expected_output());
        assert_eq!(work.witnessed().unwrap(), Witnessed { begun: 1, done: 1 });
        assert_ne!(work.expected_output(), Work::new(4, folder.path()).expected_output());
    }
}
