//! Every setting of a node, what it is for, and what turning it costs.
//!
//! Users choose a [`Profile`] and seldom more. The fine settings under it ([`Timing`]) are there for those
//! who measure; their relations are checked once, by [`Config::validate`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::member::ClusterSettings;
use super::resources::Resources;
use super::spec::{Driver, InvalidField};

/// How far apart the nodes are. Sets every timing at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// All on one machine: the fastest verdicts.
    Local,
    /// One network, round trips of a millisecond or so.
    #[default]
    Lan,
    /// Across the internet: patient.
    Wan,
}

/// A longer timing is a mistake in its unit.
const LONGEST_TIMING: Duration = Duration::from_secs(3_600);

/// When things are due. All of it follows from the profile unless set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// How often a node may tell some others what is new about itself (news that cannot wait, such as a suspicion, is
    /// told at once), and four of these make a round in which it compares all facts with some others. Raising it lets
    /// load figures grow stale, and gossip that was lost stay lost for longer; lowering it costs processor time and
    /// traffic, idle or not.
    #[serde(with = "super::time::duration")]
    pub gossip_interval: Duration,
    /// How often one member is probed (SWIM's protocol period). Raising it delays the first suspicion of a death, by
    /// as much again as it was raised; lowering it costs a datagram each way and a wake-up on both sides, and leaves
    /// less time for the others' help, since it must stay longer than `probe_timeout`.
    #[serde(with = "super::time::duration")]
    pub probe_interval: Duration,
    /// How long a direct probe may go unanswered before others are asked to probe too. Raising it delays every
    /// suspicion; lowering it below a few round trips asks others in vain, which costs up to ten packets a time.
    /// Members that were measured to be slower are given longer in any case.
    #[serde(with = "super::time::duration")]
    pub probe_timeout: Duration,
    /// The shortest grace period of a suspicion that many confirm. Raising it moves lost work later; lowering it
    /// condemns more nodes that were only slow, since a refutation needs time to spread.
    #[serde(with = "super::time::duration")]
    pub suspicion_min: Duration,
    /// The grace period of a suspicion that nobody confirms; at least `suspicion_min`. Raising it delays verdicts in
    /// very small clusters, where nobody is left to confirm, and the start of a node whose known members are all gone;
    /// lowering it gives a node that is cut off, or slow itself, less time to doubt itself.
    #[serde(with = "super::time::duration")]
    pub suspicion_max: Duration,
    /// The grace period where the member's own machine refuses connections: its process is gone, and only a
    /// quick restart would make the suspicion wrong. Raising it moves the work of a crashed process later; lowering it
    /// makes every quick restart look like a death, and its work move.
    #[serde(with = "super::time::duration")]
    pub suspicion_refused: Duration,
    /// How long a starting node with seeds looks for them before it serves alone. Raising it delays the first node of
    /// a cluster; lowering it lets a node whose network comes up late serve by itself, until it finds the others.
    #[serde(with = "super::time::duration")]
    pub join_grace: Duration,
    /// How long a node may be away before what it holds is copied to those who act in its place. Until then they get only
    /// what is written, as long as a majority of its partitions' replicas is there. Raising it leaves one copy fewer for
    /// longer; lowering it below the time of a restart has every restart move what the node holds there and back.
    #[serde(with = "super::time::duration")]
    pub repair_after: Duration,
    /// How often two replicas compare what they hold. Raising it lets copies differ for longer after losses; lowering
    /// it costs 18 bytes a shared partition each time.
    #[serde(with = "super::time::duration")]
    pub compare_interval: Duration,
    /// How long an unanswered message to a peer is given before it is sent again, or elsewhere. Raising it slows every
    /// recovery from loss; lowering it below a usual answer, a disk's sync included, sends everything twice.
    #[serde(with = "super::time::duration")]
    pub resend_after: Duration,
    /// How long a submit waits for its copies before it is accepted with fewer. Raising it lets clients wait while
    /// replicas are silent; lowering it accepts more jobs with fewer copies than asked for.
    #[serde(with = "super::time::duration")]
    pub acknowledge_within: Duration,
}

impl Timing {
    /// The timings of `profile`.
    pub fn of(profile: Profile) -> Self {
        let ms = Duration::from_millis;
        match profile {
            Profile::Local => Self {
                gossip_interval: ms(200),
                probe_interval: ms(250),
                probe_timeout: ms(100),
                suspicion_min: ms(600),
                suspicion_max: ms(3_000),
                suspicion_refused: ms(400),
                join_grace: ms(2_000),
                repair_after: ms(10_000),
                compare_interval: ms(2_000),
                resend_after: ms(300),
                acknowledge_within: ms(2_000),
            },
            Profile::Lan => Self {
                gossip_interval: ms(250),
                probe_interval: ms(400),
                probe_timeout: ms(150),
                suspicion_min: ms(900),
                suspicion_max: ms(5_000),
                suspicion_refused: ms(500),
                join_grace: ms(3_000),
                repair_after: ms(60_000),
                compare_interval: ms(3_000),
                resend_after: ms(400),
                acknowledge_within: ms(2_000),
            },
            Profile::Wan => Self {
                gossip_interval: ms(500),
                probe_interval: ms(1_500),
                probe_timeout: ms(700),
                suspicion_min: ms(4_000),
                suspicion_max: ms(20_000),
                suspicion_refused: ms(2_500),
                join_grace: ms(8_000),
                repair_after: ms(180_000),
                compare_interval: ms(8_000),
                resend_after: ms(1_500),
                acknowledge_within: ms(3_000),
            },
        }
    }

