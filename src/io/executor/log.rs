//! What pods write, kept on disk: the newest bytes of each output, and where they stand in the whole.
//!
//! Picture an endless tape per output of which only the newest end is kept. Every byte that was ever written
//! has its offset on the tape. The tape is kept in segments, files named by the offset of their first byte
//! (`stdout.0`, `stdout.33554432`); when a segment has half of the limit a new one is begun, and the oldest
//! goes. So at least half of the limit and at most all of it is there, and a directory alone says what was
//! kept and where it belongs: an attempt of an earlier start of the node is read exactly like one that runs.
//!
//! A log promises nothing about a machine that loses power: it is never synced. A disk that takes no more
//! costs the bytes it did not take, which leaves a gap in the offsets, and nothing else: the pod's output is
//! read on, so that the pod does not stand still.
//!
//! It does not know what writes or who reads. Writing and reading files blocks; the async functions here move
//! that to threads made for it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::wire::{LogChunk, Stream};

/// The most that one answer carries, whatever was asked for.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// How often a read is tried again when the segment was rotated away between the look and the read.
const MAX_RACES: usize = 16;

/// One output of one attempt.
#[derive(Debug)]
pub(super) struct StreamLog {
    dir: PathBuf,
    stream: Stream,
    /// How much of the newest output is kept.
    limit_bytes: u64,
    /// Held while a file is written to, which may take long. Never taken while `index` is held.
    writer: Mutex<Option<SegmentWriter>>,
    /// What there is. Held for moments only: async readers take it.
    index: Mutex<Index>,
    changed: Notify,
}

#[derive(Debug)]
struct SegmentWriter {
    file: File,
    room_bytes: u64,
}

#[derive(Debug, Default)]
struct Index {
    /// Oldest first. Between two of them there may be a gap that a full disk has left.
    segments: VecDeque<Segment>,
    /// How many bytes were ever written.
    end: u64,
    /// Nothing will be added any more.
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: u64,
    len: u64,
}

impl Segment {
    fn end(self) -> u64 {
        self.start + self.len
    }
}

/// What a look at the index says about a read.
enum Look {
    /// There are bytes: in this segment, from this offset on.
    Bytes(Segment, u64),
    /// There are none yet; the next will have this offset.
    Later(u64),
    /// There are none, and there will be none.
    End(u64),
}

impl StreamLog {
    /// An empty log. Its first file is made in `dir` when there is something to write.
    pub(super) fn new(dir: PathBuf, stream: Stream, limit_bytes: u64) -> Self {
        Self { dir, stream, limit_bytes, writer: Mutex::default(), index: Mutex::default(), changed: Notify::new() }
    }

    /// The log that an ended attempt has left in `dir`. Blocks.
    pub(super) fn open_ended(dir: PathBuf, stream: Stream) -> io::Result<Self> {
        let segments = segments_on_disk(&dir, stream)?;
        let end = segments.back().map_or(0, |last| last.end());
        let log = Self::new(dir, stream, 0);
        *log.index() = Index { segments, end, closed: true };
        Ok(log)
    }

