//! The node that a client talks to: finds who can answer, asks, asks elsewhere, gathers.
//!
//! A client's [`Ask`] becomes one or more questions, each to one node: the owner of the job's partition
//! first, the next of the acting list if that one is silent. Asking again is always safe: a submit carries
//! its ids, so it makes the same jobs wherever and however often it arrives. The gateway gives every ask a
//! deadline, after which the client is told honestly what is not known.
//!
//! Not known here: records. A question to this node itself leaves and returns like any other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::model::id::{Generation, JobId, JobIdPrefix, NodeId, Partition};
use crate::model::member::{MemberState, PartitionSet, View};
use crate::model::record::{Record, Submission, Version};
use crate::model::request::{
    Code, Cursor, Dependents, Draft, Event, EventKind, Explanation, Filter, JobAnswer, NewJob, Refusal, Request,
    Response, SubmitOutcome, Submitted,
};
use crate::model::ring::Placement;
use crate::model::time::{Moment, Now, Timestamp};

use super::numbers::Numbers;
use super::records::cursor_of;
use super::sabotage::{Bug, Sabotage};

/// Names a client's question inside this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What a client of this node may ask.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Submit jobs.
    Submit(Vec<Draft>),
    /// Read a job.
    Job(JobIdPrefix),
    /// Read a job as soon as it differs from a version, or after the duration.
    Watch(JobId, Option<Version>, Duration),
    /// Cancel a job, with the reason.
    Cancel(JobIdPrefix, String),
    /// Explain a job.
    Explain(JobIdPrefix),
    /// List jobs: which, after which, how many.
    List(Filter, Option<Cursor>, u32),
    /// Every replica's own copy of a record.
    Copies(JobIdPrefix),
    /// What depends on a node.
    Dependents(NodeId),
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// To which.
    pub ask: AskId,
    /// What.
    pub result: Result<Told, Refusal>,
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// To [`Ask::Submit`], one outcome for each draft in order.
    Submitted(Vec<Result<Submitted, Refusal>>),
    /// To [`Ask::Job`], [`Ask::Watch`] and [`Ask::Cancel`].
    Job(JobAnswer),
    /// To [`Ask::Explain`].
    Explanation(Explanation),
    /// To [`Ask::List`].
    Listing(Listing),
    /// To [`Ask::Copies`].
    Copies(Vec<Copy>),
    /// To [`Ask::Dependents`].
    Dependents(Dependents),
}

/// A page of the list of all jobs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// The records, newest first.
    pub records: Vec<Arc<Record>>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
    /// Nodes that should have answered for some partitions, and did not; nobody else could. The list is
    /// partial if there are any.
    pub missing: Vec<NodeId>,
}

/// A node's own copy of a record, or why it is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// Whose.
    pub node: NodeId,
    /// `Ok(None)`: it has none.
    pub record: Result<Option<Arc<Record>>, Refusal>,
}

/// How long a submit may take in all, its copies included.
const SUBMIT_WITHIN: Duration = Duration::from_secs(10);
/// How long any other ask may take, besides the patience that it asks for itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// How long the parts of a list, or of a record's copies, are waited for.
const GATHER_WITHIN: Duration = Duration::from_secs(3);
/// How long one question of a watch may stay open before it is asked anew, perhaps elsewhere.
const WATCH_LEG: Duration = Duration::from_secs(5);
/// How soon a node that did not decide yet is asked again.
const NOT_OWNER_PAUSE: Duration = Duration::from_millis(40);
/// Jobs in one question, at the most: an owner's answer must fit one frame.
const SUBMIT_CHUNK: usize = 2_000;

/// What the gateway needs to know to find somebody.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// This node.
    pub me: NodeId,
    /// The members.
    pub view: &'a View,
    /// The ring.
    pub placement: &'a Placement,
}

