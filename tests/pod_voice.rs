//! What pods say of themselves, from real programs to the executor that runs them; the test is the driver.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops at what surprises it, and has a clock"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use flockwork::io::executor::{Executor, ExecutorConfig, Handlers, ReportError};
use flockwork::io::store::Store;
use flockwork::model::attempt::Exit;
use flockwork::model::blob::Blob;
use flockwork::model::id::{Actor, AttemptKey, Dot, Fence, Generation, JobId, NodeId};
use flockwork::model::record::Submission;
use flockwork::model::request::Receipt;
use flockwork::model::spec::{Driver, Spec};
use flockwork::model::time::Timestamp;
use flockwork::model::wire::{LogRequest, Stream};
use flockwork::protocol::effect::{Commit, Leavings, PodEnd, PodEvent, PodReport, PodStart, Rejected};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

const KEY: AttemptKey = AttemptKey {
    job: JobId(5),
    claim: Dot { actor: Actor { node: NodeId(0xa1), generation: Generation(7) }, counter: 1 },
};

struct Workshop {
    executor: Executor,
    events: mpsc::UnboundedReceiver<PodEvent>,
    http: reqwest::Client,
    _dir: TempDir,
}

/// Where a pod reports, and by which right.
struct Voice {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Voice {
    async fn say(&self, kind: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}?{kind}", self.url)).bearer_auth(&self.token).body(body);
        let response = request.send().await.unwrap();
        (response.status(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }
}

impl Workshop {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ExecutorConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ExecutorConfig::new(dir.path().join("pods"), "a-node");
        config.stop_grace = Duration::from_millis(300);
        change(&mut config);
        let (sender, events) = mpsc::unbounded_channel();
        let executor = Executor::start(config, sender, TaskTracker::new()).unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { executor, events, http, _dir: dir }
    }

    fn start(&self, spec: Spec, checkpoint: Option<&Blob>) {
        let node = KEY.claim.actor.node;
        let submission =
            Submission { spec, submitted_at: Timestamp(0), gateway: node, home: vec![node], retry_of: None };
        self.executor.start_pod(PodStart {
            key: KEY,
            number: 2,
            fence: Fence::new(2, node),
            submission: Arc::new(submission),
            checkpoint: checkpoint.map(Blob::reference),
        });
    }

