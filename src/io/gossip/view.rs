//! What the others last said of themselves.
//!
//! The gossip library shows every start of every node that it still remembers, some incomplete. Out of that this
//! makes one answer per node and address: the facts of the latest start there that has been heard out. Where two
//! processes run with one node's id, there are two; which of them counts is the membership's to decide. A value
//! that cannot be read leaves the last good facts standing, and is complained about once. The library forgets dead
//! nodes after some minutes, and everything when it has to be started anew; facts outlive that by `REMEMBERED`.
//!
//! It also notices what deserves to be handed on at once: a change of the urgent keys, which it sees once per
//! version.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::id::{Generation, NodeId};
use crate::model::member::{Facts, Status};

use super::facts::{self, DecodeFactsError, Keys, URGENT};
use super::guard::Start;

/// How long facts stay that the library no longer shows. As long as it remembers the dead itself.
const REMEMBERED: Duration = super::DEAD_NODE_GRACE;

/// The bits of the library's generation that count our restarts of it; the rest is the node's generation.
pub(super) const EPOCH_BITS: u32 = 20;

/// One start as the library shows it.
pub(super) struct Shown {
    pub(super) start: Start,
    pub(super) version: u64,
    /// The newest version of any urgent key.
    pub(super) urgent: u64,
    /// Its keys, or nothing if they are as they were last time.
    pub(super) keys: Option<Keys>,
}

impl Shown {
    /// What `state` shows, with its keys if `view` has not seen this version of them.
    pub(super) fn of(state: &chitchat::NodeState, view: &View) -> Option<Self> {
        let start = Start::of(state.chitchat_id())?;
        let version = state.max_version();
        let urgent = URGENT.iter().filter_map(|key| state.get_versioned(key)).map(|value| value.version).max();
        let keys = view
            .wants(start, version)
            .then(|| state.key_values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        Some(Self { start, version, urgent: urgent.unwrap_or(0), keys })
    }
}

#[derive(Debug)]
struct Seen {
    /// The latest start at this address, by the library's generation.
    start: Start,
    version: u64,
    urgent: u64,
    /// The last good ones; of an earlier start until the latest is complete.
    facts: Option<Facts>,
    complaint: Option<DecodeFactsError>,
    shown_at: Instant,
}

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Some facts have.
    pub(super) facts: bool,
    /// Some of that should reach everybody soon.
    pub(super) urgent: bool,
    /// These have been silent for so long that they were let go; they may be worth a call now and then.
    pub(super) gone: Vec<SocketAddr>,
}

/// The others, by their own account.
#[derive(Debug, Default)]
pub(super) struct View {
    seen: BTreeMap<(NodeId, SocketAddr), Seen>,
}

impl View {
    fn wants(&self, start: Start, version: u64) -> bool {
        self.seen
            .get(&(start.node, start.addr))
            .is_none_or(|seen| start > seen.start || (start == seen.start && version > seen.version))
    }

    /// Takes in what the library shows.
    pub(super) fn take(&mut self, shown: impl IntoIterator<Item = Shown>, now: Instant) -> Changes {
        let mut changes = Changes::default();
        for Shown { start, version, urgent, keys } in shown {
            let seen = self.seen.entry((start.node, start.addr)).or_insert_with(|| Seen {
                start,
                version: 0,
                urgent: 0,
                facts: None,
                complaint: None,
                shown_at: now,
            });
            seen.shown_at = now;
            if start < seen.start {
                continue;
            }
            if start > seen.start {
                (seen.start, seen.version, seen.urgent) = (start, 0, 0);
            }
            let Some(keys) = keys.filter(|_| version > seen.version) else {
                continue;
            };
            seen.version = version;
            match facts::decode(start.node, Generation(start.generation >> EPOCH_BITS), &keys) {
                Ok(facts) => {
                    changes.urgent |= urgent > seen.urgent;
                    changes.facts |= seen.facts.as_ref() != Some(&facts);
                    seen.urgent = urgent;
                    seen.facts = Some(facts);
                    seen.complaint = None;
                }
                Err(DecodeFactsError::Incomplete(_)) => {}
                Err(error) => {
                    if seen.complaint.as_ref() != Some(&error) {
                        tracing::warn!(node = %start.node, %error, "ignored what a node says of itself");
                        seen.complaint = Some(error);
                    }
                }
            }
        }
        self.seen.retain(|_, seen| {
            let kept = now.duration_since(seen.shown_at) < REMEMBERED;
            if !kept {
                changes.facts |= seen.facts.is_some();
                changes.gone.push(seen.start.addr);
            }
            kept
        });
        changes
    }

