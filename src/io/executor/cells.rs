//! The directories that attempts have for themselves while they run.
//!
//! A cell has two rooms: one is the job's own (its `FLOCKWORK_TMPDIR`, and its working directory unless it asks for
//! another), the other is where it finds its checkpoint and leaves its result. When the attempt has ended, the cell is
//! cleared, checked and given to the next one; the next attempt finds it as if newly made. Making and removing
//! directories for each attempt would be simpler, and cost a third of a processor where jobs are short: a file
//! system that journals takes its time over every inode it gives out and takes back.
//!
//! A job can do to its cell what it likes. What does not look as it was made is removed instead of being used again.
//!
//! Most jobs never touch theirs, and that can be seen from outside: whatever changes a directory, from a new file to other
//! permissions, gives it a new time of change, which nobody can set back. So a cell whose three directories have the times
//! that they had when it was cleared need not be opened. File systems count time in steps, so times are gone by only when
//! they were old already as the job began.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a cell's directories look like: nobody else may look into them.
const MODE: u32 = 0o700;

/// All cells of a node, in one directory.
#[derive(Debug)]
pub(super) struct Cells {
    dir: PathBuf,
    spare: Mutex<Vec<Cell>>,
    made: AtomicU64,
}

/// The longest step in which a file system counts time (FAT's), and some more.
const OLD: Duration = Duration::from_secs(3);

/// One attempt's directories.
#[derive(Debug)]
pub(super) struct Cell {
    path: PathBuf,
    /// When its directories were last changed, as of when nobody had it.
    changed: Option<[Change; 3]>,
    /// That was long enough before the attempt began to tell a change that it makes.
    is_settled: bool,
}

/// The time of a directory's last change: seconds since 1970, and nanoseconds.
type Change = (i64, i64);

impl Cell {
    fn at(path: PathBuf) -> Self {
        Self { path, changed: None, is_settled: false }
    }

    /// Whether its attempt has certainly left it as it was. Takes three calls that find what they want in memory.
    pub(super) fn is_untouched(&self) -> bool {
        self.is_settled && self.changed.is_some() && self.changes().ok() == self.changed
    }

    fn changes(&self) -> io::Result<[Change; 3]> {
        let of = |dir: &Path| fs::symlink_metadata(dir).map(|found| (found.ctime(), found.ctime_nsec()));
        Ok([of(&self.path)?, of(&self.own())?, of(&self.exchange())?])
    }

    fn was_changed_before(&self, time: Duration) -> bool {
        let time = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        self.changed.is_some_and(|changed| changed.iter().all(|(seconds, _)| *seconds < time))
    }

    /// What the job has for itself.
    pub(super) fn own(&self) -> PathBuf {
        self.path.join("own")
    }

    /// The directory of both rooms.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the job finds its checkpoint, and leaves its result.
    pub(super) fn exchange(&self) -> PathBuf {
        self.path.join("exchange")
    }

    pub(super) fn checkpoint_file(&self) -> PathBuf {
        self.exchange().join("checkpoint")
    }

    pub(super) fn result_file(&self) -> PathBuf {
        self.exchange().join("result")
    }

    fn make(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(MODE);
        builder.create(self.own())?;
        builder.create(self.exchange())
    }

    /// Removes what is in it; whether it is then as it was made.
    fn clear(&self) -> io::Result<bool> {
        let as_made = is_as_made(&self.path)? && is_as_made(&self.own())? && is_as_made(&self.exchange())?;
        if !as_made {
            return Ok(false);
        }
        for room in [self.own(), self.exchange()] {
            for entry in fs::read_dir(room)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(fs::read_dir(&self.path)?.count() == 2)
    }
}

impl Cells {
    /// None yet, in a directory that is made when there is one.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, spare: Mutex::default(), made: AtomicU64::new(0) }
    }