    fn all(&self) -> [(&'static str, Duration); 11] {
        [
            ("gossip_interval", self.gossip_interval),
            ("probe_interval", self.probe_interval),
            ("probe_timeout", self.probe_timeout),
            ("suspicion_min", self.suspicion_min),
            ("suspicion_max", self.suspicion_max),
            ("suspicion_refused", self.suspicion_refused),
            ("join_grace", self.join_grace),
            ("repair_after", self.repair_after),
            ("compare_interval", self.compare_interval),
            ("resend_after", self.resend_after),
            ("acknowledge_within", self.acknowledge_within),
        ]
    }

    fn validate(&self) -> Result<(), InvalidField> {
        let wrong = |field: &str, message: &str| Err(InvalidField::new(format!("timing.{field}"), message));
        let too_long = self.all().into_iter().find(|(_, timing)| *timing > LONGEST_TIMING);
        if let Some((field, _)) = too_long {
            return wrong(field, "must be at most an hour");
        }
        if self.gossip_interval < Duration::from_millis(20) {
            return wrong("gossip_interval", "must be at least 20ms");
        }
        if self.probe_timeout.is_zero() || self.probe_timeout >= self.probe_interval {
            return wrong("probe_timeout", "must be longer than zero and shorter than probe_interval");
        }
        if self.suspicion_min < self.probe_timeout {
            return wrong("suspicion_min", "must be at least probe_timeout, or nobody could refute in time");
        }
        if self.suspicion_min < self.gossip_interval {
            return wrong(
                "suspicion_min",
                "must be at least gossip_interval, or nobody would hear of a refutation in time",
            );
        }
        if self.suspicion_max < self.suspicion_min {
            return wrong("suspicion_max", "must be at least suspicion_min");
        }
        if self.suspicion_refused > self.suspicion_max {
            return wrong("suspicion_refused", "must be at most suspicion_max");
        }
        if self.join_grace < self.gossip_interval {
            return wrong("join_grace", "must be at least gossip_interval, or no seed could answer in time");
        }
        if self.compare_interval.is_zero() {
            return wrong("compare_interval", "must be longer than zero");
        }
        if self.resend_after.is_zero() {
            return wrong("resend_after", "must be longer than zero");
        }
        if self.acknowledge_within < self.resend_after {
            return wrong("acknowledge_within", "must be at least resend_after");
        }
        Ok(())
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::of(Profile::default())
    }
}

/// What a node needs to know to take part, apart from where its sockets and files are.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What the whole cluster shares.
    pub cluster: ClusterSettings,
    /// When things are due.
    pub timing: Timing,
    /// What this node has for jobs.
    pub capacity: Resources,
    /// Its share of the ring.
    pub weight: u16,
    /// What jobs can ask for by `require`.
    pub labels: BTreeMap<String, String>,
    /// What it can run.
    pub drivers: BTreeSet<Driver>,
    /// How long finished jobs are kept, counted from their seal and rounded to the hour. Raising it costs disk and
    /// memory for every job; lowering it, that people find less, and that a key is free again sooner. It may be shorter
    /// than `forget_after`, down to ten minutes: a job is sealed when nobody who may know more of it is left to ask, so that no
    /// copy of it can begin again, and what is sealed without somebody absent is kept for longer (see
    /// `protocol/peer/sealing.rs`). A node that missed the seal alone, and all of the retention after it, brings back a job
    /// that has ended; it is shown until it is sealed and expires once more.
    pub retention: Duration,
}

/// How long finished jobs are kept unless set.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(7 * 24 * 3_600);

/// No message, and no question of a client, is on its way for so long.
pub const SHORTEST_RETENTION: Duration = Duration::from_secs(600);

/// The ring share of the largest machines: more would only make the ring longer.
pub const MAX_WEIGHT: u16 = 64;

impl Config {
    /// The usual settings for a machine that has `capacity` for jobs, in a cluster of the default name. Its share
    /// of the ring follows from its processors.
    pub fn new(profile: Profile, capacity: Resources) -> Self {
        let cpus = capacity.cpus.millis.div_ceil(1_000);
        Self {
            cluster: ClusterSettings::default(),
            timing: Timing::of(profile),
            capacity,
            weight: u16::try_from(cpus).unwrap_or(MAX_WEIGHT).clamp(1, MAX_WEIGHT),
            labels: BTreeMap::new(),
            drivers: BTreeSet::from([Driver::Process]),
            retention: DEFAULT_RETENTION,
        }
    }

