//! What the README shows can be typed.
//!
//! Every `flockwork …` line of its code blocks is given to the program in such a way that the whole line is read
//! and nothing is done: with `--dry-run` where there is one, as settings where it starts a node, and otherwise
//! with the address of a node that has never heard of anything. Every `curl` line must name a route of the HTTP interface, and every example and
//! every file that is linked must exist.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test owns a thread, and stops at what it cannot do"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

const README: &str = include_str!("../README.md");

/// What stands for a variable.
const ID: &str = "3f2a9c0417be5d6880aa10c2fe49b7d1";

/// The program's exit code for a line that is right, where the node knows nothing of what it names.
const NOT_FOUND: i32 = 3;

/// The lines of shell code, continued ones joined, without a prompt and with no output among them.
fn shell_lines() -> Vec<String> {
    let mut lines = Vec::new();
    let mut block = None;
    let mut joined = String::new();
    for line in README.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            block = if block.is_none() { Some(fence) } else { None };
            continue;
        }
        let typed = match block {
            Some("sh") => line,
            Some("console") if !joined.is_empty() => line,
            Some("console") => match line.strip_prefix("$ ") {
                Some(typed) => typed,
                None => continue,
            },
            Some(_) | None => continue,
        };
        match typed.strip_suffix('\\') {
            Some(begun) => joined.push_str(begun),
            None => lines.push(std::mem::take(&mut joined) + typed),
        }
    }
    lines
}

/// A line's commands as a shell would split them. A variable, and the output of a command within, stand for an id.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut outer) = (Vec::new(), Vec::new());
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let (mut quote, mut characters) = (None, line.chars().peekable());
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '$') if characters.next_if_eq(&'(').is_some() => {
                word.get_or_insert_default().push_str(ID);
                outer.push((std::mem::take(&mut words), word.take()));
            }
            (None, '$') => {
                while characters.next_if(|c| c.is_ascii_alphanumeric() || *c == '_').is_some() {}
                word.get_or_insert_default().push_str(ID);
            }
            (None, ')') => {
                words.extend(word.take());
                let (before, begun) = outer.pop().unwrap();
                commands.push(std::mem::replace(&mut words, before));
                word = begun;
            }
            (None, '|' | '&' | ';' | '>' | '<') => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

fn shown(program: &str) -> Vec<Vec<String>> {
    let all = shell_lines().into_iter().flat_map(|line| commands(&line));
    let named = all.filter_map(|words| {
        let at = words.iter().position(|word| !word.contains('='))?;
        let name = words[at].rsplit('/').next()?;
        (name == program).then(|| words[at + 1..].to_vec())
    });
    named.collect()
}

/// The same words, made harmless; and the exit codes that show that they were understood.
fn harmless(words: &[String]) -> (Vec<&str>, &'static [i32]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.first().copied().unwrap_or_default() {
        "run" | "submit" if words.contains(&"--dry-run") => (words, &[0]),
        "run" | "submit" => (insert(&words, "--dry-run"), &[0]),
        // Everything a node can be told is a setting.
        "node" => ([&["config", "show"], &words[1..]].concat(), &[0]),
        // These start or never end; help is given only once all that is before it was read.
        "up" | "demo" | "debug" => ([&words[..], &["--help"]].concat(), &[0]),
        "completions" | "config" => (words, &[0]),
        _ => (words, &[NOT_FOUND]),
    }
}

/// Adds an option right after the command.
fn insert<'a>(words: &[&'a str], option: &'a str) -> Vec<&'a str> {
    [&words[..1], &[option], &words[1..]].concat()
}

/// The address of something that answers every request with 404, for as long as this process runs.
fn stranger() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let body = "{\"error\":{\"code\":\"not_found\",\"message\":\"never heard of it\"}}";
        let head = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\n";
        for connection in listener.incoming() {
            let mut connection = BufReader::new(connection.unwrap());
            let mut line = String::new();
            // A client that is gone already is not worth more than its silence.
            while connection.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                line.clear();
            }
            let _ = write!(connection.get_mut(), "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

#[test]
fn every_command_is_understood() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state/flockwork");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("last"), ID).unwrap();
    let stranger = stranger();
    for name in ["urls.txt", "specs.ndjson", "data.csv"] {
        std::fs::write(home.path().join(name), "{\"command\":[\"true\"]}\n").unwrap();
    }
    let lines = shown("flockwork");
    assert!(lines.len() > 20, "only {} commands were found", lines.len());
    let mut faults = Vec::new();
    for words in lines {
        let (arguments, right) = harmless(&words);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flockwork"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOCKWORK_")) {
            command.env_remove(name);
        }
        command.env("FLOCKWORK_ADDR", &stranger).env("HOME", home.path());
        command.env("XDG_STATE_HOME", home.path().join("state")).current_dir(home.path());
        command.args(&arguments).stdin(Stdio::null());
        let output = command.output().unwrap();
        let code = output.status.code().unwrap_or(-1);
        if !right.contains(&code) {
            let told = String::from_utf8_lossy(&output.stderr);
            faults.push(format!("flockwork {}: exit code {code}\n{told}", arguments.join(" ")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_request_has_a_route() {
    let routes = serde_json::to_value(flockwork::api::openapi()).unwrap();
    let lines = shown("curl");
    assert!(lines.len() >= 5, "only {} requests were found", lines.len());
    for words in lines {
        let url = words.iter().find(|word| word.contains("/v1/") || word.contains("/debug/")).unwrap();
        let path = &url[url.find("/v1/").or_else(|| url.find("/debug/")).unwrap()..];
        let path = path.split('?').next().unwrap();
        let method = match words.iter().position(|word| word == "-X") {
            Some(at) => words[at + 1].to_lowercase(),
            None if words.iter().any(|word| word == "-d" || word.starts_with("--data")) => "post".to_owned(),
            None => "get".to_owned(),
        };
        let known = routes["paths"].as_object().unwrap().iter().any(|(route, methods)| {
            let (route, path): (Vec<_>, Vec<_>) = (route.split('/').collect(), path.split('/').collect());
            let matches = |(known, asked): (&&str, &&str)| known.starts_with('{') || known == asked;
            route.len() == path.len() && route.iter().zip(&path).all(matches) && methods.get(&method).is_some()
        });
        assert!(known, "no route for {method} {path}");
    }
}

#[test]
fn every_file_and_example_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for link in README.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
        assert!(link.is_empty() || link.contains("://") || root.join(link).exists(), "the README links to {link}");
    }
    for words in shown("cargo") {
        if let Some(at) = words.iter().position(|word| word == "--example") {
            let example = root.join("examples").join(&words[at + 1]).with_extension("rs");
            assert!(example.exists(), "the README runs {}", example.display());
        }
    }
}

#[test]
fn a_line_is_split_as_a_shell_would() {
    let split = commands("A=1 ls *.wav | flockwork submit -a - -- sh -c 'echo \"$1\"' # all");
    let submit = ["flockwork", "submit", "-a", "-", "--", "sh", "-c", "echo \"$1\""];
    assert_eq!(split, [&["A=1", "ls", "*.wav"][..], &submit[..]]);
    assert_eq!(commands("wait $(flockwork ps) && x $id"), [&["flockwork", "ps"][..], &["wait", ID], &["x", ID]]);
    assert!(commands("# nothing").is_empty());
}