    /// The directory of all of them.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// An empty cell. Blocks.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn take(&self) -> io::Result<Cell> {
        if let Some(mut cell) = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            cell.is_settled = cell.was_changed_before(now.saturating_sub(OLD));
            return Ok(cell);
        }
        let cell = Cell::at(self.dir.join(self.made.fetch_add(1, Ordering::Relaxed).to_string()));
        cell.make()?;
        Ok(cell)
    }

    /// Takes a cell back whose attempt has ended. Blocks.
    ///
    /// # Errors
    /// It can neither be cleared nor removed.
    pub(super) fn give_back(&self, mut cell: Cell) -> io::Result<()> {
        if matches!(cell.clear(), Ok(true)) {
            cell.changed = cell.changes().ok();
            self.give_back_untouched(cell);
            return Ok(());
        }
        match fs::remove_dir_all(&cell.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// Takes a cell back that [is untouched](Cell::is_untouched).
    pub(super) fn give_back_untouched(&self, cell: Cell) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
    }

    /// Removes the cells that nobody has. Blocks.
    pub(super) fn remove_spare(&self) {
        let spare = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        for cell in spare {
            if let Err(error) = fs::remove_dir_all(&cell.path) {
                tracing::warn!(dir = %cell.path.display(), %error, "a directory of a pod cannot be removed");
            }
        }
    }
}

fn is_as_made(dir: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(dir)?;
    Ok(metadata.is_dir()
        && metadata.mode() & 0o7777 == MODE
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.gid() == rustix::process::getegid().as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_next_attempt_finds_nothing_of_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let cells = Cells::new(dir.path().join("cells"));
        let first = cells.take().unwrap();
        let path = first.own();
        fs::create_dir_all(path.join("deep/er")).unwrap();
        fs::write(path.join("deep/er/file"), "x").unwrap();
        symlink("/", path.join("away")).unwrap();
        fs::write(first.result_file(), "x").unwrap();
        cells.give_back(first).unwrap();

        let second = cells.take().unwrap();
        assert_eq!(second.own(), path);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        assert!(!second.result_file().exists());
        assert_ne!(cells.take().unwrap().own(), path);
    }

    #[test]
    fn what_a_job_has_tampered_with_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "x").unwrap();
        let cells = Cells::new(dir.path().join("cells"));
        let tamperings: [fn(&Cell, &Path); 4] = [
            |cell, _| fs::set_permissions(cell.own(), fs::Permissions::from_mode(0o777)).unwrap(),
            |cell, _| fs::write(cell.path.join("besides"), "x").unwrap(),
            |cell, _| fs::remove_dir(cell.own()).unwrap(),
            |cell, outside| {
                fs::remove_dir(cell.exchange()).unwrap();
                symlink(outside, cell.exchange()).unwrap();
            },
        ];
        for tamper in tamperings {
            let cell = cells.take().unwrap();
            let path = cell.own();
            tamper(&cell, dir.path());
            cells.give_back(cell).unwrap();
            assert_ne!(cells.take().unwrap().own(), path);
            assert!(!path.exists());
        }
        assert!(victim.exists());
    }

    #[test]
    fn only_what_is_untouched_for_certain_is_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let cells = Cells::new(dir.path().join("cells"));
        let fresh = cells.take().unwrap();
        assert!(!fresh.is_untouched(), "nobody has looked at it yet");
        cells.give_back(fresh).unwrap();
        let young = cells.take().unwrap();
        assert!(!young.is_untouched(), "a change that its job makes might be of the same moment");
        assert!(!young.was_changed_before(Duration::ZERO) && young.was_changed_before(Duration::MAX));
        cells.give_back(young).unwrap();

        let touches: [fn(&Cell); 5] = [
            |cell| fs::write(cell.own().join("file"), "x").unwrap(),
            |cell| fs::write(cell.result_file(), "x").unwrap(),
            |cell| fs::create_dir(cell.path.join("besides")).unwrap(),
            |cell| fs::set_permissions(cell.own(), fs::Permissions::from_mode(0o755)).unwrap(),
            |cell| {
                let own = fs::File::open(cell.own()).unwrap();
                fs::write(cell.own().join("file"), "x").unwrap();
                fs::remove_file(cell.own().join("file")).unwrap();
                own.set_times(fs::FileTimes::new().set_modified(UNIX_EPOCH)).unwrap();
            },
        ];
        for touch in touches {
            let mut old = cells.take().unwrap();
            // As if it had been cleared long ago: at least, the file system's time has moved on since.
            old.changed = old.changes().ok();
            old.is_settled = true;
            let probe = dir.path().join("probe");
            while fs::write(&probe, "x").is_ok() {
                let now = fs::metadata(&probe).unwrap();
                if old.changed.unwrap().iter().all(|changed| *changed < (now.ctime(), now.ctime_nsec())) {
                    break;
                }
            }
            assert!(old.is_untouched());
            touch(&old);
            assert!(!old.is_untouched());
            cells.give_back(old).unwrap();
        }
    }
}
