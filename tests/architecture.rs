//! The floors of the house, checked.
//!
//! `src/` is built in floors. A floor may use itself and the floors below it, never one above.
//! The two lowest floors are sans-IO: they hold no async code and name no runtime.
//! A new top-level module must be given a floor here, or this test fails.
#![allow(clippy::unwrap_used, reason = "a test stops at what it cannot read")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first. Modules on the same floor may use each other.
const FLOORS: &[&[&str]] = &[&["model"], &["protocol"], &["io"], &["node"], &["api", "cli"]];

/// Floors below this one never touch a socket, a disk, a clock or a task.
const FIRST_FLOOR_WITH_IO: usize = 2;

const SIGNS_OF_IO: &[&str] = &["tokio::", ".await", "async fn", "std::fs", "std::net::Tcp", "std::net::Udp"];

#[test]
fn modules_only_look_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for file in rust_files(&src) {
        let name = file.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/");
        if name == "lib.rs" || name == "main.rs" {
            continue;
        }
        let module = name.split(['/', '.']).next().unwrap();
        let Some(floor) = floor_of(module) else {
            faults.push(format!("src/{name}: module `{module}` has no floor in {}", file!()));
            continue;
        };
        let code = without_comments(&fs::read_to_string(&file).unwrap());
        for used in crate_modules_named_in(&code) {
            if floor_of(&used).is_some_and(|f| f > floor) {
                faults.push(format!("src/{name}: `{module}` must not know `{used}`, which is above it"));
            }
        }
        if floor < FIRST_FLOOR_WITH_IO {
            for sign in SIGNS_OF_IO.iter().filter(|sign| code.contains(**sign)) {
                faults.push(format!("src/{name}: `{module}` is sans-IO but mentions `{sign}`"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The first path segment after every `crate::`, grouped imports such as
/// `crate::{model::id, io::Store}` included.
fn crate_modules_named_in(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for tail in code.split("crate::").skip(1) {
        if !tail.starts_with('{') {
            modules.push(leading_word(tail));
            continue;
        }
        let mut depth = 0;
        for (at, c) in tail.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && (c == '{' || c == ',') {
                modules.push(leading_word(tail[at + 1..].trim_start()));
            }
        }
    }
    modules
}

fn leading_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn without_comments(code: &str) -> String {
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
