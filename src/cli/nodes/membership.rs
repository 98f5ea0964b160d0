//! `nodes -o wide`: what one node makes of each member, and why.
//!
//! Who suspects whom and how long the suspect still has, how fast members answer, how far the node trusts its own
//! ears, and its latest verdicts with their reasons.

use std::time::Duration;

use flockwork::model::time::Timestamp;
use serde::Deserialize;

use super::super::render::{Printer, Tone, printable, shortened, span};

/// The latest changes that are shown.
const CHANGES_SHOWN: usize = 10;

/// What a node tells of its members.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    node: String,
    #[serde(default)]
    local_health: u32,
    #[serde(default)]
    withheld_until: Option<Timestamp>,
    #[serde(default)]
    conflict: Option<String>,
    #[serde(default)]
    complaints: Vec<String>,
    members: Vec<Member>,
    #[serde(default)]
    history: Vec<Change>,
}

#[derive(Debug, Deserialize)]
struct Member {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    since: Option<Timestamp>,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    incarnation: u64,
    #[serde(default)]
    cluster_addr: String,
    #[serde(default)]
    round_trip_ms: Option<f64>,
    #[serde(default)]
    clock_skew_ms: Option<i64>,
    #[serde(default)]
    doubt: Option<Doubt>,
}

#[derive(Debug, Deserialize)]
struct Doubt {
    since: Timestamp,
    until: Timestamp,
    #[serde(default)]
    voters: Vec<Name>,
    #[serde(default)]
    silent: bool,
    #[serde(default)]
    refused: bool,
    #[serde(default)]
    remembered: bool,
}

#[derive(Debug, Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
struct Change {
    at: Timestamp,
    #[serde(default)]
    name: String,
    #[serde(default)]
    was: Option<String>,
    #[serde(default)]
    is: Option<String>,
    #[serde(default)]
    reason: String,
}

/// All of it as text.
pub(super) fn drawn(printer: Printer, told: &Told, now: Timestamp) -> String {
    let rows = told.members.iter().map(|member| {
        vec![
            printable(&member.name).into_owned(),
            member.id.clone(),
            printer.paint(&member.state, Tone::of_node(&member.state)),
            member.status.clone(),
            member.since.map(|since| span(now.since(since))).unwrap_or_default(),
            member.generation.to_string(),
            member.incarnation.to_string(),
            member.round_trip_ms.map_or_else(String::new, |ms| format!("{ms:.2}ms")),
            member.clock_skew_ms.map(ahead).unwrap_or_default(),
            member.cluster_addr.clone(),
            member.doubt.as_ref().map(|doubt| doubt.in_words(now)).unwrap_or_default(),
        ]
    });
    let header =
        ["NAME", "ID", "STATE", "STATUS", "FOR", "GENERATION", "INCARNATION", "RTT", "CLOCK", "CLUSTER", "SUSPICION"];
    let mut text = printer.drawn(&header, rows.collect());
    let seer = told.members.iter().find(|member| member.id == told.node);
    let seer = seer.map_or(told.node.as_str(), |member| member.name.as_str());
    text.push_str(&format!(
        "\n\nas {} sees it; its local health is {} (0 is well)",
        printable(seer),
        told.local_health
    ));
    if let Some(until) = told.withheld_until {
        text.push_str(&format!("; it was paused, and gives no verdict for another {}", span(until.since(now))));
    }
    for wrong in told.conflict.iter().chain(&told.complaints) {
        text.push_str(&format!("\n{}", printer.paint(&printable(wrong), Tone::Bad)));
    }
    let changes = told.history.iter().rev().take(CHANGES_SHOWN).map(|change| {
        vec![
            format!("{} ago", span(now.since(change.at))),
            printable(&change.name).into_owned(),
            change.was.clone().unwrap_or_else(|| "unknown".to_owned()),
            change.is.clone().unwrap_or_else(|| "forgotten".to_owned()),
            shortened(&change.reason, 80),
        ]
    });
    let changes: Vec<Vec<String>> = changes.collect();
    if !changes.is_empty() {
        text.push_str(&format!("\n\n{}", printer.drawn(&["CHANGE", "NAME", "FROM", "TO", "WHY"], changes)));
    }
    text
}

/// How far a clock is ahead, with its sign.
fn ahead(skew_ms: i64) -> String {
    let sign = if skew_ms < 0 { '-' } else { '+' };
    match skew_ms.unsigned_abs() {
        small @ 0..1_000 => format!("{sign}{small}ms"),
        large => format!("{sign}{}", span(Duration::from_secs(large.saturating_add(500) / 1_000))),
    }
}

impl Doubt {
    fn in_words(&self, now: Timestamp) -> String {
        let voters: Vec<&str> = self.voters.iter().map(|voter| voter.name.as_str()).collect();
        let by = match voters.as_slice() {
            [] if self.remembered => "known from an earlier start".to_owned(),
            [] => "nobody votes".to_owned(),
            voters => format!("by {}", shortened(&voters.join(", "), 60)),
        };
        let probe = match (self.silent, self.refused) {
            (_, true) => "refuses connections",
            (true, false) => "does not answer this node",
            (false, false) => "not yet found silent by this node",
        };
        format!("for {}, until in {}; {by}; {probe}", span(now.since(self.since)), span(self.until.since(now)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::render::OutputForm;
    use super::*;

    #[test]
    fn a_suspicion_names_its_voters_and_its_end() {
        let now = Timestamp(1_700_000_000_000);
        let told = json!({
            "node": "0000000a",
            "local_health": 2,
            "complaints": ["two processes run as one"],
            "members": [
                {"id": "0000000a", "name": "here", "state": "alive"},
                {"id": "0000000b", "name": "there", "state": "suspect", "incarnation": 7, "round_trip_ms": 0.514, "clock_skew_ms": -7_200_001,
                 "doubt": {"since": Timestamp(now.unix_ms() - 2_000), "until": now + Duration::from_secs(3),
                           "voters": [{"node": "0000000a", "name": "here"}], "silent": true}},
            ],
            "history": [{"at": Timestamp(now.unix_ms() - 2_000), "name": "there", "was": "alive", "is": "suspect",
                         "reason": "does not answer"}],
        });
        let text = drawn(Printer::plain(OutputForm::Wide), &serde_json::from_value(told).unwrap(), now);
        for part in [
            "0.51ms",
            "-2h00m",
            "for 2.0s, until in 3.0s; by here; does not answer this node",
            "as here sees it; its local health is 2",
            "two processes run as one",
            "2.0s ago",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
}
