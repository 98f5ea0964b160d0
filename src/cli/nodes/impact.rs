//! `impact`: what would happen if a node went now, for whoever is about to take it away.

use std::io;

use serde::Deserialize;

use super::super::render::{Printer, Tone, printable};

/// What a node tells of another's importance.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    name: String,
    node: String,
    #[serde(default)]
    state: String,
    safe: bool,
    jobs: Jobs,
    partitions: Partitions,
    records: Records,
    members: Members,
}

#[derive(Debug, Deserialize)]
struct Jobs {
    running: u64,
    stuck: u64,
    #[serde(default)]
    stuck_jobs: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Partitions {
    total: u32,
    owned: u32,
    kept: u32,
    unknown: u32,
}

#[derive(Debug, Deserialize)]
struct Records {
    kept: u64,
    below_majority: u64,
    only_here: u64,
}

#[derive(Debug, Deserialize)]
struct Members {
    alive: u32,
    majority: bool,
}

/// One line for everything that depends on the node, with what would become of it.
pub(super) fn draw(printer: Printer, told: &Told) -> io::Result<()> {
    let (jobs, records, partitions) = (&told.jobs, &told.records, &told.partitions);
    let bad = |count: u64| if count > 0 { Tone::Bad } else { Tone::Good };
    let row =
        |what: &str, count: u64, then: &str, tone| vec![what.to_owned(), count.to_string(), printer.paint(then, tone)];
    let stuck = if jobs.stuck_jobs.is_empty() {
        "every job it runs could run elsewhere".to_owned()
    } else {
        let named: Vec<String> = jobs.stuck_jobs.iter().map(|id| id.chars().take(8).collect()).collect();
        format!("no other node could run them: {}", named.join(", "))
    };
    let mut rows = vec![
        row("jobs running there", jobs.running, "begin another attempt elsewhere", Tone::Plain),
        row("jobs stuck", jobs.stuck, &stuck, bad(jobs.stuck)),
        row("partitions owned", u64::from(partitions.owned), "others take over", Tone::Plain),
        row("partitions kept", u64::from(partitions.kept), "others get copies", Tone::Plain),
        row("records kept", records.kept, "of which:", Tone::Plain),
        row("  below majority", records.below_majority, "too few copies elsewhere", bad(records.below_majority)),
        row("  only there", records.only_here, "no copy is known to be elsewhere", bad(records.only_here)),
    ];
    if partitions.unknown > 0 {
        let then = format!("of {}: nobody who decides for them could be asked", partitions.total);
        rows.push(row("partitions unknown", u64::from(partitions.unknown), &then, Tone::Bad));
    }
    let left = if told.members.majority {
        ("a majority of all members", Tone::Good)
    } else {
        ("no majority: jobs with --on-partition pause stop", Tone::Bad)
    };
    rows.push(row("nodes left alive", u64::from(told.members.alive), left.0, left.1));
    let verdict = if told.safe {
        printer.paint("can go: nothing would be lost, and nothing would wait for it", Tone::Good)
    } else {
        printer.paint("cannot go without harm: drain it first", Tone::Bad)
    };
    printer.line(&format!("{} ({}), {}: {verdict}", printable(&told.name), told.node, told.state))?;
    printer.table(&["IF IT WENT NOW", "COUNT", "THEN"], rows)
}