    /// A pod that tells where it reports, and then does nothing for long.
    async fn patient(&self, spec: Spec) -> Voice {
        let script = "echo $FLOCKWORK_POD_URL $FLOCKWORK_POD_TOKEN; sleep 60";
        self.start(Spec { command: shell(script), ..spec }, None);
        let mut text = String::new();
        while !text.ends_with('\n') {
            let (offset, stream) = (text.len() as u64, Stream::Stdout);
            let request =
                LogRequest { job: KEY.job, claim: KEY.claim, stream, offset, limit: 1 << 16, wait_ms: 30_000 };
            match self.executor.read_log(request).await {
                Ok(chunk) => text.push_str(std::str::from_utf8(&chunk.bytes).unwrap()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        let (url, token) = text.trim().split_once(' ').unwrap();
        Voice { http: self.http.clone(), url: url.to_owned(), token: token.to_owned() }
    }

    async fn next_event(&mut self) -> PodEvent {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap()
    }

    async fn report(&mut self) -> PodReport {
        loop {
            match self.next_event().await {
                // On a slow machine, what the pod has written comes in between.
                PodEvent::Started { .. } | PodEvent::Reported { report: PodReport::Output { .. }, .. } => {}
                PodEvent::Reported { key, report } => {
                    assert_eq!(key, KEY);
                    return report;
                }
                PodEvent::Ended { end, .. } => panic!("it ended without a report: {end:?}"),
            }
        }
    }

    async fn end(&mut self) -> (PodEnd, Leavings) {
        loop {
            if let PodEvent::Ended { end, left, .. } = self.next_event().await {
                return (end, *left);
            }
        }
    }
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// With the program under test where the script finds it.
fn script(script: &str) -> Spec {
    let path = std::path::Path::new(env!("CARGO_BIN_EXE_flockwork")).parent().unwrap().display().to_string();
    let path = format!("{path}:{}", std::env::var("PATH").unwrap());
    Spec { command: shell(script), env: [("PATH".to_owned(), path)].into(), ..Spec::default() }
}

fn safe(stored: u32) -> Result<Receipt, Rejected> {
    Ok(Receipt { stored, wanted: 2, replicas: Vec::new() })
}

#[tokio::test]
async fn a_script_reports_by_the_command_line() {
    let mut shop = Workshop::new();
    shop.start(
        script(
            "set -e; [ ! -e $FLOCKWORK_CHECKPOINT_FILE ]
             flockwork pod heartbeat
             flockwork pod progress 0.25 'a quarter'
             echo work > state; flockwork pod checkpoint state
             flockwork pod checkpoint - < /dev/null || exit $?",
        ),
        None,
    );
    let PodReport::Progress(progress) = shop.report().await else { panic!("progress comes first") };
    assert_eq!((progress.permille, progress.message.as_str()), (250, "a quarter"));
    let PodReport::Checkpoint { answer, serial, blob, .. } = shop.report().await else { panic!("a checkpoint") };
    assert!(serial > progress.serial);
    assert_eq!(blob.bytes().as_ref(), b"work\n");
    shop.executor.answer_pod(answer, safe(2));
    let PodReport::Checkpoint { answer, blob, .. } = shop.report().await else { panic!("another") };
    assert_eq!(blob.size(), 0);
    shop.executor.answer_pod(answer, safe(1));
    // Less safe than it should be is not the same as safe.
    assert_eq!(shop.end().await.0, PodEnd::Exited(Exit::Code(6)));
}

#[tokio::test]
async fn what_an_attempt_leaves_behind_comes_with_its_end() {
    let mut shop = Workshop::new();
    shop.start(
        script(
            "echo out; seq 100000 >&2; flockwork pod progress 0.1; flockwork pod progress 0.9 'almost'
             echo told > r; flockwork pod result r; printf written > $FLOCKWORK_RESULT_FILE; exit 3",
        ),
        None,
    );
    let mut last_report = None;
    let (end, left) = loop {
        match shop.next_event().await {
            PodEvent::Started { .. } => {}
            PodEvent::Reported { report: PodReport::Progress(progress), .. } => last_report = Some(progress),
            PodEvent::Reported { report: PodReport::Result { answer, blob, .. }, .. } => {
                assert_eq!(blob, Blob::new("told\n"));
                shop.executor.answer_pod(answer, safe(2));
            }
            PodEvent::Reported { report, .. } => panic!("{report:?}"),
            PodEvent::Ended { end, left, .. } => break (end, *left),
        }
    };
    assert_eq!(end, PodEnd::Exited(Exit::Code(3)));
    assert_eq!(left.result.unwrap().bytes().as_ref(), b"written", "what is in the file counts");
    assert_eq!(left.stdout, Some((0, Blob::new("out\n"))));
    let (offset, tail) = left.stderr.unwrap();
    assert_eq!(offset + tail.size(), 588_895);
    assert!(tail.size() == 16 << 10 && tail.bytes().ends_with(b"\n100000\n"));
    // What is said within a second of what went before comes with the end; a slow machine may take longer to say it.
    assert_eq!(left.progress.or(last_report).unwrap().permille, 900);
    assert_eq!(left.remark, "");
}

#[tokio::test]
async fn a_result_that_cannot_be_kept_is_said_to_be_lost() {
    for (writes, why) in [
        ("head -c 70000 /dev/zero > $FLOCKWORK_RESULT_FILE", "65536"),
        ("mkfifo $FLOCKWORK_RESULT_FILE", "not a plain file"),
        ("ln -s /etc/passwd $FLOCKWORK_RESULT_FILE", ""),
    ] {
        let mut shop = Workshop::new();
        shop.start(script(writes), None);
        let (end, left) = shop.end().await;
        assert_eq!((end, left.result), (PodEnd::Exited(Exit::Code(0)), None), "{writes}");
        assert!(left.remark.contains("result is lost") && left.remark.contains(why), "{writes}: {}", left.remark);
    }
}

#[tokio::test]
async fn progress_is_passed_on_once_a_second_and_the_last_word_counts() {
    let mut shop = Workshop::new();
    let voice = shop.patient(Spec::default()).await;
    let begun = Instant::now();
    for step in 0..=200 {
        let body = format!("{{\"fraction\": {}}}", f64::from(step) / 200.0);
        assert_eq!(voice.say("kind=progress", body).await.0, StatusCode::OK);
    }
    let mut heard = Vec::new();
    while heard.last() != Some(&1_000) {
        let PodReport::Progress(progress) = shop.report().await else { panic!("only progress was reported") };
        heard.push(progress.permille);
    }
    let seconds = begun.elapsed().as_secs() as usize;
    assert!(heard.len() <= seconds + 2, "{heard:?} in {seconds} s");
    assert!(heard.is_sorted(), "{heard:?}");
}

#[tokio::test]
async fn nonsense_and_strangers_are_refused_with_reasons() {
    let shop = Workshop::new();
    let voice = shop.patient(Spec::default()).await;
    let cases: [(&str, Vec<u8>, u16, &str); 9] = [
        ("kind=applause", vec![], 422, "kind"),
        ("", vec![], 422, "kind"),
        ("kind=heartbeat&kind=result", vec![], 422, "kind"),
        ("kind=heartbeat&fast=1", vec![], 422, "query"),
        ("kind=progress", b"40%".to_vec(), 422, "body"),
        ("kind=progress", b"{\"fraction\": 1.5}".to_vec(), 422, "fraction"),
        ("kind=progress", b"{\"fraction\": 1, \"message\": \"two\\nlines\"}".to_vec(), 422, "message"),
        ("kind=result", vec![0; (64 << 10) + 1], 413, ""),
        ("kind=checkpoint", vec![0; (16 << 20) + 1], 413, ""),
    ];
    for (query, body, status, field) in cases {
        let (told, body) = voice.say(query, body).await;
        assert_eq!(told.as_u16(), status, "{query}: {body}");
        assert_eq!(body["error"]["field"].as_str().unwrap_or_default(), field, "{body}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| message.len() > 5), "{body}");
    }
    // Without a length, the limit holds as well.
    let endless = futures_util::stream::iter((0..300).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 64 << 10])));
    let (told, body) = voice.say("kind=checkpoint", reqwest::Body::wrap_stream(endless)).await;
    assert_eq!(told, StatusCode::PAYLOAD_TOO_LARGE, "{body}");

    for token in ["", "x", &voice.token[1..], &voice.token.to_uppercase()] {
        let stranger = Voice { http: voice.http.clone(), url: voice.url.clone(), token: token.to_owned() };
        assert_eq!(stranger.say("kind=heartbeat", "").await.0, StatusCode::UNAUTHORIZED, "{token}");
    }
    let bare = voice.http.post(format!("{}?kind=heartbeat", voice.url)).send().await.unwrap();
    assert_eq!(bare.status(), StatusCode::UNAUTHORIZED);
    let read = voice.http.get(&voice.url).send().await.unwrap();
    assert_eq!(read.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(voice.say("kind=heartbeat", "").await.0, StatusCode::OK, "it is well all the same");
}

#[tokio::test]
async fn a_silenced_attempt_has_no_say_although_it_runs() {
    let mut shop = Workshop::new();
    let voice = shop.patient(Spec::default()).await;
    assert_eq!(voice.say("kind=heartbeat", "").await.0, StatusCode::OK);
    shop.executor.silence(KEY);
    for kind in ["heartbeat", "progress", "checkpoint", "result"] {
        let (status, body) = voice.say(&format!("kind={kind}"), "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{kind}: {body}");
    }
    shop.executor.stop_pod(KEY);
    assert!(matches!(shop.end().await.0, PodEnd::Stopped(_)));
    assert_eq!(voice.say("kind=heartbeat", "").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_the_driver_says_of_a_checkpoint_is_what_the_pod_hears() {
    let mut shop = Workshop::new();
    let voice = shop.patient(Spec { heartbeat_timeout: Some(Duration::from_secs(1)), ..Spec::default() }).await;
    let answers = [
        (safe(2), StatusCode::OK),
        (safe(1), StatusCode::ACCEPTED),
        (Err(Rejected::Stale), StatusCode::UNAUTHORIZED),
        (Err(Rejected::Overtaken), StatusCode::CONFLICT),
        (Err(Rejected::NotStored), StatusCode::INSUFFICIENT_STORAGE),
    ];
    for (result, status) in answers {
        let hears = async { voice.say("kind=checkpoint", "work").await };
        let answers = async {
            let PodReport::Checkpoint { answer, .. } = shop.report().await else { panic!("a checkpoint") };
            shop.executor.answer_pod(answer, result);
        };
        let ((told, body), ()) = tokio::join!(hears, answers);
        assert_eq!(told, status, "{body}");
    }
    // One at a time; and while it waits for its disk and its peers, a pod is not silent.
    let (first, second) = (voice.say("kind=checkpoint", "a"), async {
        let PodReport::Checkpoint { answer, .. } = shop.report().await else { panic!("a checkpoint") };
        let second = voice.say("kind=checkpoint", "b").await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        shop.executor.answer_pod(answer, safe(2));
        second
    });
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.0, second.0), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
}

#[tokio::test]
async fn a_result_is_handed_in_as_work_is_and_answered_when_it_is_stored() {
    let mut shop = Workshop::new();
    let voice = shop.patient(Spec::default()).await;
    let answers = [
        (safe(2), StatusCode::OK),
        (safe(1), StatusCode::ACCEPTED),
        (Err(Rejected::Stale), StatusCode::UNAUTHORIZED),
        (Err(Rejected::NotStored), StatusCode::INSUFFICIENT_STORAGE),
    ];
    let mut last_serial = 0;
    for (turn, (result, status)) in answers.into_iter().enumerate() {
        let content = format!("result {turn}");
        let hears = voice.say("kind=result", content.clone());
        let answers = async {
            let PodReport::Result { answer, serial, blob } = shop.report().await else { panic!("a result") };
            assert!(serial > last_serial && blob == Blob::new(content.clone()));
            last_serial = serial;
            shop.executor.answer_pod(answer, result);
        };
        let ((told, body), ()) = tokio::join!(hears, answers);
        assert_eq!(told, status, "{body}");
    }
    // What could not be stored is tried once more with the end.
    shop.executor.stop_pod(KEY);
    assert_eq!(shop.end().await.1.result, Some(Blob::new("result 3")));
}

#[tokio::test]
async fn what_a_running_pod_writes_is_told_some_seconds_later_and_silence_is_not() {
    let mut shop = Workshop::new();
    let begun = Instant::now();
    shop.start(script("seq 100000; sleep 600"), None);
    let told = loop {
        match shop.next_event().await {
            PodEvent::Started { .. } => {}
            PodEvent::Reported { report, .. } => break report,
            PodEvent::Ended { end, .. } => panic!("{end:?}"),
        }
    };
    assert!(begun.elapsed() >= Duration::from_secs(5));
    let PodReport::Output { stdout: Some((offset, tail)), stderr: None, .. } = told else { panic!("{told:?}") };
    assert_eq!((offset + tail.size(), tail.size()), (588_895, 16 << 10));
    assert!(tail.bytes().ends_with(b"\n100000\n"));
    // It says nothing more, and so nothing more is told of it.
    let more = tokio::time::timeout(Duration::from_secs(12), shop.events.recv()).await;
    assert!(more.is_err(), "{more:?}");
    shop.executor.stop_pod(KEY);
    assert!(matches!(shop.end().await.0, PodEnd::Stopped(_)));
}

#[tokio::test]
async fn a_hung_pod_is_found_and_a_slow_one_left_alone() {
    let mut shop = Workshop::new();
    let limit = Duration::from_millis(700);
    let voice = shop.patient(Spec { heartbeat_timeout: Some(limit), ..Spec::default() }).await;
    for _ in 0..6 {
        tokio::time::sleep(limit / 2).await;
        assert_eq!(voice.say("kind=heartbeat", "").await.0, StatusCode::OK);
    }
    let last_heard = Instant::now();
    assert_eq!(shop.end().await.0, PodEnd::Silent(limit));
    assert!(last_heard.elapsed() >= limit - Duration::from_millis(50));
}

#[tokio::test]
async fn an_attempt_finds_what_was_saved_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (done, finished) = std::sync::mpsc::channel();
    let (store, _) = Store::open(dir.path(), None, Timestamp(1), move |told| done.send(told).unwrap()).unwrap();
    let saved = Blob::new((0..600_000_u32).map(|n| n as u8).collect::<Vec<_>>());
    store.commit(Commit { number: 1, put_blobs: vec![saved.clone()], ..Commit::default() }).unwrap();
    assert_eq!(finished.recv_timeout(PATIENCE).unwrap().result, Ok(()));
    let (damaged, _) = mpsc::unbounded_channel();
    let reader = store.blob_reader(damaged);

    let mut shop = Workshop::with(|config| config.blobs = Some(reader.clone()));
    shop.start(
        script("cat $FLOCKWORK_CHECKPOINT_FILE | cksum; cksum < $FLOCKWORK_CHECKPOINT_FILE > sum"),
        Some(&saved),
    );
    let (end, left) = shop.end().await;
    assert_eq!(end, PodEnd::Exited(Exit::Code(0)));
    let (_, told) = left.stdout.unwrap();
    assert!(told.bytes().ends_with(b" 600000\n"), "{told:?}");

    // One that is not there is this node's fault, not the job's.
    shop.start(script("true"), Some(&Blob::new("another")));
    let (end, _) = shop.end().await;
    assert!(matches!(&end, PodEnd::Unable { reason } if reason.contains("checkpoint")), "{end:?}");
    drop(reader);
    store.close();
}

#[tokio::test]
async fn handlers_have_the_same_voice() {
    let mut handlers = Handlers::new();
    handlers.register("work", async |context| {
        assert_eq!(context.checkpoint, None);
        context.report.heartbeat()?;
        context.report.progress(0.5, "half")?;
        assert!(matches!(context.report.progress(2.0, ""), Err(ReportError::Invalid { field: "fraction", .. })));
        let receipt = context.report.checkpoint("half of it").await?;
        assert_eq!(receipt.stored, 2);
        assert_eq!(context.report.result("all of it").await?.stored, 3);
        Ok(())
    });
    let mut shop = Workshop::with(|config| config.handlers = handlers);
    let spec = Spec { driver: Driver::Handler, handler: Some("work".into()), ..Spec::default() };
    shop.start(spec, None);
    assert!(matches!(shop.report().await, PodReport::Progress(progress) if progress.permille == 500));
    let PodReport::Checkpoint { answer, blob, .. } = shop.report().await else { panic!("a checkpoint") };
    assert_eq!(blob, Blob::new("half of it"));
    shop.executor.answer_pod(answer, safe(2));
    let PodReport::Result { answer, .. } = shop.report().await else { panic!("a result") };
    shop.executor.answer_pod(answer, safe(3));
    let (end, left) = shop.end().await;
    assert_eq!((end, left.result), (PodEnd::Exited(Exit::Code(0)), Some(Blob::new("all of it"))));
}
