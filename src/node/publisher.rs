//! The way from the driver to gossip, which may be busy: the newest facts are published, one after the other and
//! never out of order; those that were overtaken while gossip was busy are passed over.

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::io::gossip::Gossip;
use crate::model::member::Facts;

/// Publishes this node's facts.
#[derive(Debug)]
pub(super) struct Publisher {
    newest: watch::Sender<Edition>,
    /// The number of the last edition that was published.
    published: watch::Receiver<u64>,
}

#[derive(Debug, Default, Clone)]
struct Edition {
    number: u64,
    /// The number of the last one that was urgent.
    urgent: u64,
    facts: Option<Facts>,
}

impl Publisher {
    pub(super) fn start(gossip: Gossip, tracker: &TaskTracker) -> Self {
        let (newest, to_publish) = watch::channel(Edition::default());
        let (done, published) = watch::channel(0);
        tracker.spawn(publish_all(gossip, to_publish, done));
        Self { newest, published }
    }

    /// Publishes `facts` as soon as gossip takes them. If `urgent`, some others hear of them at once.
    pub(super) fn publish(&self, facts: Facts, urgent: bool) {
        self.newest.send_modify(|edition| {
            edition.number += 1;
            edition.urgent = if urgent { edition.number } else { edition.urgent };
            edition.facts = Some(facts);
        });
    }

    /// Waits until all that was to be published is, or cannot be.
    pub(super) async fn has_published(&mut self) {
        let number = self.newest.borrow().number;
        // The task goes on for as long as this is there, unless the runtime ends, and then nobody waits.
        let _ = self.published.wait_for(|published| *published >= number).await;
    }
}

async fn publish_all(gossip: Gossip, mut newest: watch::Receiver<Edition>, done: watch::Sender<u64>) {
    let mut last = 0;
    while newest.changed().await.is_ok() {
        let Edition { number, urgent, facts } = newest.borrow_and_update().clone();
        if let Some(facts) = facts
            && let Err(error) = gossip.publish(&facts, urgent > last).await
        {
            tracing::warn!(%error, "this node's facts cannot be gossiped");
        }
        last = number;
        done.send_replace(number);
    }
}
