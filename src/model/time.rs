//! Time as the lower floors know it: told, never asked.
//!
//! Two clocks are kept apart. A [`Moment`] is monotonic, local to one process, and decides when something
//! is due. A [`Timestamp`] is wall time, may be hours wrong, and is only ever shown to people.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point of the local monotonic clock, told from the start of this process (or this simulation).
///
/// The start itself lies well above zero, so that what happened before it has a moment too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(
    /// Nanoseconds: five hundred years of them, in half the room that a `Duration` takes. There are many.
    u64,
);

impl Default for Moment {
    fn default() -> Self {
        Self::START
    }
}

impl Moment {
    /// The start of the process.
    pub const START: Self = Self(10 * 365 * 24 * 3_600 * 1_000_000_000);

    /// The moment `since_start` after the process began.
    pub fn from_start(since_start: Duration) -> Self {
        Self::START + since_start
    }

    /// How long the process had run at this moment.
    pub fn since_start(self) -> Duration {
        self.since(Self::START)
    }

    /// The moment in six bytes: one that is at most 65.536 µs earlier.
    pub fn to_coarse(self) -> CoarseMoment {
        let [a, b, c, d, e, f, _, _] = self.0.to_be_bytes();
        CoarseMoment([a, b, c, d, e, f])
    }

    /// Time passed from `earlier` to this moment; zero where `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A [`Moment`] to the next lower step of 65.536 µs, in three quarters of the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoarseMoment([u8; 6]);

impl CoarseMoment {
    /// None is later.
    pub const LAST: Self = Self([u8::MAX; 6]);

    /// As a moment like others.
    pub fn moment(self) -> Moment {
        let [a, b, c, d, e, f] = self.0;
        Moment(u64::from_be_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// The next step.
    pub fn after(self) -> Self {
        Moment(self.moment().0.saturating_add(1 << 16)).to_coarse()
    }
}

/// A duration as a number; what is longer than there are moments ends with the last of them.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(nanos(after)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(before)))
    }
}

/// Wall time, in milliseconds since 1970. RFC 3339 for people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since 1970.
    pub fn unix_ms(self) -> u64 {
        self.0
    }

    /// The hour it lies in, counted from 1970.
    pub fn hour(self) -> u32 {
        u32::try_from(self.0 / 3_600_000).unwrap_or(u32::MAX)
    }

    /// Time passed from `earlier` until this; zero where clocks disagree so far that it would be negative.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
            Some(time) => write!(f, "{time:.3}"),
            None => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        u64::try_from(time.as_millisecond()).map(Self).map_err(|_| de::Error::custom("times before 1970 are not used"))
    }
}

/// Both clocks at one instant. The first argument of everything that acts on time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// What decides.
    pub moment: Moment,
    /// What is shown.
    pub wall: Timestamp,
}

impl Now {
    /// What the wall clock would have shown at an earlier moment, had it gone then as it goes now.
    pub fn wall_at(self, earlier: Moment) -> Timestamp {
        let ago = u64::try_from(self.moment.since(earlier).as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.wall.0.saturating_sub(ago))
    }
}

/// (De)serialises a duration: "1m30s" or a number of seconds for people; for machines milliseconds, or seconds and
/// nanoseconds where these are not whole. Nothing is rounded: what a node reads must be what another has in memory.
/// For a field, `#[serde(with = "time::duration")]`.
pub mod duration {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, de, fmt};

    /// Writes `duration`.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&humantime::format_duration(*duration))
        } else if duration.subsec_nanos().is_multiple_of(1_000_000)
            && let Ok(ms) = u64::try_from(duration.as_millis())
        {
            ms.serialize(serializer)
        } else {
            (duration.as_secs(), duration.subsec_nanos()).serialize(serializer)
        }
    }

    /// Reads a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(Visitor)
        } else {
            deserializer.deserialize_any(NumberVisitor)
        }
    }

    /// Reads "1m30s", "90" or "1.5".
    ///
    /// # Errors
    /// Says what would be right.
    pub fn parse(text: &str) -> Result<Duration, String> {
        if let Ok(seconds) = text.parse::<f64>() {
            return from_seconds(seconds);
        }
        humantime::parse_duration(text)
            .map_err(|_| format!("`{text}` is not a duration: write \"1m30s\", \"500ms\" or a number of seconds"))
    }

    fn from_seconds(seconds: f64) -> Result<Duration, String> {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("{seconds} is not a duration: it must be zero or more, in seconds"))
    }

    /// Of what [`serialize`] writes for machines.
    struct NumberVisitor;

    impl<'de> de::Visitor<'de> for NumberVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("milliseconds, or seconds and nanoseconds")
        }

        fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Duration, E> {
            Ok(Duration::from_millis(ms))
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut parts: A) -> Result<Duration, A::Error> {
            let missing = |at| de::Error::invalid_length(at, &self);
            let secs: u64 = parts.next_element()?.ok_or_else(|| missing(0))?;
            let nanos: u32 = parts.next_element()?.ok_or_else(|| missing(1))?;
            // The sum is refused rather than made in a way that panics.
            let whole = Duration::from_secs(secs).checked_add(Duration::from_nanos(nanos.into()));
            whole.ok_or_else(|| de::Error::custom("longer than any duration"))
        }
    }

    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration: \"1m30s\" or a number of seconds")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_secs(seconds))
        }

        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
            from_seconds(seconds as f64).map_err(E::custom)
        }

        fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Duration, E> {
            from_seconds(seconds).map_err(E::custom)
        }
    }

    /// The same for a field that may be absent: `#[serde(default, with = "time::duration::option")]`.
    pub mod option {
        use super::{Deserialize, Deserializer, Duration, Serializer};

        #[derive(Deserialize)]
        struct Wrapped(#[serde(with = "super")] Duration);

        /// Writes the duration, or null.
        pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => super::serialize(duration, serializer),
                None => serializer.serialize_none(),
            }
        }

        /// Reads a duration, or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_text_or_seconds_and_never_negative() {
        assert_eq!(duration::parse("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration::parse("1.5"), Ok(Duration::from_millis(1_500)));
        assert!(duration::parse("-1").is_err());
        assert!(duration::parse("soon").is_err());
        assert!(duration::parse("NaN").is_err());
        assert!(duration::parse("1e300").is_err());
    }

    #[test]
    fn machines_are_told_durations_to_the_nanosecond() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Told(#[serde(with = "duration")] Duration);
        for nanos in [0, 1, 999_999, 1_000_000, 1_500_000_000, 1_500_000_001] {
            let told = Told(Duration::from_nanos(nanos));
            let packed = rmp_serde::to_vec_named(&told).unwrap();
            assert_eq!(rmp_serde::from_slice::<Told>(&packed).unwrap(), told);
        }
        let longest = rmp_serde::to_vec_named(&Told(Duration::MAX)).unwrap();
        assert_eq!(rmp_serde::from_slice::<Told>(&longest).unwrap(), Told(Duration::MAX));
        let too_long = rmp_serde::to_vec(&(u64::MAX, u32::MAX)).unwrap();
        assert!(rmp_serde::from_slice::<Told>(&too_long).is_err());
    }

    #[test]
    fn a_timestamp_is_rfc_3339_for_people_and_a_number_for_machines() {
        let time = Timestamp(1_700_000_000_123);
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2023-11-14T22:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>("\"2023-11-14T22:13:20.123Z\"").unwrap(), time);
        let packed = rmp_serde::to_vec_named(&time).unwrap();
        assert_eq!(rmp_serde::from_slice::<Timestamp>(&packed).unwrap(), time);
    }
}
