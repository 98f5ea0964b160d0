//! A Docker daemon of the test's own, apart from any that the machine has, with an image made from local files.
//!
//! It needs root, Docker's programs and a static busybox (Debian: `docker.io` and `busybox-static`). Where a daemon
//! cannot be had, a story is skipped, and says why.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::processes;

/// The image that every daemon has.
pub const IMAGE: &str = "box:1";

const UP_WITHIN: Duration = Duration::from_secs(30);
const DOWN_WITHIN: Duration = Duration::from_secs(30);

pub struct Docker {
    dir: TempDir,
    daemon: Option<Child>,
}

impl Docker {
    /// A daemon that runs containers, unless there cannot be one; that is said.
    pub fn start() -> Option<Self> {
        match Self::try_start() {
            Ok(docker) => Some(docker),
            Err(why) => {
                eprintln!("skipped: there is no Docker to be had: {why}");
                None
            }
        }
    }

    fn try_start() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root can start a daemon".to_owned());
        }
        let busybox = find("busybox").ok_or("no busybox: apt-get install busybox-static")?;
        find("dockerd").ok_or("no dockerd: apt-get install docker.io")?;
        let dir = TempDir::new().map_err(|error| error.to_string())?;
        let mut docker = Self { dir, daemon: None };
        docker.begin()?;
        make_root(&docker.path("root"), &busybox).map_err(|error| error.to_string())?;
        let files = Command::new("tar").arg("-C").arg(docker.path("root")).args(["-c", "."]).output();
        let image = docker.path("image.tar");
        files.and_then(|tar| fs::write(&image, tar.stdout)).map_err(|error| error.to_string())?;
        docker.ask(&["import", image.to_str().unwrap_or_default(), IMAGE])?;
        docker.ask(&["run", "--rm", "--init", "--network", "host", "--memory", "16m", IMAGE, "true"])?;
        Ok(docker)
    }

    /// Starts the daemon, and waits until it answers.
    fn begin(&mut self) -> Result<(), String> {
        let log_file = self.path("log");
        let log = File::options().create(true).append(true).open(&log_file).map_err(|error| error.to_string())?;
        let mut command = Command::new(find("dockerd").ok_or("no dockerd")?);
        command
            .arg(format!("--host={}", self.host()))
            .arg(format!("--data-root={}", self.path("data").display()))
            .arg(format!("--exec-root={}", self.path("exec").display()))
            .arg(format!("--pidfile={}", self.path("pid").display()))
            .args(["--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0);
        self.daemon = Some(command.spawn().map_err(|error| error.to_string())?);
        let begun = Instant::now();
        while let Err(why) = self.ask(&["version"]) {
            let ended = self.daemon.as_mut().is_none_or(|daemon| !matches!(daemon.try_wait(), Ok(None)));
            if ended || begun.elapsed() > UP_WITHIN {
                let log = fs::read_to_string(&log_file).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                return Err(format!("{why}: {}", lines[lines.len().saturating_sub(5)..].join(" | ")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What nodes are told with `--docker`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("socket").display())
    }

    /// The containers that carry our labels, running or not.
    pub fn containers(&self) -> Vec<String> {
        let listed = self.ask(&["ps", "--all", "--quiet", "--filter", "label=flockwork.pod"]).unwrap();
        listed.lines().map(str::to_owned).collect()
    }

    /// Asks the daemon through Docker's own command line.
    pub fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let asked =
            Command::new(find("docker").ok_or("no docker")?).args(["--host", &self.host()]).args(arguments).output();
        let Output { status, stdout, stderr } = asked.map_err(|error| error.to_string())?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&stderr).trim().to_owned())
    }

    /// Kills the daemon as a crash would, and its own helper with it. Its containers run on.
    pub fn crash(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            processes::signal(daemon.id(), Signal::KILL);
            daemon.wait().unwrap();
        }
        let settings = self.path("exec/containerd/containerd.toml");
        let begun = Instant::now();
        // It ends with its daemon, but not at the same moment, and a new daemon must not take it for alive.
        while !processes::given(settings.as_os_str()).is_empty() {
            assert!(begun.elapsed() < DOWN_WITHIN, "containerd goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Where nobody reaps it at once, its number is still taken, and so would the helper be for a live one.
        let _ = fs::remove_file(self.path("exec/containerd/containerd.pid"));
    }

    /// Starts it again after a crash.
    pub fn restart(&mut self) {
        self.begin().unwrap();
    }

    /// A daemon leaves mounts behind, and while they are there its directory cannot be removed.
    fn unmount_all(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut ours: Vec<&str> = places.filter(|place| Path::new(place).starts_with(self.dir.path())).collect();
        // The inner ones first.
        ours.sort_by_key(|place| std::cmp::Reverse(place.len()));
        for place in ours {
            let _ = Command::new("umount").args(["--lazy", place]).stderr(Stdio::null()).status();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let Some(pid) = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw) else { return };
        let _ = kill_process(pid, Signal::TERM);
        let begun = Instant::now();
        while matches!(daemon.try_wait(), Ok(None)) && begun.elapsed() < DOWN_WITHIN {
            std::thread::sleep(Duration::from_millis(20));
        }
        // It leads the group of all that it has started, which ends with it in the common case.
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = daemon.wait();
        self.unmount_all();
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A system of nothing but busybox.
fn make_root(root: &Path, busybox: &Path) -> std::io::Result<()> {
    for dir in ["bin", "etc", "tmp", "home"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nguest:x:1234:1234::/home:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nguest:x:1234:\n")?;
    for tool in ["sh", "cat", "cp", "echo", "env", "id", "kill", "pwd", "setsid", "sleep", "tail", "true", "wget"] {
        symlink("busybox", root.join("bin").join(tool))?;
    }
    Ok(())
}