    /// Adds `bytes` and wakes the readers. Blocks. What comes after [`close`](Self::close) is passed over.
    ///
    /// # Errors
    /// The disk did not take all of it; the rest is lost, and its offsets stay empty.
    pub(super) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = lock(&self.writer);
        if self.index().closed {
            return Ok(());
        }
        let outcome = self.append_with(&mut writer, bytes);
        self.changed.notify_waiters();
        outcome
    }

    fn append_with(&self, writer: &mut Option<SegmentWriter>, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = match writer {
                Some(segment) if segment.room_bytes > 0 => {
                    let most = usize::try_from(segment.room_bytes).unwrap_or(usize::MAX).min(rest.len());
                    segment.file.write(&rest[..most])
                }
                Some(_) | None => match self.begin_segment() {
                    Ok(segment) => {
                        *writer = Some(segment);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match written {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(written) if written > 0 => {
                    if let Some(segment) = writer {
                        segment.room_bytes -= written as u64;
                    }
                    self.index().grow(written as u64);
                    rest = &rest[written..];
                }
                failed => {
                    *writer = None;
                    self.index().skip(rest.len() as u64);
                    return Err(failed.err().unwrap_or_else(|| ErrorKind::WriteZero.into()));
                }
            }
        }
        Ok(())
    }

    /// Makes room, and a file for the next bytes.
    fn begin_segment(&self) -> io::Result<SegmentWriter> {
        let room_bytes = (self.limit_bytes / 2).max(1);
        let (start, dropped) = {
            let mut index = self.index();
            (index.end, index.drop_oldest(self.limit_bytes.saturating_sub(room_bytes)))
        };
        for segment in dropped {
            // One that stays costs room on the disk until the job is swept, and would be read as what it is.
            if let Err(error) = fs::remove_file(segment_path(&self.dir, self.stream, segment.start)) {
                tracing::warn!(dir = %self.dir.display(), %error, "an old part of a pod's log could not be removed");
            }
        }
        let path = segment_path(&self.dir, self.stream, start);
        // Many attempts write nothing, and need no directory either.
        let file = match File::create(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir)?;
                File::create(&path)?
            }
            outcome => outcome?,
        };
        self.index().segments.push_back(Segment { start, len: 0 });
        Ok(SegmentWriter { file, room_bytes })
    }

    /// Says that nothing will be added any more, and wakes the readers.
    pub(super) fn close(&self) {
        self.index().closed = true;
        self.changed.notify_waiters();
        // A write that is under way keeps its file until it is done; dropping the log closes it then.
        if let Ok(mut writer) = self.writer.try_lock() {
            *writer = None;
        }
    }

    /// The newest bytes, at most `limit` of them and without a gap, and where they begin; nothing if nothing is there.
    /// Blocks.
    ///
    /// # Errors
    /// The files cannot be read; of a log that is written to meanwhile, perhaps because one of them was dropped.
    pub(super) fn tail(&self, limit: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let newest: Vec<Segment> = {
            let index = self.index();
            let from = index.end.saturating_sub(limit);
            index.segments.iter().filter(|segment| segment.end() > from).copied().collect()
        };
        let from = newest.last().map_or(0, |last| last.end().saturating_sub(limit));
        let mut tail: Option<(u64, Vec<u8>)> = None;
        for segment in newest {
            let begin = segment.start.max(from);
            let bytes = self.read_segment(segment, begin, usize::try_from(limit).unwrap_or(usize::MAX))?;
            match &mut tail {
                Some((offset, all)) if *offset + all.len() as u64 == begin => all.extend(bytes),
                Some(_) | None => tail = Some((begin, bytes)),
            }
        }
        Ok(tail.filter(|(_, bytes)| !bytes.is_empty()))
    }

    /// Whether nothing was ever written to it, so that there is no file.
    pub(super) fn is_empty(&self) -> bool {
        self.end() == 0
    }

    /// How many bytes were ever written to it.
    pub(super) fn end(&self) -> u64 {
        self.index().end
    }

    /// Returns when more than `offset` bytes were written to it.
    pub(super) async fn grows_beyond(&self, offset: u64) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.end() > offset {
                return;
            }
            changed.await;
        }
    }

    /// What there is from `offset` on, `limit` bytes at the most; where there is nothing yet, waits for it until
    /// `deadline`, and then answers with nothing.
    ///
    /// # Errors
    /// For people: the files cannot be read.
    pub(super) async fn read(self: &Arc<Self>, offset: u64, limit: u32, deadline: Instant) -> Result<LogChunk, String> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_CHUNK_BYTES);
        let mut races = 0;
        loop {
            // Registered before the look, so that bytes which come between the two are not missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let look = self.index().look(offset);
            match look {
                Look::Bytes(_, from) if limit == 0 => {
                    return Ok(LogChunk { offset: from, bytes: Vec::new(), end: false });
                }
                Look::Bytes(segment, from) => {
                    let log = Arc::clone(self);
                    let read = tokio::task::spawn_blocking(move || log.read_segment(segment, from, limit));
                    match read.await.map_err(|_| "this node is shutting down".to_owned())? {
                        Ok(bytes) if !bytes.is_empty() => {
                            let end = self.index().is_end(from + bytes.len() as u64);
                            return Ok(LogChunk { offset: from, bytes, end });
                        }
                        Err(error) if error.kind() == ErrorKind::NotFound && races < MAX_RACES => races += 1,
                        Ok(_) => return Err("the log's file is shorter than it was".to_owned()),
                        Err(error) => return Err(format!("the log cannot be read: {error}")),
                    }
                }
                Look::End(at) => return Ok(LogChunk { offset: at, bytes: Vec::new(), end: true }),
                Look::Later(at) => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return Ok(LogChunk { offset: at, bytes: Vec::new(), end: false });
                    }
                }
            }
        }
    }

    fn read_segment(&self, segment: Segment, from: u64, limit: usize) -> io::Result<Vec<u8>> {
        let file = File::open(segment_path(&self.dir, self.stream, segment.start))?;
        let wanted = usize::try_from(segment.end() - from).unwrap_or(usize::MAX).min(limit);
        let mut bytes = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut bytes[filled..], from - segment.start + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }
}

impl Index {
    /// `written` bytes went to the newest segment.
    fn grow(&mut self, written: u64) {
        self.end += written;
        if let Some(last) = self.segments.back_mut() {
            last.len += written;
        }
    }

    /// `lost` bytes went nowhere. A segment that has none is forgotten; the next one with its name replaces it.
    fn skip(&mut self, lost: u64) {
        self.end += lost;
        if self.segments.back().is_some_and(|last| last.len == 0) {
            self.segments.pop_back();
        }
    }

    /// Forgets the oldest segments until at most `keep_bytes` are left, and says which they were.
    fn drop_oldest(&mut self, keep_bytes: u64) -> Vec<Segment> {
        let mut kept: u64 = self.segments.iter().map(|segment| segment.len).sum();
        let mut dropped = Vec::new();
        while kept > keep_bytes {
            let Some(oldest) = self.segments.pop_front() else { break };
            kept -= oldest.len;
            dropped.push(oldest);
        }
        dropped
    }

