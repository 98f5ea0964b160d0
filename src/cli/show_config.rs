//! `flockwork config show`: every setting, and what decided it.

use serde_json::{Map, Value, json};

use super::Session;
use super::config::{Setting, Source, Sources};
use super::failure::{Failure, Outcome, exit};
use super::node::NodePlan;
use super::render::{OutputForm, Tone, printable};

pub(crate) fn show(session: &Session, output: &Setting<OutputForm>, plan: &NodePlan, sources: &Sources<'_>) -> Outcome {
    let addresses = &session.addresses;
    let client = [
        ("addr", serde_json::to_value(&addresses.value).ok(), addresses.source.clone()),
        ("output", serde_json::to_value(output.value).ok(), output.source.clone()),
    ];
    let node = plan.shown();
    match session.printer.form {
        OutputForm::Table | OutputForm::Wide => table(session, &client, &node, sources)?,
        OutputForm::Json | OutputForm::Jsonl => {
            let object = |entries: &[Entry]| -> Value {
                let pair = |(name, value, source): &Entry| {
                    ((*name).to_owned(), json!({"value": value, "source": source.to_string()}))
                };
                Value::Object(entries.iter().map(pair).collect::<Map<_, _>>())
            };
            let mut all = object(&client);
            all["file"] = json!(sources.path);
            all["node"] = object(&node);
            session.printer.json(&all)?;
        }
        OutputForm::Id => {
            for (name, _, _) in &client {
                session.printer.line(name)?;
            }
            for (name, _, _) in &node {
                session.printer.line(&format!("node.{name}"))?;
            }
        }
    }
    Ok(exit::SUCCESS)
}

type Entry = (&'static str, Option<Value>, Source);

/// As the settings file would have it, so that it can be one.
fn table(session: &Session, client: &[Entry], node: &[Entry], sources: &Sources<'_>) -> Result<(), Failure> {
    let printer = session.printer;
    let file = match &sources.path {
        Some(path) => format!("# settings file: {}", printable(&path.display().to_string())),
        None => "# settings file: none".to_owned(),
    };
    let line = |(name, value, source): &Entry| {
        let written = match value {
            Some(value) => format!("{name} = {}", inline(value)),
            None => format!("# {name} is not set"),
        };
        format!("{written:<46}  {}", printer.paint(&format!("# {source}"), Tone::Faint))
    };
    let mut lines = vec![printer.paint(&file, Tone::Faint)];
    lines.extend(client.iter().map(line));
    lines.push("\n[node]".to_owned());
    lines.extend(node.iter().map(line));
    Ok(printer.line(&lines.join("\n"))?)
}

/// A value as TOML on one line: JSON but for objects.
fn inline(value: &Value) -> String {
    match value.as_object() {
        Some(fields) => {
            let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{} = {value}", json!(name))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        None => value.to_string(),
    }
}