    /// The newest facts of every node that has been heard out, at each of its addresses; of one node the earlier
    /// start first.
    pub(super) fn facts(&self) -> Vec<Facts> {
        let mut facts: Vec<Facts> = self.seen.values().filter_map(|seen| seen.facts.clone()).collect();
        facts.sort_by_key(|facts| (facts.node, facts.generation));
        facts
    }

    /// Where those are that can be gossiped with: where each node's latest start is.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let mut latest: BTreeMap<NodeId, &Seen> = BTreeMap::new();
        for seen in self.seen.values() {
            let known = latest.entry(seen.start.node).or_insert(seen);
            if seen.start.generation > known.start.generation {
                *known = seen;
            }
        }
        let left = |seen: &Seen| seen.facts.as_ref().is_some_and(|facts| facts.status == Status::Left);
        latest.values().filter(|seen| !left(seen)).map(|seen| seen.start.addr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::gossip::facts::tests::facts as some_facts;
    use crate::model::id::Incarnation;

    fn addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1_000))
    }

    fn start(generation: u64, epoch: u64) -> Start {
        Start { node: NodeId(1), generation: generation << EPOCH_BITS | epoch, addr: addr() }
    }

    fn shown(start: Start, version: u64, urgent: u64, keys: Keys) -> Shown {
        Shown { start, version, urgent, keys: Some(keys) }
    }

    fn keys(generation: u64) -> Keys {
        facts::encode(&some_facts(1, generation, addr())).unwrap()
    }

    #[test]
    fn the_latest_complete_start_counts() {
        let (mut view, now) = (View::default(), Instant::now());
        let both = [shown(start(5, 0), 6, 3, keys(5)), shown(start(6, 0), 6, 3, keys(6))];
        assert_eq!(view.take(both, now), Changes { facts: true, urgent: true, gone: Vec::new() });
        assert_eq!(view.facts()[0].generation, Generation(6));
        // A later start that has not been heard out does not hide what is known.
        let mut half = keys(7);
        half.pop_last();
        assert!(!view.take([shown(start(7, 0), 3, 3, half)], now).facts);
        assert_eq!(view.facts()[0].generation, Generation(6));
        assert!(view.take([shown(start(7, 0), 9, 3, keys(7))], now).facts);
        assert_eq!(view.facts()[0].generation, Generation(7));
        // The earlier start is still shown, and changes nothing.
        assert_eq!(view.take([shown(start(6, 0), 20, 20, keys(6))], now), Changes::default());
    }

    #[test]
    fn two_starts_at_two_addresses_are_both_told() {
        let (mut view, now) = (View::default(), Instant::now());
        let elsewhere = SocketAddr::from(([127, 0, 0, 1], 999));
        let later = Start { addr: elsewhere, ..start(6, 0) };
        let keys_there = facts::encode(&some_facts(1, 6, elsewhere)).unwrap();
        let both = [shown(start(5, 0), 6, 3, keys(5)), shown(later, 6, 3, keys_there)];
        assert!(view.take(both, now).facts);
        let generations: Vec<u64> = view.facts().iter().map(|facts| facts.generation.0).collect();
        assert_eq!(generations, [5, 6], "the earlier first");
        assert_eq!(view.addresses(), [elsewhere], "the later is called");
    }

    #[test]
    fn what_cannot_be_read_leaves_the_last_good_facts() {
        let (mut view, now) = (View::default(), Instant::now());
        view.take([shown(start(5, 0), 6, 3, keys(5))], now);
        let mut broken = keys(5);
        broken.insert("load".to_owned(), "{".to_owned());
        assert_eq!(view.take([shown(start(5, 0), 7, 3, broken)], now), Changes::default());
        assert_eq!(view.take([shown(start(5, 0), 8, 3, keys(6))], now), Changes::default(), "another generation's");
        assert_eq!(view.facts(), [some_facts(1, 5, addr())]);
    }

    #[test]
    fn an_urgent_change_is_noticed_once() {
        let (mut view, now) = (View::default(), Instant::now());
        view.take([shown(start(5, 0), 6, 3, keys(5))], now);
        let refuted = Facts { incarnation: Incarnation(1), ..some_facts(1, 5, addr()) };
        let keys = facts::encode(&refuted).unwrap();
        assert!(view.take([shown(start(5, 0), 7, 7, keys.clone())], now).urgent);
        assert!(!view.take([shown(start(5, 0), 8, 7, keys)], now).urgent);
    }

    #[test]
    fn a_silent_node_is_let_go_in_the_end() {
        let (mut view, now) = (View::default(), Instant::now());
        view.take([shown(start(5, 0), 6, 3, keys(5))], now);
        assert_eq!(view.take([], now + REMEMBERED / 2), Changes::default());
        let changes = view.take([], now + REMEMBERED);
        assert_eq!(changes, Changes { facts: true, urgent: false, gone: vec![addr()] });
        assert!(view.facts().is_empty());
    }
}
