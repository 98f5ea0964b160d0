//! How a value looks on the disk: a byte that says which format, four that check, then MessagePack.
//!
//! The checksum (CRC-32, little endian) covers the format byte and the MessagePack. A value with fields that
//! were added later still reads, in both directions, because fields are written with their names; the format
//! byte changes only when that is not enough.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format that is written, and the newest that is read.
pub(super) const FORMAT: u8 = 1;

/// What comes before the value.
pub(super) const HEADER_BYTES: usize = 5;

/// Why stored bytes are not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// Not even a header, or no value at all.
    #[error("it is cut short")]
    Short,
    /// The bytes are not those that were written.
    #[error("its checksum is wrong")]
    Checksum,
    /// A newer program wrote it.
    #[error("it has format {0}, and this program knows up to {FORMAT}")]
    Newer(u8),
    /// The bytes are those that were written, and make no sense.
    #[error("it cannot be decoded: {0}")]
    Undecodable(String),
}

/// Packs `value` into `buffer`, in place of what was there.
pub(super) fn pack<T: Serialize>(value: &T, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&[FORMAT, 0, 0, 0, 0]);
    rmp_serde::encode::write_named(buffer, value).expect("what is stored consists of what MessagePack can write");
    let checksum = checksum(FORMAT, &buffer[HEADER_BYTES..]);
    buffer[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Packs `value` into bytes of its own.
pub(super) fn packed<T: Serialize>(value: &T) -> Vec<u8> {
    let mut buffer = Vec::new();
    pack(value, &mut buffer);
    buffer
}

/// Packs bytes as they are, in place of what was in `buffer`.
pub(super) fn pack_bytes(value: &[u8], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.push(FORMAT);
    buffer.extend_from_slice(&checksum(FORMAT, value).to_le_bytes());
    buffer.extend_from_slice(value);
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    rmp_serde::from_slice(unpack_bytes(bytes)?).map_err(|error| Unreadable::Undecodable(error.to_string()))
}

/// Reads what [`pack_bytes`] wrote.
pub(super) fn unpack_bytes(bytes: &[u8]) -> Result<&[u8], Unreadable> {
    let Some(([format, stored @ ..], value)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Unreadable::Short);
    };
    // The checksum comes first: a format byte that flipped is damage, not a newer format.
    if u32::from_le_bytes(*stored) != checksum(*format, value) {
        return Err(Unreadable::Checksum);
    }
    if *format > FORMAT {
        return Err(Unreadable::Newer(*format));
    }
    Ok(value)
}

fn checksum(format: u8, value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[format]);
    hasher.update(value);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut packed = Vec::new();
        pack(&("a value", 17), &mut packed);
        assert_eq!(unpack::<(String, u8)>(&packed), Ok(("a value".to_owned(), 17)));
        for bit in 0..packed.len() * 8 {
            let mut damaged = packed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unpack::<(String, u8)>(&damaged), Err(Unreadable::Checksum), "bit {bit}");
        }
        for end in 0..packed.len() {
            assert!(unpack::<(String, u8)>(&packed[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_newer_format_and_nonsense_are_told_apart_from_damage() {
        let packed = |format: u8, value: &[u8]| [&[format][..], &checksum(format, value).to_le_bytes(), value].concat();
        assert_eq!(unpack::<u8>(&packed(FORMAT + 1, &[1])), Err(Unreadable::Newer(FORMAT + 1)));
        assert!(matches!(unpack::<u8>(&packed(FORMAT, &[0xc1])), Err(Unreadable::Undecodable(_))));
    }
}