/// Asks under way.
#[derive(Debug)]
pub struct Gateway {
    resend_after: Duration,
    acknowledge_within: Duration,
    calls: Numbers,
    /// When the newest submits under keys were said to be made; those of this millisecond, and hardly more.
    submitted_at: BTreeMap<JobId, Timestamp>,
    asks: BTreeMap<AskId, OpenAsk>,
    deadlines: BTreeSet<(Moment, AskId)>,
    questions: BTreeMap<u64, Question>,
    resends: BTreeSet<(Moment, u64)>,
    to_ask: VecDeque<(NodeId, u64, Request)>,
    replies: VecDeque<Reply>,
    listening: Option<BTreeMap<NodeId, Listening>>,
    heard: VecDeque<(NodeId, Event)>,
    sabotage: Sabotage,
}

/// One question to one node at a time.
#[derive(Debug)]
struct Question {
    about: About,
    /// Who is asked now.
    asked: NodeId,
    /// Who did not answer.
    silent: BTreeSet<NodeId>,
    resend_at: Moment,
}

#[derive(Debug)]
enum About {
    /// These drafts, by their place in the ask.
    Submit { ask: AskId, jobs: Vec<(usize, NewJob)> },
    /// A job, for any ask that concerns one.
    Job { ask: AskId, partition: Partition },
    /// These partitions' part of a list.
    List { ask: AskId, partitions: PartitionSet },
    /// The asked node's own copy.
    Copy { ask: AskId },
    /// What depends on a node, in the asked node's partitions.
    Dependents { ask: AskId },
    /// The asked node's events.
    Events,
}

#[derive(Debug)]
struct OpenAsk {
    deadline: Moment,
    gathering: Gathering,
}

/// What has come together so far.
#[derive(Debug)]
enum Gathering {
    Submit {
        outcomes: Vec<Option<Result<Submitted, Refusal>>>,
    },
    Job {
        request: JobRequest,
    },
    List {
        filter: Filter,
        after: Option<Cursor>,
        limit: u32,
        open: usize,
        records: Vec<Arc<Record>>,
        more: bool,
        missing: BTreeSet<NodeId>,
    },
    Copies {
        open: usize,
        copies: Vec<Copy>,
    },
    Dependents {
        open: usize,
        gathered: Dependents,
    },
}

/// An ask about one job.
#[derive(Debug, Clone)]
enum JobRequest {
    Read(JobIdPrefix),
    Watch { job: JobId, known: Option<Version>, until: Moment },
    Cancel(JobIdPrefix, String),
    Explain(JobIdPrefix),
}

impl JobRequest {
    fn prefix(&self) -> JobIdPrefix {
        match self {
            Self::Read(prefix) | Self::Cancel(prefix, _) | Self::Explain(prefix) => *prefix,
            Self::Watch { job, .. } => JobIdPrefix::from(*job),
        }
    }

    /// The question, and how long its answer may take.
    fn question(&self, now: Moment) -> (Request, Duration) {
        match self {
            Self::Read(prefix) => (Request::Job(*prefix), Duration::ZERO),
            Self::Watch { job, known, until } => {
                let patience = until.since(now).min(WATCH_LEG);
                (Request::Watch { job: *job, known: *known, patience }, patience)
            }
            Self::Cancel(prefix, reason) => (Request::Cancel { job: *prefix, reason: reason.clone() }, Duration::ZERO),
            Self::Explain(prefix) => (Request::Explain(*prefix), Duration::ZERO),
        }
    }
}

/// What is heard of one node's events.
#[derive(Debug, Default)]
struct Listening {
    /// The newest that was heard of. What was not heard of while the node was away is asked for when it is back.
    after: Option<u64>,
    /// The question that is under way.
    call: Option<u64>,
}

impl Gateway {
    /// Breaks a rule from now on.
    #[cfg(feature = "sabotage")]
    pub fn plant(&mut self, sabotage: Sabotage) {
        self.sabotage = sabotage;
    }

