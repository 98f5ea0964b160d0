//! What was asked: a command and the conditions it runs under. Written once, never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::config::SHORTEST_RETENTION;
use super::resources::{Cpus, Memory, Resources};
use super::time::duration;

/// The longest a job may say that it wants to wait or run: a hundred years, so that sums stay finite.
pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// The largest spec, in bytes of its JSON form; standard input counts.
pub const MAX_SPEC_BYTES: usize = 1 << 20;

/// A field that cannot be what it is, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct InvalidField {
    /// The field's name as users write it.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl InvalidField {
    /// Names `field` and says what would be right.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// What runs a job's attempts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A program of the machine, as a process group.
    #[default]
    Process,
    /// A container of the machine's Docker daemon.
    Container,
    /// An async Rust function that the embedding program registered.
    Handler,
}

impl Driver {
    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Handler => "handler",
        }
    }
}

/// When the image of a container is fetched from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// Where the node's daemon does not have it yet.
    #[default]
    Missing,
    /// Before every attempt: the newest of its tag.
    Always,
    /// Not at all: it must be there.
    Never,
}

/// How many synced copies a submit waits for before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// One copy.
    One,
    /// A majority of the replicas.
    #[default]
    Majority,
    /// Every replica.
    All,
}

/// What a job does where a majority of the members is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnPartition {
    /// It goes on; what ran on both sides is reported after they have met again.
    #[default]
    Run,
    /// Nothing is started, and what runs is ended: at most one side of a partition runs it.
    Pause,
}

/// What a process can be kept from taking too much of, by `setrlimit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Memory that one process may map, in bytes.
    AddressSpace,
    /// What a process that crashes may leave of its memory, in bytes.
    CoreSize,
    /// Processor time of one process, in seconds.
    CpuTime,
    /// The largest file that may be written, in bytes.
    FileSize,
    /// Files that one process may have open.
    OpenFiles,
    /// Processes and threads that the pod's user may have on the machine, in all. Does not hold for root.
    Processes,
}

impl Limit {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::AddressSpace, Self::CoreSize, Self::CpuTime, Self::FileSize, Self::OpenFiles, Self::Processes];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressSpace => "address_space",
            Self::CoreSize => "core_size",
            Self::CpuTime => "cpu_time",
            Self::FileSize => "file_size",
            Self::OpenFiles => "open_files",
            Self::Processes => "processes",
        }
    }
}

/// How long to wait before the next attempt after a failed one. Grows by `factor` up to `max`; a random part
/// of up to a quarter is taken off, so that jobs that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Backoff {
    /// The first wait.
    #[serde(with = "duration")]
    #[schema(value_type = String, example = "1s")]
    pub initial: Duration,
    /// What each further wait is multiplied by.
    pub factor: f64,
    /// The longest wait.
    #[serde(with = "duration")]
    #[schema(value_type = String, example = "1m")]
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), factor: 2.0, max: Duration::from_secs(60) }
    }
}

impl Backoff {
    /// The wait after `failures` failed attempts, before the random part is taken off.
    pub fn wait_after(&self, failures: u32) -> Duration {
        let grown = self.initial.as_secs_f64() * self.factor.powi(failures.saturating_sub(1).min(1_000) as i32);
        if grown.is_finite() { self.max.min(Duration::from_secs_f64(grown.min(1e9))) } else { self.max }
    }
}

/// What a job reads from its standard input. Text where it is text, `{"base64": …}` where it is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Stdin(pub Vec<u8>);

