//! What a partition left behind, on one page: who was away from whom, and which jobs ran twice meanwhile.
//!
//! Both sides of a partition go on, so a job whose executor is on the far side is started once more on this one.
//! Nothing has to be written down for this report: the merged records know every attempt that either side made, on
//! every node and after any restart. Only who was away, and why, is the answering node's own memory.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::App;
use super::errors::ApiError;
use super::input::NoQuery;
use super::reason::Names;
use super::views::NodeRef;
use crate::model::attempt::{Attempt, Overlap, Phase};
use crate::model::id::{JobId, NodeId};
use crate::model::member::MemberState;
use crate::model::record::{JobState, Record};
use crate::model::request::Filter;
use crate::model::time::Timestamp;
use crate::protocol::membership::Verdict;

/// The most jobs that are reported.
const MAX_JOBS: u32 = 1_000;

/// What partitions left behind.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MergesView {
    /// The node that says this.
    node: NodeRef,
    /// Members that it lost and, perhaps, found again; as far back as it remembers, oldest first.
    absences: Vec<AbsenceView>,
    /// Jobs with attempts that ran, or may have run, at the same time; newest first.
    jobs: Vec<MergedJobView>,
    /// How many pairs of attempts are known to have run at the same time.
    certain: usize,
    /// How many more may have.
    possible: usize,
    /// Whether there are more such jobs than are told here.
    more: bool,
    /// Nodes that could not be asked, and that may know of more.
    #[schema(value_type = Vec<String>)]
    missing: Vec<NodeId>,
}

/// A member that was away, as the answering node saw it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct AbsenceView {
    /// Who.
    #[serde(flatten)]
    node: NodeRef,
    /// Since when it was taken to be down.
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    /// When it was back; null if it is not.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Why it was taken to be down.
    reason: String,
}

/// A job that ran twice at once, or may have.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MergedJobView {
    /// The job.
    #[schema(value_type = String)]
    id: JobId,
    /// Its name or command.
    title: String,
    /// Its one state.
    state: JobState,
    /// Each pair of such attempts.
    overlaps: Vec<PairView>,
}

/// Two attempts that ran, or may have run, at the same time.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PairView {
    /// Both are known to have run on.
    certain: bool,
    /// The one that began first.
    first: RunView,
    /// The other.
    second: RunView,
    /// Since when both ran, by their nodes' clocks; null where one is not known to have started.
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Until when; null where that is not known.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// For how long, in seconds; null where it is not known, and zero where they did not meet after all. At the most,
    /// where it is not certain.
    seconds: Option<f64>,
}

/// One of two attempts.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RunView {
    /// Its number. Both sides of a partition may have given one number.
    number: u32,
    /// Where it ran.
    #[serde(flatten)]
    node: NodeRef,
    /// How far it came.
    #[schema(value_type = String)]
    phase: Phase,
    /// When its pod started, by its node's clock.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// When its own node said that it ended; null while it runs, and where nobody knows.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// Why it ended.
    reason: String,
}

impl RunView {
    fn new(attempt: &Attempt, names: Names<'_>) -> Self {
        Self {
            number: attempt.claim.number,
            node: NodeRef::new(attempt.claim.executor.node, names),
            phase: attempt.fate.phase,
            started_at: attempt.started_at,
            ended_at: (!attempt.is_live() && attempt.fate.by_executor).then_some(attempt.fate.at),
            reason: attempt.fate.reason.clone(),
        }
    }
}

/// What a partition left behind
///
/// Which members this node had lost, for how long and why; and which jobs ran, or may have run, twice at the same time:
/// where, since when and for how long.
#[utoipa::path(get, path = "/debug/merges", tag = "debug", responses((status = 200, body = MergesView)))]
pub(super) async fn report(State(app): State<App>, _: NoQuery) -> Result<Json<MergesView>, ApiError> {
    let filter = Filter { overlapped: true, ..Filter::default() };
    let listing = app.answer(app.handle().list(filter, None, MAX_JOBS)).await?;
    let members = app.answer(app.handle().members()).await?;
    let snapshot = app.handle().snapshot();
    let names = Names(&snapshot.view);
    let jobs: Vec<MergedJobView> = listing.records.iter().map(|record| merged(record, names)).collect();
    let of_kind = |certain| jobs.iter().flat_map(|job| &job.overlaps).filter(|pair| pair.certain == certain).count();
    Ok(Json(MergesView {
        node: NodeRef::new(snapshot.node, names),
        absences: absences(&members.history, names),
        certain: of_kind(true),
        possible: of_kind(false),
        jobs,
        more: listing.next.is_some(),
        missing: listing.missing,
    }))
}

fn merged(record: &Record, names: Names<'_>) -> MergedJobView {
    let pairs = record.overlaps();
    let pairs = pairs.iter().filter_map(|overlap| pair(record, overlap, names));
    MergedJobView { id: record.id, title: record.spec().title(), state: record.state(), overlaps: pairs.collect() }
}

fn pair(record: &Record, overlap: &Overlap, names: Names<'_>) -> Option<PairView> {
    let (one, other) = (record.attempts.get(&overlap.first)?, record.attempts.get(&overlap.second)?);
    let (one, other) = (RunView::new(one, names), RunView::new(other, names));
    let (first, second) = if one.started_at <= other.started_at { (one, other) } else { (other, one) };
    let from = first.started_at.and(second.started_at);
    let until = first.ended_at.zip(second.ended_at).map(|(a, b)| a.min(b)).or(first.ended_at.or(second.ended_at));
    let seconds = from.zip(until).map(|(from, until)| until.since(from).as_secs_f64());
    Some(PairView { certain: overlap.certain, first, second, from, until, seconds })
}

fn absences(history: &[Verdict], names: Names<'_>) -> Vec<AbsenceView> {
    let mut absences: Vec<AbsenceView> = Vec::new();
    let mut open: BTreeMap<NodeId, usize> = BTreeMap::new();
    for verdict in history {
        match verdict.is {
            Some(MemberState::Down) => {
                open.entry(verdict.node).or_insert(absences.len());
                if open.get(&verdict.node) == Some(&absences.len()) {
                    let (from, reason) = (verdict.at, verdict.reason.clone());
                    absences.push(AbsenceView { node: NodeRef::new(verdict.node, names), from, until: None, reason });
                }
            }
            Some(MemberState::Alive) => {
                let ended = open.remove(&verdict.node).and_then(|at| absences.get_mut(at));
                if let Some(absence) = ended {
                    absence.until = Some(verdict.at);
                }
            }
            Some(MemberState::Suspect | MemberState::Left) | None => {}
        }
    }
    absences
}