    /// Nothing asked yet in this start.
    pub fn new(start: Generation, resend_after: Duration, acknowledge_within: Duration) -> Self {
        Self {
            resend_after,
            acknowledge_within,
            calls: Numbers::of(start),
            submitted_at: BTreeMap::new(),
            asks: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            questions: BTreeMap::new(),
            resends: BTreeSet::new(),
            to_ask: VecDeque::new(),
            replies: VecDeque::new(),
            listening: None,
            heard: VecDeque::new(),
            sabotage: Sabotage::default(),
        }
    }

    /// A client asks.
    pub fn handle_ask(&mut self, now: Now, ask: AskId, what: Ask, routing: Routing<'_>, rng: &mut impl Rng) {
        let moment = now.moment;
        match what {
            Ask::Submit(drafts) => {
                let mut outcomes = Vec::with_capacity(drafts.len());
                let mut jobs = Vec::with_capacity(drafts.len());
                self.submitted_at.retain(|_, at| (now.wall..now.wall + SUBMIT_WITHIN).contains(at));
                for (at, draft) in drafts.into_iter().enumerate() {
                    match draft.spec.validate() {
                        Ok(()) => {
                            jobs.push((at, self.new_job(now, draft, routing, rng)));
                            outcomes.push(None);
                        }
                        Err(invalid) => outcomes.push(Some(Err(invalid.into()))),
                    }
                }
                self.open(ask, moment + SUBMIT_WITHIN, Gathering::Submit { outcomes });
                self.ask_owners(moment, ask, jobs, &BTreeSet::new(), routing);
                self.close_if_complete(ask);
            }
            Ask::Job(prefix) => self.ask_about_job(moment, ask, JobRequest::Read(prefix), routing),
            Ask::Watch(job, known, patience) => {
                let until = moment + patience;
                self.ask_about_job(moment, ask, JobRequest::Watch { job, known, until }, routing);
            }
            Ask::Cancel(prefix, reason) => {
                self.ask_about_job(moment, ask, JobRequest::Cancel(prefix, reason), routing);
            }
            Ask::Explain(prefix) => self.ask_about_job(moment, ask, JobRequest::Explain(prefix), routing),
            Ask::List(filter, after, limit) => {
                let gathering = Gathering::List {
                    filter,
                    after,
                    limit,
                    open: 0,
                    records: Vec::new(),
                    more: false,
                    missing: BTreeSet::new(),
                };
                self.open(ask, moment + GATHER_WITHIN, gathering);
                let all = routing.placement.all().collect();
                self.ask_for_list(moment, ask, &all, &BTreeSet::new(), routing);
            }
            Ask::Copies(prefix) => {
                let partition = routing.placement.partition_of(prefix.low);
                let lists = routing.placement.home(partition).iter().chain(routing.placement.acting(partition));
                let holders = routing.view.values().filter(|m| m.facts.held.contains(partition)).map(|m| &m.facts.node);
                let nodes: BTreeSet<NodeId> = lists.chain(holders).copied().collect();
                let (live, gone): (BTreeSet<_>, BTreeSet<_>) =
                    nodes.into_iter().partition(|node| routing.view.get(node).is_some_and(|member| member.is_live()));
                let unreachable =
                    |node| Copy { node, record: Err(Refusal::new(Code::Unavailable, "this node is not up")) };
                let copies = gone.into_iter().map(unreachable).collect();
                self.open(ask, moment + GATHER_WITHIN, Gathering::Copies { open: live.len(), copies });
                for node in live {
                    let about = About::Copy { ask };
                    self.put_question(moment, about, node, BTreeSet::new(), Request::Copy(prefix), GATHER_WITHIN);
                }
                self.close_if_complete(ask);
            }
            Ask::Dependents(node) => {
                let live: Vec<NodeId> =
                    routing.view.values().filter(|member| member.is_live()).map(|member| member.facts.node).collect();
                let gathering = Gathering::Dependents { open: live.len(), gathered: Dependents::default() };
                self.open(ask, moment + GATHER_WITHIN, gathering);
                for asked in live {
                    let (about, request) = (About::Dependents { ask }, Request::Dependents(node));
                    self.put_question(moment, about, asked, BTreeSet::new(), request, GATHER_WITHIN);
                }
            }
        }
    }