/// A job as it was asked for.
///
/// On the wire and on disk unknown fields are passed over, so that a newer peer may send more; what a client
/// sends is checked for unknown fields where it comes in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Spec {
    /// The program and its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["sh", "-c", "echo hi"]))]
    pub command: Vec<String>,
    /// For people; need not be unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The directory to run in, on the node that runs it; a directory of the attempt's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Who it runs as: a user's name, or `UID` or `UID:GID` in numbers. The node's own user by default; only a node that
    /// runs as root can be another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Which rights new files do not get, in octal; the node's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "027")]
    pub umask: Option<String>,
    /// What each of its processes is kept from taking too much of.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, u64>)]
    pub limits: BTreeMap<Limit, u64>,
    /// Standard input; empty by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub stdin: Option<Stdin>,
    /// Processors to set aside.
    #[serde(skip_serializing_if = "is_default")]
    #[schema(value_type = f64)]
    pub cpus: Cpus,
    /// Memory to set aside.
    #[serde(skip_serializing_if = "is_default")]
    #[schema(value_type = String, example = "512MiB")]
    pub memory: Memory,
    /// Slots to take.
    pub slots: u32,
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<String, String>,
    /// How long one attempt may run.
    #[serde(skip_serializing_if = "Option::is_none", with = "duration::option")]
    #[schema(value_type = Option<String>, example = "1m30s")]
    pub timeout: Option<Duration>,
    /// How long an attempt may say nothing of itself (no heartbeat, progress, checkpoint or result) before it
    /// counts as hung, is stopped and has failed.
    #[serde(skip_serializing_if = "Option::is_none", with = "duration::option")]
    #[schema(value_type = Option<String>, example = "30s")]
    pub heartbeat_timeout: Option<Duration>,
    /// How long the job may wait for its first attempt.
    #[serde(skip_serializing_if = "Option::is_none", with = "duration::option")]
    #[schema(value_type = Option<String>)]
    pub queue_timeout: Option<Duration>,
    /// How long the job may take in all, waits and every attempt included.
    #[serde(skip_serializing_if = "Option::is_none", with = "duration::option")]
    #[schema(value_type = Option<String>)]
    pub total_timeout: Option<Duration>,
    /// How many failed attempts are followed by another.
    pub retries: u32,
    /// The waits between them.
    #[serde(skip_serializing_if = "is_default")]
    pub backoff: Backoff,
    /// Exit codes that are not worth another attempt.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub no_retry_on: BTreeSet<i32>,
    /// How many attempts may be lost with their node; one more, and the job counts as failed.
    pub lost_limit: u32,
    /// Idempotency key: the same key and spec are the same job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How long to wait before the first attempt.
    #[serde(skip_serializing_if = "Option::is_none", with = "duration::option")]
    #[schema(value_type = Option<String>)]
    pub delay: Option<Duration>,
    /// How long the job is known after its end; nothing: as long as the nodes keep jobs (`--retention`).
    #[serde(skip_serializing_if = "Option::is_none", with = "duration::option")]
    #[schema(value_type = Option<String>)]
    pub ttl: Option<Duration>,
    /// Higher runs first among the jobs that wait on one node.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: i32,
    /// How many synced copies the acknowledgement waits for.
    pub durability: Durability,
    /// What it does where a majority of the members is out of reach.
    #[serde(skip_serializing_if = "is_default")]
    pub on_partition: OnPartition,
    /// What runs it.
    pub driver: Driver,
    /// The image to run, for driver `container`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "debian:bookworm-slim")]
    pub image: Option<String>,
    /// When the image is fetched.
    #[serde(skip_serializing_if = "is_default")]
    pub pull: Pull,
    /// The handler's name, for driver `handler`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// What the handler is given.
    #[serde(skip_serializing_if = "Option::is_none", with = "json_text")]
    #[schema(value_type = Option<Object>)]
    pub payload: Option<serde_json::Value>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            name: None,
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            umask: None,
            limits: BTreeMap::new(),
            stdin: None,
            cpus: Cpus::default(),
            memory: Memory::default(),
            slots: 1,
            require: BTreeMap::new(),
            timeout: None,
            heartbeat_timeout: None,
            queue_timeout: None,
            total_timeout: None,
            retries: 0,
            backoff: Backoff::default(),
            no_retry_on: BTreeSet::new(),
            lost_limit: 5,
            key: None,
            delay: None,
            ttl: None,
            priority: 0,
            durability: Durability::default(),
            on_partition: OnPartition::default(),
            driver: Driver::default(),
            image: None,
            pull: Pull::default(),
            handler: None,
            payload: None,
        }
    }
}

impl Spec {
    /// Whether anything is to happen, or to end, when the job has been known for long enough.
    pub fn waits_for_a_time(&self) -> bool {
        self.delay.is_some() || self.queue_timeout.is_some() || self.total_timeout.is_some()
    }

    /// What the job takes of the node that runs it.
    pub fn need(&self) -> Resources {
        Resources { cpus: self.cpus, memory: self.memory, slots: self.slots }
    }

