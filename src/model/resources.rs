//! What machines have, what jobs ask for, and whether the one fits into the other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Thousandths of a processor. People write processors: `0.5`, `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cpus {
    /// Thousandths.
    pub millis: u32,
}

impl Cpus {
    /// Whole processors.
    pub fn whole(cpus: u32) -> Self {
        Self { millis: cpus.saturating_mul(1_000) }
    }

    fn from_f64(cpus: f64) -> Result<Self, String> {
        let millis = cpus * 1_000.0;
        if millis.is_finite() && (0.0..=f64::from(u32::MAX)).contains(&millis) {
            Ok(Self { millis: millis.round() as u32 })
        } else {
            Err(format!("{cpus} is not a number of processors: it must be zero or more, for instance 0.5"))
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.millis) / 1_000.0)
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cpus: f64 =
            text.parse().map_err(|_| format!("`{text}` is not a number of processors, such as 0.5 or 2"))?;
        Self::from_f64(cpus)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            (f64::from(self.millis) / 1_000.0).serialize(serializer)
        } else {
            self.millis.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            Self::from_f64(f64::deserialize(deserializer)?).map_err(de::Error::custom)
        } else {
            u32::deserialize(deserializer).map(|millis| Self { millis })
        }
    }
}

/// An amount of memory in bytes. People write `512MiB`, `2GB` or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Memory {
    /// Bytes.
    pub bytes: u64,
}

const MEMORY_UNITS: [(&str, u64); 11] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
];

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary =
            MEMORY_UNITS[..4].iter().rev().find(|(_, size)| self.bytes >= *size && self.bytes.is_multiple_of(*size));
        match binary {
            Some((unit, size)) => write!(f, "{}{unit}", self.bytes / size),
            None => write!(f, "{}B", self.bytes),
        }
    }
}

impl Memory {
    /// For people who need not know it to the byte: `23.5GiB`.
    pub fn rounded(self) -> String {
        match MEMORY_UNITS[..4].iter().rev().find(|(_, size)| self.bytes >= *size) {
            Some((unit, size)) if !self.bytes.is_multiple_of(*size) => {
                format!("{:.1}{unit}", self.bytes as f64 / *size as f64)
            }
            _ => self.to_string(),
        }
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an amount of memory, such as 512MiB, 2GB or a number of bytes");
        let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..number_end], text[number_end..].trim_start());
        let size = match unit {
            "" | "B" => 1,
            _ => MEMORY_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * size as f64;
        if bytes.is_finite() && bytes < 2f64.powi(63) { Ok(Self { bytes: bytes as u64 }) } else { Err(wrong()) }
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.bytes.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(|bytes| Self { bytes });
        }
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "an amount of memory: \"512MiB\" or a number of bytes")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self { bytes }),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// An amount of everything that is counted: a machine's capacity, or a job's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Processors.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Memory,
    /// Places for jobs; what a machine can run side by side, whatever else it has.
    pub slots: u32,
}

impl Resources {
    /// Whether `need` fits into this much free room.
    pub fn fits(&self, need: &Self) -> bool {
        need.cpus <= self.cpus && need.memory <= self.memory && need.slots <= self.slots
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, more: &Self) -> Self {
        Self {
            cpus: Cpus { millis: self.cpus.millis.saturating_add(more.cpus.millis) },
            memory: Memory { bytes: self.memory.bytes.saturating_add(more.memory.bytes) },
            slots: self.slots.saturating_add(more.slots),
        }
    }

    /// What is left of this when `used` is taken away; never below nothing.
    #[must_use]
    pub fn minus(&self, used: &Self) -> Self {
        Self {
            cpus: Cpus { millis: self.cpus.millis.saturating_sub(used.cpus.millis) },
            memory: Memory { bytes: self.memory.bytes.saturating_sub(used.memory.bytes) },
            slots: self.slots.saturating_sub(used.slots),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_people_write_it() {
        let bytes = |text: &str| text.parse::<Memory>().map(|m| m.bytes);
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("4096"), Ok(4_096));
        assert!(bytes("-1").is_err());
        assert!(bytes("1 elephant").is_err());
        assert!(bytes("").is_err());
        assert_eq!(Memory { bytes: 3 << 20 }.to_string(), "3MiB");
        assert_eq!(Memory { bytes: 1_000 }.to_string(), "1000B");
    }

    #[test]
    fn a_request_fits_only_if_every_part_does() {
        let free = Resources { cpus: Cpus::whole(2), memory: Memory { bytes: 100 }, slots: 1 };
        assert!(free.fits(&Resources { cpus: Cpus::whole(2), memory: Memory { bytes: 100 }, slots: 1 }));
        assert!(!free.fits(&Resources { slots: 2, ..Resources::default() }));
        assert!(!free.fits(&Resources { cpus: Cpus { millis: 2_001 }, ..Resources::default() }));
        assert!("-0.5".parse::<Cpus>().is_err());
    }
}
