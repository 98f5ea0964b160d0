//! A folder for a local cluster: the user's own, which stays, or a temporary one, which goes with its owner.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::failure::Failure;
use super::render::note;

/// Where a local cluster keeps everything.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    is_temporary: bool,
}

impl Folder {
    /// The user's own, made if it is not there.
    pub(crate) fn kept(path: &Path) -> Result<Self, Failure> {
        let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
        let path = made.map_err(|error| Failure::usage(format!("cannot use --dir {}: {error}", path.display())))?;
        Ok(Self { path, is_temporary: false })
    }

    /// A new one that nobody else may look into, removed with the value.
    pub(crate) fn temporary(purpose: &str) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("flockwork-{purpose}-{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Failure::internal(format!("cannot make the temporary folder {}: {error}", path.display()))
        })?;
        Ok(Self { path, is_temporary: true })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it stays.
    pub(crate) fn is_kept(&self) -> bool {
        !self.is_temporary
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_temporary {
            return;
        }
        // A process that was just killed may still be writing its last file.
        for _ in 0..20 {
            match std::fs::remove_dir_all(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        note(&format!("{} could not be removed", self.path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_for_a_while_goes_and_the_rest_stays() {
        let temporary = Folder::temporary("test").unwrap();
        let path = temporary.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(temporary);
        assert!(!path.exists());
        let parent = tempfile::tempdir().unwrap();
        let kept = parent.path().join("kept");
        drop(Folder::kept(&kept).unwrap());
        assert!(kept.exists());
    }
}