    /// Begins, or ends, to follow every live member's events.
    pub fn listen(&mut self, now: Moment, on: bool, routing: Routing<'_>) {
        match (on, self.listening.is_some()) {
            (true, false) => self.listening = Some(BTreeMap::new()),
            (false, true) => {
                for call in self.listening.take().into_iter().flatten().filter_map(|(_, listening)| listening.call) {
                    self.drop_question(call);
                }
            }
            (true, true) | (false, false) => return,
        }
        self.follow_members(now, routing);
    }

    /// The members or the ring changed: questions to nodes that are no longer trusted go elsewhere.
    pub fn handle_view_change(&mut self, now: Moment, routing: Routing<'_>) {
        let trusted = |node: NodeId| {
            routing.view.get(&node).is_some_and(|member| member.state == MemberState::Alive) || node == routing.me
        };
        let doubtful: Vec<u64> =
            self.questions.iter().filter(|(_, question)| !trusted(question.asked)).map(|(call, _)| *call).collect();
        for call in doubtful {
            self.ask_elsewhere(now, call, routing);
        }
        self.follow_members(now, routing);
    }

    /// A question was answered.
    pub fn handle_response(&mut self, now: Moment, from: NodeId, call: u64, response: Response, routing: Routing<'_>) {
        if self.questions.get(&call).is_none_or(|question| question.asked != from) {
            return;
        }
        if response == Response::NotOwner {
            let question = self.questions.get_mut(&call).expect("it was just there");
            self.resends.remove(&(question.resend_at, call));
            question.resend_at = now + NOT_OWNER_PAUSE;
            self.resends.insert((question.resend_at, call));
            return;
        }
        let question = self.drop_question(call).expect("it was just there");
        match (question.about, response) {
            (About::Submit { ask, jobs }, Response::Submitted(outcomes)) => {
                self.take_outcomes(now, ask, jobs, outcomes, routing);
                self.close_if_complete(ask);
            }
            (About::Submit { ask, jobs }, Response::Refused(refusal)) => {
                if let Some(Gathering::Submit { outcomes }) = self.gathering(ask) {
                    for (at, _) in jobs {
                        outcomes[at] = Some(Err(refusal.clone()));
                    }
                }
                self.close_if_complete(ask);
            }
            (About::Job { ask, .. }, Response::Job(answer)) => self.take_job(now, ask, answer, routing),
            (About::Job { ask, .. }, Response::Explanation(explanation)) => {
                self.close(ask, Ok(Told::Explanation(explanation)));
            }
            (About::Job { ask, .. }, Response::Refused(refusal)) => self.close(ask, Err(refusal)),
            (About::List { ask, .. }, Response::Jobs { records, more }) => {
                if let Some(Gathering::List { open, records: gathered, more: any_more, .. }) = self.gathering(ask) {
                    *open -= 1;
                    gathered.extend(records);
                    *any_more |= more;
                }
                self.close_if_complete(ask);
            }
            (About::Copy { ask }, Response::Copy(record)) => self.take_copy(ask, from, Ok(record)),
            (About::Copy { ask }, Response::Refused(refusal)) => self.take_copy(ask, from, Err(refusal)),
            (About::Dependents { ask }, Response::Dependents(part)) => self.take_dependents(ask, part),
            (About::Events, Response::Events { newest, events }) => {
                let mine = from == routing.me;
                // Everybody sees the members for itself; only jobs are heard from others.
                let told = events.into_iter().filter(|event| mine || !matches!(event.kind, EventKind::Member { .. }));
                self.heard.extend(told.map(|event| (from, event)));
                if let Some(listening) = self.listening.as_mut().and_then(|all| all.get_mut(&from)) {
                    listening.after = Some(newest);
                }
                self.ask_for_events(now, from);
            }
            // An answer to another question than was asked is a fault of the other side, and as good as none.
            (about, _) => {
                let mut silent = question.silent;
                silent.insert(from);
                self.ask_again(now, about, silent, routing);
            }
        }
    }