    /// The umask as a number; nothing where there is none, or it is not one.
    pub fn umask_bits(&self) -> Option<u32> {
        let text = self.umask.as_ref().filter(|text| !text.is_empty() && text.len() <= 4)?;
        u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777)
    }

    /// For people: the name, or else the command.
    pub fn title(&self) -> String {
        match (&self.name, &self.handler, &self.image) {
            (Some(name), _, _) => name.clone(),
            (None, Some(handler), _) => handler.clone(),
            (None, None, Some(image)) if self.command.is_empty() => image.clone(),
            (None, None, _) => self.command.join(" "),
        }
    }

    /// Checks everything that can be checked without knowing the cluster.
    ///
    /// # Errors
    /// The first field that cannot be what it is, and what would be right.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let wrong = |field: &str, message: &str| Err(InvalidField::new(field, message));
        match self.driver {
            Driver::Process => {
                if self.command.first().is_none_or(String::is_empty) {
                    return wrong("command", "must name a program, for instance [\"echo\", \"hi\"]");
                }
                if self.handler.is_some() || self.payload.is_some() {
                    return wrong("handler", "and payload go with \"driver\": \"handler\"");
                }
            }
            Driver::Container => {
                let image = self.image.as_deref().unwrap_or_default();
                if image.is_empty() || image.len() > 512 || !image.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return wrong("image", "must name the image to run, for instance \"debian:bookworm-slim\"");
                }
                if self.command.first().is_some_and(String::is_empty) {
                    return wrong("command", "must name a program of the image, or be absent: the image's own then");
                }
                if self.handler.is_some() || self.payload.is_some() {
                    return wrong("handler", "and payload go with \"driver\": \"handler\"");
                }
                if self.umask.is_some() {
                    return wrong("umask", "goes with \"driver\": \"process\": Docker cannot set one");
                }
            }
            Driver::Handler => {
                if self.handler.as_ref().is_none_or(String::is_empty) {
                    return wrong("handler", "must name the function to run");
                }
                if !self.command.is_empty() {
                    return wrong("command", "goes with \"driver\": \"process\", not with a handler");
                }
            }
        }
        if self.driver != Driver::Container && (self.image.is_some() || self.pull != Pull::default()) {
            return wrong("image", "and pull go with \"driver\": \"container\"");
        }
        if self.command.iter().any(|argument| argument.contains('\0')) {
            return wrong("command", "must not contain a NUL character");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return wrong("env", "names must not be empty or contain '=', and nothing may contain NUL");
            }
        }
        if self.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/') || cwd.contains('\0')) {
            return wrong("cwd", "must be an absolute path: the job may run on any node");
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.len() > 256 || user.contains(['\0', '\n'])) {
            return wrong("user", "must be a user's name, or UID or UID:GID in numbers");
        }
        if self.umask.is_some() && self.umask_bits().is_none() {
            return wrong("umask", "must be up to four octal digits, for instance 027");
        }
        if self.driver == Driver::Handler && (self.user.is_some() || self.umask.is_some() || !self.limits.is_empty()) {
            return wrong(
                "limits",
                "user and umask go with \"driver\": \"process\": a handler runs inside of its node",
            );
        }
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 256) {
            return wrong("name", "must have 1 to 256 bytes");
        }
        if self.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 256) {
            return wrong("key", "must have 1 to 256 bytes");
        }
        if self.slots == 0 {
            return wrong("slots", "must be 1 or more");
        }
        if self.retries > 1_000_000 {
            return wrong("retries", "must be at most 1000000");
        }
        for (field, value) in [
            ("timeout", self.timeout),
            ("heartbeat_timeout", self.heartbeat_timeout),
            ("queue_timeout", self.queue_timeout),
            ("total_timeout", self.total_timeout),
        ] {
            if value.is_some_and(|timeout| timeout.is_zero()) {
                return wrong(field, "must be longer than zero");
            }
        }
        for (field, value) in [
            ("timeout", self.timeout),
            ("heartbeat_timeout", self.heartbeat_timeout),
            ("queue_timeout", self.queue_timeout),
            ("total_timeout", self.total_timeout),
            ("delay", self.delay),
            ("ttl", self.ttl),
            ("backoff.initial", Some(self.backoff.initial)),
            ("backoff.max", Some(self.backoff.max)),
        ] {
            if value.is_some_and(|duration| duration > MAX_DURATION) {
                return wrong(field, "must be at most a hundred years");
            }
        }
        if self.ttl.is_some_and(|ttl| ttl < SHORTEST_RETENTION) {
            return wrong("ttl", "must be at least 10m, or a copy that is still on its way would find the job gone");
        }
        if self.no_retry_on.iter().any(|code| !(0..=255).contains(code)) {
            return wrong("no_retry_on", "must hold exit codes, which are from 0 to 255");
        }
        if !(1.0..=1_000.0).contains(&self.backoff.factor) {
            return wrong("backoff.factor", "must be from 1 to 1000");
        }
        Ok(())
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Serialize for Stdin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.0);
        }
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Base64Bytes { base64: data_encoding::BASE64.encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Stdin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Self(bytes.into_vec()));
        }
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "text, or {\"base64\": \"…\"} for bytes")]
        enum Written {
            Text(String),
            Bytes(Base64Bytes),
        }
        match Written::deserialize(deserializer)? {
            Written::Text(text) => Ok(Self(text.into_bytes())),
            Written::Bytes(Base64Bytes { base64 }) => data_encoding::BASE64
                .decode(base64.as_bytes())
                .map(Self)
                .map_err(|error| de::Error::custom(format!("not base64: {error}"))),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64Bytes {
    base64: String,
}

/// A JSON value inside a MessagePack document, as its text: MessagePack could not tell some values apart.
mod json_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
    use serde_json::Value;

    pub(super) fn serialize<S: Serializer>(value: &Option<Value>, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return value.serialize(serializer);
        }
        let text = value.as_ref().map(serde_json::to_string).transpose().map_err(ser::Error::custom)?;
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
        if deserializer.is_human_readable() {
            return Option::<Value>::deserialize(deserializer);
        }
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| serde_json::from_str(&text)).transpose().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> Spec {
        Spec { command: vec!["echo".into(), "hi".into()], ..Spec::default() }
    }

    #[track_caller]
    fn refused_field(spec: &Spec) -> String {
        spec.validate().unwrap_err().field
    }

    #[test]
    fn what_cannot_run_is_refused_by_field() {
        assert_eq!(echo().validate(), Ok(()));
        assert_eq!(refused_field(&Spec::default()), "command");
        assert_eq!(refused_field(&Spec { slots: 0, ..echo() }), "slots");
        assert_eq!(refused_field(&Spec { timeout: Some(Duration::ZERO), ..echo() }), "timeout");
        assert_eq!(refused_field(&Spec { cwd: Some("here".into()), ..echo() }), "cwd");
        assert_eq!(refused_field(&Spec { env: [("a=b".into(), String::new())].into(), ..echo() }), "env");
        assert_eq!(refused_field(&Spec { driver: Driver::Handler, ..echo() }), "handler");
        assert_eq!(refused_field(&Spec { driver: Driver::Container, ..echo() }), "image");
        assert_eq!(refused_field(&Spec { image: Some("box:1".into()), ..echo() }), "image");
        assert_eq!(refused_field(&Spec { pull: Pull::Never, ..echo() }), "image");
        let boxed = Spec { driver: Driver::Container, image: Some("box:1".into()), ..echo() };
        assert_eq!(boxed.validate(), Ok(()));
        assert_eq!(Spec { command: Vec::new(), ..boxed.clone() }.validate(), Ok(()), "the image has a command");
        assert_eq!(refused_field(&Spec { umask: Some("027".into()), ..boxed.clone() }), "umask");
        assert_eq!(refused_field(&Spec { image: Some("a box".into()), ..boxed }), "image");
        let backoff = Backoff { factor: f64::NAN, ..Backoff::default() };
        assert_eq!(refused_field(&Spec { backoff, ..echo() }), "backoff.factor");
    }

    #[test]
    fn a_spec_survives_both_encodings() {
        let spec = Spec {
            stdin: Some(Stdin(vec![0xff, 0, 1])),
            timeout: Some(Duration::from_millis(1_500)),
            memory: "512MiB".parse().unwrap(),
            payload: Some(serde_json::json!({"a": [1, 2.5, null]})),
            ..echo()
        };
        let packed = rmp_serde::to_vec_named(&spec).unwrap();
        assert_eq!(rmp_serde::from_slice::<Spec>(&packed).unwrap(), spec);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert!(text.contains("\"timeout\":\"1s 500ms\""), "{text}");
        assert!(text.contains("\"base64\""), "{text}");
    }

    #[test]
    fn waits_grow_to_their_limit() {
        let backoff = Backoff::default();
        assert_eq!(backoff.wait_after(1), Duration::from_secs(1));
        assert_eq!(backoff.wait_after(3), Duration::from_secs(4));
        assert_eq!(backoff.wait_after(u32::MAX), backoff.max);
    }
}
