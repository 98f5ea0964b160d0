//! Any JSON answer as something a person can read: names and values, and a table for each list.
//!
//! For answers whose point is their facts (`where`, `explain`, `debug`) rather than one layout: a node that
//! comes to say more is shown in full, without this side knowing of it.

use serde_json::Value;

use super::render::{Printer, Tone, printable};

/// Lists longer than this are counted instead of shown.
const MOST_ITEMS: usize = 24;

/// Draws `value`: plain values first, then lists and groups under their own headings.
pub(crate) fn drawn(printer: Printer, value: &Value) -> String {
    let Some(fields) = value.as_object() else { return plain(value) };
    let is_flat = |value: &Value| is_node(value) || (!value.is_object() && !is_table(value));
    let shown = |value: &&(&String, &Value)| !value.1.is_null();
    let flat: Vec<_> = fields.iter().filter(|(_, value)| is_flat(value)).collect();
    let width = flat.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut parts = Vec::new();
    let lines: Vec<String> = flat
        .iter()
        .filter(|field| shown(field))
        .map(|(name, value)| {
            let label = printer.paint(&format!("{:<width$}", printable(name).replace('_', " ")), Tone::Faint);
            format!("{label}  {}", toned(printer, value))
        })
        .collect();
    if !lines.is_empty() {
        parts.push(lines.join("\n"));
    }
    for (name, value) in fields.iter().filter(|(_, value)| !is_flat(value)) {
        let heading = printer.paint(&printable(name).replace('_', " "), Tone::Strong);
        let body = if is_table(value) { table(printer, value) } else { drawn(printer, value) };
        if !body.is_empty() {
            let indented: Vec<String> = body.lines().map(|line| format!("  {line}")).collect();
            parts.push(format!("{heading}\n{}", indented.join("\n")));
        }
    }
    parts.join("\n\n")
}

/// `SomeName` as `some_name`.
pub(crate) fn lower_snake(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

fn is_table(value: &Value) -> bool {
    let table = |items: &Vec<Value>| !items.is_empty() && items.iter().all(Value::is_object);
    value.as_array().is_some_and(|items| table(items) && !items.iter().all(is_node))
}

/// `{"node", "name"}` and nothing else: a node, as answers point at one.
fn is_node(value: &Value) -> bool {
    value.as_object().is_some_and(|f| f.len() == 2 && f.contains_key("node") && f.contains_key("name"))
}

fn table(printer: Printer, value: &Value) -> String {
    let items: Vec<_> = value.as_array().into_iter().flatten().filter_map(Value::as_object).collect();
    let mut columns: Vec<&String> = Vec::new();
    for name in items.iter().flat_map(|item| item.keys()) {
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    // What names the thing comes first.
    columns.sort_by_key(|name| !matches!(name.as_str(), "name" | "node_name" | "number"));
    let header: Vec<String> = columns.iter().map(|name| printable(name).replace('_', " ").to_uppercase()).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let row = |item: &&serde_json::Map<String, Value>| {
        columns.iter().map(|name| item.get(*name).map(|v| toned(printer, v)).unwrap_or_default()).collect()
    };
    let mut text = printer.drawn(&header, items.iter().take(MOST_ITEMS).map(row).collect());
    if items.len() > MOST_ITEMS {
        text.push_str(&format!("\nand {} more (-o json shows all)", items.len() - MOST_ITEMS));
    }
    text
}

fn toned(printer: Printer, value: &Value) -> String {
    let text = plain(value);
    let tone = match text.as_str() {
        "alive" | "succeeded" => Tone::Good,
        "down" | "failed" | "lost" => Tone::Bad,
        "suspect" | "running" | "claimed" | "draining" => Tone::Busy,
        _ => Tone::Plain,
    };
    printer.paint(&text, tone)
}

/// A value on one line.
fn plain(value: &Value) -> String {
    if value.is_null() {
        return String::new();
    }
    if let Some(text) = value.as_str() {
        return printable(text).into_owned();
    }
    if let Some(yes) = value.as_bool() {
        return if yes { "yes" } else { "no" }.to_owned();
    }
    if let Some(items) = value.as_array() {
        let mut texts: Vec<String> = items.iter().take(MOST_ITEMS).map(plain).collect();
        if items.len() > MOST_ITEMS {
            texts.push(format!("and {} more", items.len() - MOST_ITEMS));
        }
        return if texts.is_empty() { "none".to_owned() } else { texts.join(", ") };
    }
    if is_node(value) {
        return format!("{} ({})", plain(&value["name"]), plain(&value["node"]));
    }
    if let Some(fields) = value.as_object() {
        let texts: Vec<String> =
            fields.iter().map(|(name, value)| format!("{}={}", printable(name), plain(value))).collect();
        return texts.join(" ");
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::render::OutputForm;
    use super::*;

    #[test]
    fn facts_come_first_and_lists_as_tables() {
        let value = serde_json::json!({
            "owner": {"node": "0a", "name": "n1"}, "ahead": null, "caught_up": true, "behind": [],
            "nodes": [{"reason": "no room", "name": "n1"}, {"name": "n2", "reason": null}],
        });
        let text = drawn(Printer::plain(OutputForm::Table), &value);
        assert_eq!(
            text,
            "behind     none\ncaught up  yes\nowner      n1 (0a)\n\nnodes\n  NAME  REASON\n  n1    no room\n  n2"
        );
    }

    #[test]
    fn names_of_variants_are_written_as_json_has_them() {
        assert_eq!(lower_snake("Succeeded"), "succeeded");
        assert_eq!(lower_snake("ReadOnly"), "read_only");
    }
}