    fn look(&self, offset: u64) -> Look {
        match self.segments.iter().find(|segment| segment.end() > offset) {
            Some(&segment) => Look::Bytes(segment, offset.max(segment.start)),
            None if self.closed => Look::End(offset.max(self.end)),
            None => Look::Later(offset.max(self.end)),
        }
    }

    fn is_end(&self, at: u64) -> bool {
        self.closed && matches!(self.look(at), Look::End(_))
    }
}

fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

fn segment_path(dir: &Path, stream: Stream, start: u64) -> PathBuf {
    dir.join(format!("{}.{start}", stream_name(stream)))
}

fn segments_on_disk(dir: &Path, stream: Stream) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let start = name.to_str().and_then(|name| name.strip_prefix(stream_name(stream))?.strip_prefix('.'));
        let Some(start) = start.and_then(|digits| digits.parse().ok()) else { continue };
        let len = entry.metadata()?.len();
        if len > 0 && u64::checked_add(start, len).is_some() {
            segments.push(Segment { start, len });
        }
    }
    segments.sort_by_key(|segment| segment.start);
    Ok(segments.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads to the end of a closed log, and says where what was kept begins.
    async fn read_all(log: &Arc<StreamLog>) -> (u64, Vec<u8>) {
        let (mut begin, mut at, mut all) = (None, 0, Vec::new());
        loop {
            let chunk = log.read(at, 7, Instant::now()).await.unwrap();
            at = chunk.offset + chunk.bytes.len() as u64;
            begin = begin.or(Some(chunk.offset));
            all.extend(chunk.bytes);
            if chunk.end {
                return (begin.unwrap(), all);
            }
        }
    }

    #[tokio::test]
    async fn the_newest_bytes_stay_and_keep_their_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(StreamLog::new(dir.path().to_owned(), Stream::Stdout, 100));
        let written: Vec<u8> = (0..=255).cycle().take(1_030).collect();
        for part in written.chunks(33) {
            log.append(part).unwrap();
        }
        log.close();
        let (begin, kept) = read_all(&log).await;
        assert!((50..=100).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept, written[begin as usize..]);

        // Whoever finds only the directory reads the same.
        let found = StreamLog::open_ended(dir.path().to_owned(), Stream::Stdout).unwrap();
        assert_eq!(read_all(&Arc::new(found)).await, (begin, kept));
        let other = StreamLog::open_ended(dir.path().to_owned(), Stream::Stderr).unwrap();
        assert_eq!(read_all(&Arc::new(other)).await, (0, Vec::new()));
    }

    #[test]
    fn the_tail_reaches_over_files_and_not_over_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let log = StreamLog::new(dir.path().to_owned(), Stream::Stdout, 20);
        assert_eq!(log.tail(16).unwrap(), None);
        log.append(b"0123456789abcdefghijklm").unwrap();
        log.close();
        assert_eq!(log.tail(8).unwrap(), Some((15, b"fghijklm".to_vec())));
        assert_eq!(log.tail(100).unwrap(), Some((10, b"abcdefghijklm".to_vec())));

        let parent = tempfile::tempdir().unwrap();
        let in_the_way = parent.path().join("later");
        fs::write(&in_the_way, "").unwrap();
        let log = StreamLog::new(in_the_way.clone(), Stream::Stdout, 100);
        assert!(log.append(b"lost").is_err());
        fs::remove_file(in_the_way).unwrap();
        log.append(b"kept").unwrap();
        log.close();
        assert_eq!(log.tail(100).unwrap(), Some((4, b"kept".to_vec())));
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_leaves_a_gap() {
        let parent = tempfile::tempdir().unwrap();
        let in_the_way = parent.path().join("later");
        fs::write(&in_the_way, "").unwrap();
        let log = Arc::new(StreamLog::new(in_the_way.clone(), Stream::Stderr, 100));
        assert!(log.append(b"lost").is_err());
        fs::remove_file(in_the_way).unwrap();
        log.append(b"kept").unwrap();
        log.close();
        log.append(b"late").unwrap();
        assert_eq!(read_all(&log).await, (4, b"kept".to_vec()));
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_by_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(StreamLog::new(dir.path().to_owned(), Stream::Stdout, 100));
        let a_minute = Instant::now() + std::time::Duration::from_secs(60);
        let reading = log.read(0, 100, a_minute);
        let writing = async { log.append(b"hi").unwrap() };
        let (chunk, ()) = tokio::join!(reading, writing);
        assert_eq!(chunk, Ok(LogChunk { offset: 0, bytes: b"hi".to_vec(), end: false }));
        let (chunk, ()) = tokio::join!(log.read(2, 100, a_minute), async { log.close() });
        assert_eq!(chunk, Ok(LogChunk { offset: 2, bytes: Vec::new(), end: true }));
    }
}
