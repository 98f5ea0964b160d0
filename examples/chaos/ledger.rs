//! What the jobs themselves say: each writes a line when it starts, while it runs, and when it ends.
//!
//! The lines go into one file for each node, outside of flockwork, in one write each, with the machine's time since
//! its start. So what ran, where and when is known without asking the cluster.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

/// What a job runs: `$1` is its key, `$2` how many times half a second it lasts. The clock is one that the shell
/// reads by itself; starting a program for it would cost more than the job.
pub const SCRIPT: &str = r#"
note() {
    read -r now _ < /proc/uptime
    echo "$1 $key $FLOCKWORK_ATTEMPT $now" >> "$LEDGER/$FLOCKWORK_NODE"
}
key=$1 turns=$2
note start
while [ "$turns" -gt 0 ]; do
    sleep 0.5
    note alive
    turns=$((turns - 1))
done
echo "done $key"
note end
"#;

/// The time by the same clock, in seconds.
pub fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|now| now.parse().ok()).unwrap_or(f64::NAN)
}

/// One execution.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The node, by name.
    pub node: String,
    pub number: u64,
    pub from: f64,
    /// When it was last seen alive.
    pub until: f64,
    /// It came to its end.
    pub has_ended: bool,
    /// More than one process said that it is this attempt: that must never be.
    pub starts: usize,
}

/// All executions of each job, by its key.
pub fn read(dir: &Path) -> anyhow::Result<BTreeMap<String, Vec<Run>>> {
    let mut jobs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).context("the ledger")? {
        let path = entry?.path();
        let node = path.file_name().and_then(|name| name.to_str()).context("a name in the ledger")?.to_owned();
        let text = std::fs::read_to_string(&path)?;
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut next = || words.next().with_context(|| format!("a line of the ledger of {node}: {line:?}"));
            let (what, key) = (next()?, next()?.to_owned());
            let (number, at): (u64, f64) = (next()?.parse()?, next()?.parse()?);
            let runs = jobs.entry(key).or_default();
            let known = runs.iter().position(|run| run.node == node && run.number == number);
            let place = known.unwrap_or_else(|| {
                let run = Run { node: node.clone(), number, from: at, until: at, has_ended: false, starts: 0 };
                runs.push(run);
                runs.len() - 1
            });
            let run = &mut runs[place];
            run.until = run.until.max(at);
            run.starts += usize::from(what == "start");
            run.has_ended |= what == "end";
        }
    }
    Ok(jobs)
}
