//! Planted bugs: proof that the simulator's checkers can fail.
//!
//! A checker that has never found anything may be one that cannot. So there are places in the protocol where the
//! simulator can break one rule in one well-known way, and every one of these bugs must be caught by a checker
//! within a few seeds: `cargo run --release --features sabotage --example simulate -- --sabotage` makes the table
//! that is in `docs/promises.md`.
//!
//! Without the feature `sabotage`, [`Sabotage`] is an empty value that answers no to everything, and the compiler
//! leaves nothing of it in the program. Bugs that are not the Peer's, but a driver's or a store's, are in this list
//! too and are planted in the simulated world itself.

/// A rule to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// An owner and its replicas say that a record is stored before it is synced.
    AcknowledgeBeforeSync,
    /// A receipt counts the copies that were sent, not those that are stored.
    AcknowledgeWithTooFew,
    /// Nodes never compare what they hold, but for taking over.
    SkipAntiEntropy,
    /// A record that comes in replaces the one that is held.
    LastWriterWins,
    /// A node decides for a partition as soon as its ring names it.
    ActBeforeComparing,
    /// A node that was paused goes on as if nothing had happened.
    TrustViewAfterPause,
    /// Records are kept where they no longer belong.
    KeepStrays,
    /// A node that need not have a record lets go of it when few others are to keep one.
    LetGoTooSoon,
    /// A pod starts before other nodes hold its claim.
    StartBeforeReplicated,
    /// Finished records are dropped before they are sealed.
    DropBeforeSealed,
    /// The owner seals what it believes finished, and asks nobody.
    SealWithoutAsking,
    /// Sealed records are dropped long before their hour.
    ExpireTooEarly,
    /// A node starts with the generation of its last start, and counts its writes from one again.
    ReuseCounters,
    /// The owner places a job although somebody asked that it end.
    IgnoreStop,
    /// The owner allows one failure more than the retries.
    MiscountFailures,
    /// The owner does not count lost attempts against their limit.
    MiscountLosses,
    /// The owner does not write off attempts whose executor is gone.
    IgnoreDeaths,
    /// Every submit under a key is a job of its own.
    ForgetKeys,
    /// An executor takes jobs for which it has no room.
    ClaimWithoutRoom,
    /// What a superseded attempt says of its end is not written down.
    SwallowLateReports,
    /// An executor starts a pod whenever it is told to, started or not.
    StartTwice,
    /// A node that leaves hands nothing over.
    LeaveWithoutHandover,
    /// The saved work of a record that comes in replaces what is known.
    TakeOlderWork,
    /// An attempt begins anew although work was saved for it.
    BeginAnew,
    /// What must not run twice begins without giving another side of a partition the time to end it.
    BeginBesideOthers,
}

impl Bug {
    /// Every one, in the order of the table.
    pub const ALL: [Self; 25] = [
        Self::AcknowledgeBeforeSync,
        Self::AcknowledgeWithTooFew,
        Self::SkipAntiEntropy,
        Self::LastWriterWins,
        Self::ActBeforeComparing,
        Self::TrustViewAfterPause,
        Self::KeepStrays,
        Self::LetGoTooSoon,
        Self::StartBeforeReplicated,
        Self::DropBeforeSealed,
        Self::SealWithoutAsking,
        Self::ExpireTooEarly,
        Self::ReuseCounters,
        Self::IgnoreStop,
        Self::MiscountFailures,
        Self::MiscountLosses,
        Self::IgnoreDeaths,
        Self::ForgetKeys,
        Self::ClaimWithoutRoom,
        Self::SwallowLateReports,
        Self::StartTwice,
        Self::LeaveWithoutHandover,
        Self::TakeOlderWork,
        Self::BeginAnew,
        Self::BeginBesideOthers,
    ];
}

/// The rule that a Peer breaks, if any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sabotage {
    #[cfg(feature = "sabotage")]
    planted: Option<Bug>,
}

impl Sabotage {
    /// Breaks one rule, or none.
    #[cfg(feature = "sabotage")]
    pub fn new(planted: Option<Bug>) -> Self {
        Self { planted }
    }

    /// Whether this rule is broken.
    #[cfg(feature = "sabotage")]
    pub fn has(self, bug: Bug) -> bool {
        self.planted == Some(bug)
    }

    /// Whether this rule is broken: never.
    #[cfg(not(feature = "sabotage"))]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}