    /// Checks the settings and their relations.
    ///
    /// # Errors
    /// The first setting that cannot be what it is, and what would be right.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let wrong = |field: &str, message: &str| Err(InvalidField::new(field, message));
        let name = &self.cluster.name;
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return wrong("cluster", "must have 1 to 64 visible ASCII characters");
        }
        if !self.cluster.partitions.is_power_of_two() || self.cluster.partitions > 1 << 14 {
            return wrong("partitions", "must be a power of two, at most 16384");
        }
        if !(1..=15).contains(&self.cluster.replicas) {
            return wrong("replicas", "must be from 1 to 15");
        }
        if self.cluster.forget_after < self.timing.suspicion_max {
            return wrong("forget_after", "must be at least timing.suspicion_max");
        }
        if self.retention < SHORTEST_RETENTION {
            return wrong(
                "retention",
                "must be at least 10m, or a copy that is still on its way would find the job gone",
            );
        }
        if self.retention > super::spec::MAX_DURATION {
            return wrong("retention", "must be at most a hundred years");
        }
        if self.capacity.slots == 0 {
            return wrong("slots", "must be 1 or more");
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return wrong("weight", "must be from 1 to 64");
        }
        let fits = |text: &String| !text.is_empty() && text.len() <= 128;
        if self.labels.len() > 16 || self.labels.iter().any(|(name, value)| !fits(name) || value.len() > 128) {
            return wrong("label", "at most 16 labels, names of 1 to 128 bytes, values of up to 128");
        }
        self.timing.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_keeps_its_own_rules() {
        for profile in [Profile::Local, Profile::Lan, Profile::Wan] {
            assert_eq!(Timing::of(profile).validate(), Ok(()));
        }
    }

    #[test]
    fn a_contradiction_names_the_setting() {
        let ms = Duration::from_millis;
        let lan = Timing::of(Profile::Lan);
        type Change = fn(&mut Timing, Duration);
        let table: &[(&str, Change, Duration, Duration)] = &[
            // The setting to blame, what is set, to what it cannot be set, and to what it just can.
            ("gossip_interval", |t, to| t.gossip_interval = to, ms(19), ms(20)),
            ("probe_timeout", |t, to| t.probe_timeout = to, ms(0), ms(1)),
            ("probe_timeout", |t, to| t.probe_timeout = to, lan.probe_interval, lan.probe_interval - ms(1)),
            ("probe_timeout", |t, to| t.probe_interval = to, lan.probe_timeout, lan.probe_timeout + ms(1)),
            ("suspicion_min", |t, to| (t.suspicion_min, t.gossip_interval) = (to, to - to / 8), ms(149), ms(150)),
            ("suspicion_min", |t, to| t.suspicion_min = to, ms(249), ms(250)),
            ("suspicion_max", |t, to| t.suspicion_max = to, ms(899), ms(900)),
            ("suspicion_refused", |t, to| t.suspicion_refused = to, ms(5_001), ms(5_000)),
            ("join_grace", |t, to| t.join_grace = to, ms(249), ms(250)),
            ("compare_interval", |t, to| t.compare_interval = to, ms(0), ms(1)),
            ("resend_after", |t, to| t.resend_after = to, ms(0), ms(1)),
            ("acknowledge_within", |t, to| t.acknowledge_within = to, ms(399), ms(400)),
            ("suspicion_max", |t, to| t.suspicion_max = to, ms(3_600_001), ms(3_600_000)),
            ("repair_after", |t, to| t.repair_after = to, ms(3_600_001), ms(0)),
        ];
        for (field, change, wrong, right) in table {
            let with = |to: Duration| {
                let mut config = Config::new(Profile::Lan, Resources { slots: 1, ..Resources::default() });
                config.cluster.forget_after = Duration::from_secs(24 * 3_600);
                change(&mut config.timing, to);
                config.validate().map_err(|refused| refused.field)
            };
            assert_eq!(with(*wrong), Err(format!("timing.{field}")), "at {wrong:?}");
            assert_eq!(with(*right), Ok(()), "{field} at {right:?}");
        }
    }

    #[test]
    fn what_the_cluster_shares_and_what_a_node_has_is_checked_too() {
        type Change = fn(&mut Config);
        let table: &[(&str, Change)] = &[
            ("cluster", |config| config.cluster.name.clear()),
            ("partitions", |config| config.cluster.partitions = 3),
            ("replicas", |config| config.cluster.replicas = 0),
            ("forget_after", |config| config.cluster.forget_after = Duration::from_millis(1)),
            ("retention", |config| config.retention = Duration::MAX),
            ("retention", |config| config.retention = SHORTEST_RETENTION - Duration::from_secs(1)),
            ("slots", |config| config.capacity.slots = 0),
            ("weight", |config| config.weight = MAX_WEIGHT + 1),
            ("label", |config| drop(config.labels.insert(String::new(), String::new()))),
        ];
        for (field, change) in table {
            let mut config = Config::new(Profile::Lan, Resources { slots: 1, ..Resources::default() });
            assert_eq!(config.validate(), Ok(()));
            change(&mut config);
            assert_eq!(config.validate().map_err(|refused| refused.field), Err((*field).to_owned()));
        }
    }
}