    /// The jobs whose submits are not over: somebody else may yet be asked to write them down.
    pub fn submitting(&self) -> BTreeSet<JobId> {
        let submits = self.questions.values().filter_map(|question| match &question.about {
            About::Submit { jobs, .. } => Some(jobs),
            About::Job { .. } | About::List { .. } | About::Copy { .. } | About::Dependents { .. } | About::Events => {
                None
            }
        });
        submits.flatten().map(|(_, job)| job.id).collect()
    }

    /// The next question to send: to whom, under which number, what.
    pub fn poll_question(&mut self) -> Option<(NodeId, u64, Request)> {
        self.to_ask.pop_front()
    }

    /// The next answer for a client.
    pub fn poll_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    /// The next event of the cluster, with the node that told it.
    pub fn poll_heard(&mut self) -> Option<(NodeId, Event)> {
        self.heard.pop_front()
    }

    /// The next moment at which something is overdue.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let resend = self.resends.first().map(|(at, _)| *at);
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        [resend, deadline].into_iter().flatten().min()
    }

    /// Asks elsewhere what was not answered, and gives up what took too long.
    pub fn handle_timeout(&mut self, now: Moment, routing: Routing<'_>) {
        while let Some((at, ask)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, ask));
            self.give_up(ask);
        }
        while let Some((at, call)) = self.resends.first().copied().filter(|(at, _)| *at <= now) {
            self.resends.remove(&(at, call));
            self.ask_elsewhere(now, call, routing);
        }
    }

    fn open(&mut self, ask: AskId, deadline: Moment, gathering: Gathering) {
        self.deadlines.insert((deadline, ask));
        self.asks.insert(ask, OpenAsk { deadline, gathering });
    }

    fn gathering(&mut self, ask: AskId) -> Option<&mut Gathering> {
        self.asks.get_mut(&ask).map(|open| &mut open.gathering)
    }

    fn put_question(
        &mut self,
        now: Moment,
        about: About,
        asked: NodeId,
        silent: BTreeSet<NodeId>,
        request: Request,
        patience: Duration,
    ) -> u64 {
        let call = self.calls.take();
        let resend_at = now + patience + self.resend_after;
        self.resends.insert((resend_at, call));
        self.questions.insert(call, Question { about, asked, silent, resend_at });
        self.to_ask.push_back((asked, call, request));
        call
    }

    fn drop_question(&mut self, call: u64) -> Option<Question> {
        let question = self.questions.remove(&call)?;
        self.resends.remove(&(question.resend_at, call));
        Some(question)
    }

    /// The answer did not come, or not from somebody who decides.
    fn ask_elsewhere(&mut self, now: Moment, call: u64, routing: Routing<'_>) {
        let Some(question) = self.drop_question(call) else {
            return;
        };
        let mut silent = question.silent;
        let is_answering = routing.view.get(&question.asked).is_some_and(|member| member.state == MemberState::Alive);
        if question.asked != routing.me || !is_answering {
            silent.insert(question.asked);
        }
        self.ask_again(now, question.about, silent, routing);
    }

    fn ask_again(&mut self, now: Moment, about: About, silent: BTreeSet<NodeId>, routing: Routing<'_>) {
        match about {
            About::Submit { ask, jobs } => self.ask_owners(now, ask, jobs, &silent, routing),
            About::Job { ask, partition } => self.ask_owner(now, ask, partition, silent, routing),
            About::List { ask, partitions } => {
                if let Some(Gathering::List { open, .. }) = self.gathering(ask) {
                    *open -= 1;
                }
                self.ask_for_list(now, ask, &partitions, &silent, routing);
            }
            About::Copy { ask } => {
                let refusal = Refusal::new(Code::Unavailable, "this node did not answer");
                if let Some(node) = silent.last().copied() {
                    self.take_copy(ask, node, Err(refusal));
                }
            }
            About::Dependents { ask } => self.take_dependents(ask, Dependents::default()),
            About::Events => {
                let listening = self.listening.as_mut().zip(silent.last()).and_then(|(all, node)| all.get_mut(node));
                if let Some(listening) = listening {
                    listening.call = None;
                }
                self.follow_members(now, routing);
            }
        }
    }

    /// Sends each job to the node that decides for it, as one question a node.
    fn ask_owners(
        &mut self,
        now: Moment,
        ask: AskId,
        jobs: Vec<(usize, NewJob)>,
        silent: &BTreeSet<NodeId>,
        routing: Routing<'_>,
    ) {
        if !self.asks.contains_key(&ask) {
            return;
        }
        let mut by_node: BTreeMap<(NodeId, bool), Vec<(usize, NewJob)>> = BTreeMap::new();
        for (at, job) in jobs {
            let partition = routing.placement.partition_of(job.id);
            let target = choose(partition, silent, routing);
            let insist = routing.placement.owner(partition) != Some(target);
            by_node.entry((target, insist)).or_default().push((at, job));
        }
        for ((node, insist), jobs) in by_node {
            for chunk in jobs.chunks(SUBMIT_CHUNK) {
                let request = Request::Submit { jobs: chunk.iter().map(|(_, job)| job.clone()).collect(), insist };
                let about = About::Submit { ask, jobs: chunk.to_vec() };
                self.put_question(now, about, node, silent.clone(), request, self.acknowledge_within);
            }
        }
    }

    fn ask_about_job(&mut self, now: Moment, ask: AskId, request: JobRequest, routing: Routing<'_>) {
        let patience = match &request {
            JobRequest::Watch { until, .. } => until.since(now),
            JobRequest::Read(_) | JobRequest::Cancel(..) | JobRequest::Explain(_) => Duration::ZERO,
        };
        let partition = routing.placement.partition_of(request.prefix().low);
        self.open(ask, now + patience + ANSWER_WITHIN, Gathering::Job { request });
        self.ask_owner(now, ask, partition, BTreeSet::new(), routing);
    }

    fn ask_owner(
        &mut self,
        now: Moment,
        ask: AskId,
        partition: Partition,
        silent: BTreeSet<NodeId>,
        routing: Routing<'_>,
    ) {
        let Some(Gathering::Job { request }) = self.gathering(ask) else {
            return;
        };
        let (question, patience) = request.question(now);
        let target = choose(partition, &silent, routing);
        self.put_question(now, About::Job { ask, partition }, target, silent, question, patience);
    }

    /// Gives a draft its id and everything else that never changes.
    fn new_job(&mut self, now: Now, draft: Draft, routing: Routing<'_>, rng: &mut impl Rng) -> NewJob {
        let Draft { spec, retry_of } = draft;
        let id = match &spec.key {
            Some(key) if !self.sabotage.has(Bug::ForgetKeys) => {
                let canonical = rmp_serde::to_vec_named(&spec).expect("a spec consists of what MessagePack can write");
                JobId::from_key(blake3::hash(key.as_bytes()).as_bytes(), blake3::hash(&canonical).as_bytes())
            }
            Some(_) | None => JobId(u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())),
        };
        let home = routing.placement.home(routing.placement.partition_of(id)).to_vec();
        let mut submitted_at = now.wall;
        if spec.key.is_some() {
            // The owner tells a submit that is sent again from another one of the same job by their times.
            if let Some(latest) = self.submitted_at.get(&id) {
                submitted_at = *latest + Duration::from_millis(1);
            }
            self.submitted_at.insert(id, submitted_at);
        }
        let submission = Submission { spec, submitted_at, gateway: routing.me, home, retry_of };
        NewJob { id, submission: Arc::new(submission) }
    }

    fn ask_for_list(
        &mut self,
        now: Moment,
        ask: AskId,
        partitions: &PartitionSet,
        silent: &BTreeSet<NodeId>,
        routing: Routing<'_>,
    ) {
        let mut by_node: BTreeMap<NodeId, PartitionSet> = BTreeMap::new();
        let mut unreachable = BTreeSet::new();
        for partition in partitions.iter() {
            let acting = routing.placement.acting(partition);
            match acting.iter().find(|node| !silent.contains(node)) {
                Some(node) => by_node.entry(*node).or_default().insert(partition),
                None => unreachable.extend(acting.iter().copied()),
            }
        }
        let Some(Gathering::List { filter, after, limit, open, missing, .. }) = self.gathering(ask) else {
            return;
        };
        *open += by_node.len();
        missing.extend(unreachable);
        let (filter, after, limit) = (filter.clone(), *after, *limit);
        for (node, partitions) in by_node {
            let request = Request::List { filter: filter.clone(), after, limit, partitions: partitions.clone() };
            let about = About::List { ask, partitions };
            self.put_question(now, about, node, silent.clone(), request, self.resend_after);
        }
        self.close_if_complete(ask);
    }

    fn take_outcomes(
        &mut self,
        now: Moment,
        ask: AskId,
        jobs: Vec<(usize, NewJob)>,
        answers: Vec<SubmitOutcome>,
        routing: Routing<'_>,
    ) {
        let mut not_decided = Vec::new();
        let mut answers = answers.into_iter();
        for (at, job) in jobs {
            let settled = match answers.next() {
                Some(SubmitOutcome::Written(submitted)) => Ok(submitted),
                Some(SubmitOutcome::Refused(refusal)) => Err(refusal),
                Some(SubmitOutcome::NotOwner) | None => {
                    not_decided.push((at, job));
                    continue;
                }
            };
            if let Some(Gathering::Submit { outcomes }) = self.gathering(ask) {
                outcomes[at] = Some(settled);
            }
        }
        if !not_decided.is_empty() {
            // Asked again after a moment, by whoever owns them then.
            let call = self.calls.take();
            let resend_at = now + NOT_OWNER_PAUSE;
            self.resends.insert((resend_at, call));
            let about = About::Submit { ask, jobs: not_decided };
            self.questions.insert(call, Question { about, asked: routing.me, silent: BTreeSet::new(), resend_at });
        }
    }

    fn take_job(&mut self, now: Moment, ask: AskId, answer: JobAnswer, routing: Routing<'_>) {
        let Some(Gathering::Job { request }) = self.gathering(ask) else {
            return;
        };
        if let JobRequest::Watch { known, until, .. } = request
            && *known == Some(answer.version)
            && *until > now
        {
            let partition = routing.placement.partition_of(answer.record.id);
            return self.ask_owner(now, ask, partition, BTreeSet::new(), routing);
        }
        self.close(ask, Ok(Told::Job(answer)));
    }

    fn take_copy(&mut self, ask: AskId, node: NodeId, record: Result<Option<Arc<Record>>, Refusal>) {
        if let Some(Gathering::Copies { open, copies }) = self.gathering(ask) {
            *open -= 1;
            copies.push(Copy { node, record });
        }
        self.close_if_complete(ask);
    }

    fn take_dependents(&mut self, ask: AskId, part: Dependents) {
        if let Some(Gathering::Dependents { open, gathered }) = self.gathering(ask) {
            *open -= 1;
            gathered.add(part);
        }
        self.close_if_complete(ask);
    }

    fn close_if_complete(&mut self, ask: AskId) {
        let complete = match self.asks.get(&ask).map(|open| &open.gathering) {
            Some(Gathering::Submit { outcomes }) => outcomes.iter().all(Option::is_some),
            Some(
                Gathering::List { open, .. } | Gathering::Copies { open, .. } | Gathering::Dependents { open, .. },
            ) => *open == 0,
            Some(Gathering::Job { .. }) | None => false,
        };
        if complete {
            self.give_up(ask);
        }
    }

    /// Answers with what there is.
    fn give_up(&mut self, ask: AskId) {
        let Some(open) = self.asks.get_mut(&ask) else {
            return;
        };
        let nobody = || {
            Refusal::new(Code::Unavailable, "no node that could answer did so in time")
                .with_hint("`flockwork debug` shows how the cluster stands; asking again is safe")
        };
        let told = match &mut open.gathering {
            Gathering::Submit { outcomes } => {
                let not_known = || Refusal {
                    hint: Some("it may have been written down: ask again with the same key to find out".into()),
                    ..nobody()
                };
                let outcomes = std::mem::take(outcomes);
                Ok(Told::Submitted(outcomes.into_iter().map(|o| o.unwrap_or_else(|| Err(not_known()))).collect()))
            }
            Gathering::Job { .. } => Err(nobody()),
            Gathering::List { limit, records, more, missing, open, .. } => {
                let mut records = std::mem::take(records);
                records.sort_by_key(|record| std::cmp::Reverse(cursor_of(record)));
                records.dedup_by_key(|record| record.id);
                let cut = records.len() > *limit as usize;
                records.truncate(*limit as usize);
                let next = records.last().filter(|_| cut || *more).map(|record| cursor_of(record));
                let mut missing = std::mem::take(missing);
                if *open > 0 {
                    let asked = self.questions.values();
                    let is_part =
                        |question: &&Question| matches!(question.about, About::List { ask: of, .. } if of == ask);
                    missing.extend(asked.filter(is_part).map(|question| question.asked));
                }
                Ok(Told::Listing(Listing { records, next, missing: missing.into_iter().collect() }))
            }
            Gathering::Copies { copies, .. } => {
                let mut copies = std::mem::take(copies);
                copies.sort_by_key(|copy| copy.node);
                Ok(Told::Copies(copies))
            }
            Gathering::Dependents { gathered, .. } => Ok(Told::Dependents(std::mem::take(gathered))),
        };
        self.close(ask, told);
    }

    fn close(&mut self, ask: AskId, result: Result<Told, Refusal>) {
        let Some(open) = self.asks.remove(&ask) else {
            return;
        };
        self.deadlines.remove(&(open.deadline, ask));
        let leftover: Vec<u64> = self
            .questions
            .iter()
            .filter(|(_, question)| match question.about {
                About::Submit { ask: of, .. }
                | About::Job { ask: of, .. }
                | About::List { ask: of, .. }
                | About::Copy { ask: of }
                | About::Dependents { ask: of } => of == ask,
                About::Events => false,
            })
            .map(|(call, _)| *call)
            .collect();
        for call in leftover {
            self.drop_question(call);
        }
        self.replies.push_back(Reply { ask, result });
    }

    fn follow_members(&mut self, now: Moment, routing: Routing<'_>) {
        let Some(listening) = &mut self.listening else {
            return;
        };
        let is_live = |node: &NodeId| routing.view.get(node).is_some_and(|member| member.is_live());
        let to_the_gone = listening.iter_mut().filter(|(node, _)| !is_live(node));
        let calls: Vec<u64> = to_the_gone.filter_map(|(_, listening)| listening.call.take()).collect();
        listening.retain(|node, _| routing.view.contains_key(node));
        let to_ask: Vec<NodeId> = (routing.view.keys().copied())
            .filter(|node| is_live(node) && listening.entry(*node).or_default().call.is_none())
            .collect();
        for call in calls {
            self.drop_question(call);
        }
        for node in to_ask {
            self.ask_for_events(now, node);
        }
    }

    fn ask_for_events(&mut self, now: Moment, node: NodeId) {
        let Some(after) = self.listening.as_ref().and_then(|all| all.get(&node)).map(|listening| listening.after)
        else {
            return;
        };
        let request = Request::Events { after, patience: WATCH_LEG };
        let call = self.put_question(now, About::Events, node, BTreeSet::new(), request, WATCH_LEG);
        if let Some(listening) = self.listening.as_mut().and_then(|all| all.get_mut(&node)) {
            listening.call = Some(call);
        }
    }
}

/// The first node of the acting list that is not silent; when all are, the first again.
fn choose(partition: Partition, silent: &BTreeSet<NodeId>, routing: Routing<'_>) -> NodeId {
    let acting = routing.placement.acting(partition);
    acting.iter().find(|node| !silent.contains(node)).or_else(|| acting.first()).copied().unwrap_or(routing.me)
}
