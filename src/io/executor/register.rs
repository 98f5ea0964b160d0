//! The register of process groups, which a node writes and its guard reads.
//!
//! Think of the board at the entrance of a mine: whoever goes down hangs a tag on a hook, whoever comes up takes it off,
//! and nobody looks at the board until there is an accident. It is a file that exists in memory only, with four bytes for each
//! hook: the number of a process group, or zero. The guard has it as its standard output, where it is given without any
//! unsafe code, and can only read it: whatever else its program prints is lost.
//!
//! What always holds: a group that was added is on the board as soon as the call is back, whatever becomes of the node
//! after it; the file outlives the node for as long as the guard holds it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;

/// What one hook takes.
const HOOK_BYTES: usize = size_of::<i32>();

/// Read at once by the guard.
const READ_BYTES: usize = 4 << 10;

/// The node's end.
#[derive(Debug)]
pub(super) struct Register {
    file: OwnedFd,
    free: Vec<Place>,
    hooks: u64,
}

/// A group's hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Register {
    /// An empty one.
    ///
    /// # Errors
    /// The system has no files in memory, no room for one, or no `/proc` to open it again.
    pub(super) fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("pods", MemfdFlags::CLOEXEC)?;
        let register = Self { file, free: Vec::new(), hooks: 0 };
        register.share().map(|_| register)
    }

    /// The file, for the guard.
    pub(super) fn share(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Hangs up a group; nothing if there is no room for it.
    pub(super) fn add(&mut self, group: i32) -> Option<Place> {
        let place = self.free.pop().unwrap_or(Place(self.hooks));
        if self.write(place, group) {
            self.hooks = self.hooks.max(place.0 + 1);
            return Some(place);
        }
        if place.0 < self.hooks {
            self.free.push(place);
        }
        None
    }

    /// Takes a group off.
    pub(super) fn remove(&mut self, place: Place) {
        // The hook is part of the file, so there is room. One that cannot be cleared is not used again.
        if self.write(place, 0) {
            self.free.push(place);
        }
    }

    fn write(&self, place: Place, group: i32) -> bool {
        let at = place.0 * HOOK_BYTES as u64;
        rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, &group.to_ne_bytes(), at)) == Ok(HOOK_BYTES)
    }
}

/// The groups that hang there. For the guard, when its node is gone.
pub(super) fn read(file: BorrowedFd<'_>) -> Vec<i32> {
    let mut groups = Vec::new();
    let mut hooks = [0; READ_BYTES];
    let mut at = 0;
    // An error is taken for the end: the marks are left to go by.
    while let Ok(read @ 1..) = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut hooks[..], at)) {
        let (whole, _) = hooks[..read].as_chunks::<HOOK_BYTES>();
        groups.extend(whole.iter().map(|hook| i32::from_ne_bytes(*hook)).filter(|group| *group > 1));
        at += read as u64;
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn who_is_down_is_on_the_board_and_who_came_up_is_not() {
        let mut register = Register::new().unwrap();
        let mut guards = register.share().unwrap();
        assert!(guards.write_all(b"test result: ok").is_err());
        assert!(read(guards.as_fd()).is_empty());
        // More than is read at once.
        let places: Vec<Place> = (2..3_002).map(|group| register.add(group).unwrap()).collect();
        assert_eq!(read(guards.as_fd()), Vec::from_iter(2..3_002));
        for place in &places[1..] {
            register.remove(*place);
        }
        assert_eq!(read(guards.as_fd()), [2]);
        // Hooks are used again, and the file does not grow.
        assert!(places.contains(&register.add(77).unwrap()));
        drop(register);
        let mut left = read(guards.as_fd());
        left.sort_unstable();
        assert_eq!(left, [2, 77]);
    }
}
