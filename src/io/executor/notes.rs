//! What the guard notes of the pods that it ended, for their node to read when it moves again or is back.
//!
//! A node that stood still, or died, does not know when its pods ended; its guard does, because it ended them. So it leaves
//! a note, as a night watchman would: a small file in the node's directory, one for each start of the node, named by its
//! generation. A line is a time and a pod's mark (a leased pod that was ended because the node stood still), or a time and
//! `all` (the node was gone, and with it everything that it ran). A node that ends in order takes its file with it. So a file
//! that is there and empty tells its next start that the guard is still at it, or was ended as well.
//!
//! What always holds: a time is noted only when all that it tells of has been killed, so it is never too early.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::marker::Mark;
use crate::io::clock;
use crate::model::id::{AttemptKey, Generation};
use crate::model::time::Timestamp;

/// What stands for every pod of a start.
const ALL: &str = "all";

/// How many starts' notes are kept: those of attempts that nobody has asked about yet.
const KEPT: usize = 256;

/// How long the note of a guard that is at work is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// The notes of one node.
#[derive(Debug)]
pub(super) struct Notes {
    dir: PathBuf,
    generation: Generation,
}

/// What one file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// When everything was ended.
    pub(super) all: Option<Timestamp>,
    /// When single pods were.
    pub(super) single: BTreeMap<AttemptKey, Timestamp>,
}

impl Notes {
    /// In `dir`, for a start that is known by its generation.
    pub(super) fn new(dir: PathBuf, generation: Generation) -> Self {
        Self { dir, generation }
    }

    /// Where the guard writes.
    pub(super) fn file(&self) -> PathBuf {
        self.file_of(self.generation)
    }

    fn file_of(&self, generation: Generation) -> PathBuf {
        self.dir.join(generation.0.to_string())
    }

    /// Says that this start has a guard. Blocks.
    ///
    /// # Errors
    /// The disk takes no file: then the guard notes nothing either.
    pub(super) fn begin(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        fs::File::create(self.file()).map(drop)
    }

    /// This start ends in order, and tells itself of all that it ran. Blocks.
    pub(super) fn end(&self) {
        let _ = fs::remove_file(self.file());
    }

    /// When the guard ended a leased pod of this start; waits for a moment if it has not noted that yet. Blocks.
    pub(super) fn end_of(&self, key: AttemptKey) -> Option<Timestamp> {
        wait_for(|| read(&self.file()).single.get(&key).copied())
    }

    /// What the guards of earlier starts have noted, by the start. Blocks.
    pub(super) fn of_earlier_starts(&self) -> BTreeMap<Generation, Noted> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut earlier: Vec<Generation> = entries
            .filter_map(|entry| Some(Generation(entry.file_name().to_str()?.parse().ok()?)))
            .filter(|generation| *generation < self.generation)
            .collect();
        earlier.sort_unstable();
        for old in earlier.drain(..earlier.len().saturating_sub(KEPT)) {
            let _ = fs::remove_file(self.file_of(old));
        }
        if let Some(last) = earlier.last() {
            // The process may have been started again before its guard was done.
            let all = wait_for(|| read(&self.file_of(*last)).all);
            if all.is_none() && read(&self.file_of(*last)) == Noted::default() {
                // Nobody is there to write it any more, and the next start is not to wait.
                let _ = fs::remove_file(self.file_of(*last));
            }
        }
        earlier.into_iter().map(|generation| (generation, read(&self.file_of(generation)))).collect()
    }
}

/// For the guard: pods were ended, these or all. Blocks.
pub(super) fn write(file: &Path, ended: Option<&[&Mark]>) {
    let at = clock::wall().unix_ms();
    let mut text = fs::read_to_string(file).unwrap_or_default();
    match ended {
        Some(marks) => marks.iter().for_each(|mark| text.push_str(&format!("{at} {mark}\n"))),
        None => text.push_str(&format!("{at} {ALL}\n")),
    }
    let new = file.with_extension("new");
    // Nobody is there to be told of a disk that takes nothing.
    let _ = fs::write(&new, text).and_then(|()| fs::rename(&new, file));
}

fn read(file: &Path) -> Noted {
    let mut noted = Noted::default();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let Some((at, who)) = line.split_once(' ') else { continue };
        let Ok(at) = at.parse().map(Timestamp) else { continue };
        if who == ALL {
            noted.all = Some(at);
        } else if let Some(mark) = Mark::parse(who) {
            noted.single.insert(mark.key, at);
        }
    }
    noted
}

#[expect(clippy::disallowed_methods, reason = "on a thread that may block")]
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = std::time::Instant::now();
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() >= PATIENCE {
            return found;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::executor::marker::Origin;
    use crate::model::id::{Actor, Dot, JobId, NodeId};

    #[test]
    fn the_next_start_reads_what_the_guard_of_the_last_has_noted() {
        let dir = tempfile::tempdir().unwrap();
        let of_start = |generation| Notes::new(dir.path().join("ended"), Generation(generation));
        let (first, second) = (of_start(5), of_start(6));
        first.begin().unwrap();
        let claim = Dot { actor: Actor { node: NodeId(1), generation: Generation(5) }, counter: 1 };
        let key = AttemptKey { job: JobId(7), claim };
        let mark = Mark { origin: Origin { directory: 1, start: 2 }, key };
        write(&first.file(), Some(&[&mark]));
        let single = first.end_of(key).unwrap();
        assert!(single > Timestamp(1_000_000_000_000));
        write(&first.file(), None);
        let noted = second.of_earlier_starts();
        assert!(noted[&Generation(5)].all >= Some(single), "{noted:?}");
        assert_eq!(noted[&Generation(5)].single[&key], single);
        assert!(first.of_earlier_starts().is_empty(), "its own file is not of an earlier start");
        // Who ends in order leaves nothing.
        first.end();
        assert!(second.of_earlier_starts().is_empty());
        // Of what was cut short, and of what nobody wrote, nothing is believed.
        second.begin().unwrap();
        fs::write(second.file(), "12 all\nx all\n13 nonsense\n14").unwrap();
        assert_eq!(
            of_start(7).of_earlier_starts()[&Generation(6)],
            Noted { all: Some(Timestamp(12)), ..Noted::default() }
        );
    }
}
