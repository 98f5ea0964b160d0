//! Bytes that belong to a record and are too large to be in it: checkpoints, results, the ends of logs.
//!
//! Think of luggage labels. A record carries the label ([`BlobRef`]): the hash of the content, and its size. The
//! luggage ([`Blob`]) travels beside it, and cannot be mistaken for another piece, because whoever holds it can
//! work out its label anew. So blobs need no versions and no merging: one label is one content, for ever.
//!
//! What always holds: a [`Blob`]'s reference is that of its bytes. There is no way to make one otherwise, not
//! even by reading it from the wire.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The largest checkpoint, in bytes.
pub const MAX_CHECKPOINT_BYTES: u64 = 16 << 20;

/// The largest result, in bytes.
pub const MAX_RESULT_BYTES: u64 = 64 << 10;

/// How much of the end of each of an attempt's two outputs is kept with the record, in bytes.
pub const MAX_TAIL_BYTES: u64 = 16 << 10;

/// The name of a content: its BLAKE3 hash. 64 hexadecimal digits for people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…")
    }
}

/// Why a text names no content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a blob, which has 64 hexadecimal digits")]
pub struct ParseBlobIdError;

impl FromStr for BlobId {
    type Err = ParseBlobIdError;

    fn from_str(text: &str) -> Result<Self, ParseBlobIdError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| ParseBlobIdError)?;
        bytes.try_into().map(Self).map_err(|_| ParseBlobIdError)
    }
}

impl Serialize for BlobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(de::Error::custom);
        }
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        bytes.into_vec().try_into().map(Self).map_err(|_| de::Error::custom("a blob's name has 32 bytes"))
    }
}

/// What a record says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Its name.
    pub id: BlobId,
    /// Its size in bytes.
    pub size: u64,
}

/// A content with its name. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    reference: BlobRef,
    bytes: Bytes,
}

impl Blob {
    /// Names `bytes`.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let id = BlobId(*blake3::hash(&bytes).as_bytes());
        Self { reference: BlobRef { id, size: bytes.len() as u64 }, bytes }
    }

    /// What a record says of it.
    pub fn reference(&self) -> BlobRef {
        self.reference
    }

    /// Its name.
    pub fn id(&self) -> BlobId {
        self.reference.id
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.reference.size
    }

    /// The content.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("id", &self.reference.id).field("size", &self.reference.size).finish()
    }
}

/// Only the content is written: the name follows from it.
impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let blob = Blob::new(&b"state"[..]);
        assert_eq!(blob.id().to_string().parse(), Ok(blob.id()));
        assert_eq!("xy".parse::<BlobId>(), Err(ParseBlobIdError));
        assert!(blob.id().to_string()[2..].parse::<BlobId>().is_err());
        let packed = rmp_serde::to_vec_named(&blob.reference()).unwrap();
        assert_eq!(rmp_serde::from_slice::<BlobRef>(&packed).unwrap(), blob.reference());
    }

    #[test]
    fn what_comes_from_the_wire_has_the_name_of_what_it_is() {
        let blob = Blob::new(&b"state"[..]);
        let mut packed = rmp_serde::to_vec_named(&blob).unwrap();
        assert_eq!(rmp_serde::from_slice::<Blob>(&packed).unwrap(), blob);
        if let Some(last) = packed.last_mut() {
            *last ^= 1;
        }
        assert_ne!(rmp_serde::from_slice::<Blob>(&packed).unwrap().id(), blob.id());
    }
}
