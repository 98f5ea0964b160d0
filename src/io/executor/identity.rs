//! Who a pod runs as, and what its processes may not do.
//!
//! Another user, a umask and limits are set between fork and exec, in the new process and nowhere else. That costs the
//! cheap way of spawning, so it is done only for jobs that ask for it.
//!
//! Users are looked up in `/etc/passwd`, not through the C library: its way may load modules and ask other machines,
//! and is not safe to call from many threads. Numbers work for users that are known elsewhere.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Resource, Rlimit};

use crate::model::spec::{Limit, Spec};

/// A user and a group, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    uid: u32,
    gid: u32,
}

/// Who a pod runs as, with what the machine knows of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) identity: Identity,
    name: Option<String>,
    home: String,
}

impl Account {
    /// Who `user` is on this machine.
    ///
    /// # Errors
    /// For people: nobody is called that, or the numbers are none.
    pub(super) fn of(user: &str) -> Result<Self, String> {
        let passwd =
            || fs::read_to_string("/etc/passwd").map_err(|error| format!("users cannot be looked up: {error}"));
        if !user.starts_with(|first: char| first.is_ascii_digit()) {
            return Self::in_passwd(&passwd()?, |account| account.name.as_deref() == Some(user))
                .ok_or_else(|| format!("nobody is called `{user}` on this node"));
        }
        let (uid, gid) = user.split_once(':').unwrap_or((user, user));
        let identity = match (uid.parse(), gid.parse()) {
            (Ok(uid), Ok(gid)) if uid != u32::MAX && gid != u32::MAX => Identity { uid, gid },
            _ => return Err(format!("`{user}` is no user: write UID or UID:GID in numbers")),
        };
        // Numbers need no name, nor a home.
        let known = Self::in_passwd(&passwd().unwrap_or_default(), |account| account.identity.uid == identity.uid);
        let stranger = || Self { identity, name: None, home: "/".to_owned() };
        Ok(known.map_or_else(stranger, |account| Self { identity, ..account }))
    }

    fn in_passwd(passwd: &str, is_meant: impl Fn(&Self) -> bool) -> Option<Self> {
        let account = |line: &str| {
            let [name, _, uid, gid, _, home, ..] = line.split(':').collect::<Vec<_>>()[..] else { return None };
            let identity = Identity { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
            let home = if home.is_empty() { "/" } else { home };
            Some(Self { identity, name: Some(name.to_owned()), home: home.to_owned() })
        };
        passwd.lines().filter_map(account).find(is_meant)
    }

    /// Lets the environment say who it is, instead of who the node is.
    pub(super) fn introduce(&self, command: &mut Command) {
        command.env("HOME", &self.home);
        for variable in ["USER", "LOGNAME"] {
            match &self.name {
                Some(name) => command.env(variable, name),
                None => command.env_remove(variable),
            };
        }
    }
}

impl Identity {
    /// Makes directories that this process made those of the user.
    pub(super) fn owns(self, dirs: &[PathBuf]) -> io::Result<()> {
        for dir in dirs {
            rustix::fs::chown(dir, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        Ok(())
    }
}

/// Whether the kernel does not hold a pod to a number of processes: it never does that to root, where that is not just what
/// an unprivileged user is called in a namespace.
pub(super) fn is_beyond_limits(identity: Option<Identity>) -> bool {
    let uid = identity.map_or(rustix::process::geteuid().as_raw(), |identity| identity.uid);
    uid == 0 && fs::read_to_string("/proc/self/uid_map").map_or(true, |map| root_is_root(&map))
}

fn root_is_root(uid_map: &str) -> bool {
    uid_map.lines().any(|line| line.split_whitespace().take(2).eq(["0", "0"]))
}

/// Has `command` run as the spec says.
pub(super) fn apply(command: &mut Command, spec: &Spec, identity: Option<Identity>) {
    if let Some(Identity { uid, gid }) = identity {
        // Supplementary groups are dropped with root's rights.
        command.gid(gid).uid(uid);
    }
    let umask = spec.umask_bits().map(Mode::from_bits_truncate);
    let limits: Vec<(Resource, u64)> = spec.limits.iter().map(|(limit, value)| (resource(*limit), *value)).collect();
    if umask.is_none() && limits.is_empty() {
        return;
    }
    let in_child = move || {
        if let Some(umask) = umask {
            rustix::process::umask(umask);
        }
        for (resource, value) in &limits {
            rustix::process::setrlimit(*resource, Rlimit { current: Some(*value), maximum: Some(*value) })?;
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "between fork and exec only system calls are made; nothing is allocated or locked")]
    // SAFETY: `umask` and `setrlimit` are async-signal-safe, and the closure uses only what it was given before the fork.
    unsafe {
        command.pre_exec(in_child);
    }
}

fn resource(limit: Limit) -> Resource {
    match limit {
        Limit::AddressSpace => Resource::As,
        Limit::CoreSize => Resource::Core,
        Limit::CpuTime => Resource::Cpu,
        Limit::FileSize => Resource::Fsize,
        Limit::OpenFiles => Resource::Nofile,
        Limit::Processes => Resource::Nproc,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_machines_own_root_is_beyond_limits() {
        assert!(root_is_root("         0          0 4294967295\n"));
        assert!(!root_is_root("         0       1000          1\n         1     100000      65536\n"));
        assert!(!is_beyond_limits(Some(Identity { uid: 5, gid: 0 })));
    }

    #[test]
    fn users_are_names_or_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nrooter:x:12:13::/:/bin/sh\nbroken:x\n";
        let called = |name: &str| Account::in_passwd(passwd, |account| account.name.as_deref() == Some(name));
        assert_eq!(called("rooter").map(|account| account.identity), Some(Identity { uid: 12, gid: 13 }));
        assert_eq!(called("root").map(|account| account.home), Some("/root".to_owned()));
        assert_eq!((called("roo"), called("broken")), (None, None));
        let numbers = |user| Account::of(user).map(|account| account.identity);
        assert_eq!(numbers("5"), Ok(Identity { uid: 5, gid: 5 }));
        assert_eq!(numbers("5:6"), Ok(Identity { uid: 5, gid: 6 }));
        for wrong in ["5:", "5:x", "4294967295", "5x", "surely-nobody-here"] {
            assert!(Account::of(wrong).is_err(), "{wrong}");
        }
    }
}
