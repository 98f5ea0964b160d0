//! The log, and what happens to a panic.
//!
//! Everything is logged to standard error: one line for people, one JSON object for machines. `FLOCKWORK_LOG`
//! chooses what (`debug`, `flockwork::io=trace`, ...).
//!
//! A panic anywhere is a fault of this program, and nobody must have to look for it: a hook logs each as an
//! error, in the same format as everything else, with the place and, where `RUST_BACKTRACE` asks for it, the way
//! there; and [`panics`] counts them, for the metrics. The hook changes nothing else: the panic unwinds its task
//! or thread as before.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that chooses what is logged.
pub const FILTER_VARIABLE: &str = "FLOCKWORK_LOG";

const DEFAULT_FILTER: &str = "info";

/// For whom the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// People: a line for each event.
    #[default]
    Text,
    /// Machines: a JSON object for each event.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The environment asks for something that is not a filter.
    #[error("{FILTER_VARIABLE}={text} is not a log filter ({reason}): write a level, or target=level, with commas")]
    Filter {
        /// What it asks for.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process logs already, as something else has set up.
    #[error("this process has a log already")]
    AlreadySet,
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many panics there were since [`init`].
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Begins to log to standard error, and to log and count panics. For the program; a library user brings their
/// own.
///
/// # Errors
/// The filter in the environment is none, or the process logs already.
pub fn init(format: LogFormat) -> Result<(), TelemetryError> {
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    subscriber(format, filter(&text)?, colour, std::io::stderr).try_init().map_err(|_| TelemetryError::AlreadySet)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    let text = if text.trim().is_empty() { DEFAULT_FILTER } else { text };
    EnvFilter::try_new(text)
        .map_err(|error| TelemetryError::Filter { text: text.to_owned(), reason: error.to_string() })
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, colour: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A log that cannot be written is lost silently: by default its failure would be reported to standard
    // error, which is what has just failed, and the attempt would panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Text => Box::new(builder.compact().with_ansi(colour).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let reason = panic.payload_as_str().unwrap_or("no message");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace));
    tracing::error!(reason, place, thread, backtrace, "panic");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter_text: &str, story: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = subscriber(format, filter(filter_text).unwrap(), false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, story);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_panic_is_logged_with_its_place_and_counted() {
        let before = panics();
        let text = logged(LogFormat::Json, "", || {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(log_panic));
            std::panic::catch_unwind(|| panic!("the {} broke", "axle")).unwrap_err();
            std::panic::set_hook(usual);
        });
        assert!(panics() > before);
        let event: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(event["level"], "ERROR");
        assert_eq!(event["reason"], "the axle broke");
        assert!(event["place"].as_str().unwrap().contains("telemetry.rs:"));
    }

    #[test]
    fn text_is_plain_in_a_pipe_and_follows_the_filter() {
        let text = logged(LogFormat::Text, "", || {
            tracing::info!(job = 7, "claimed");
            tracing::debug!("a detail");
        });
        assert!(text.contains("claimed") && text.contains("job=7") && !text.contains("a detail"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(logged(LogFormat::Text, "debug", || tracing::debug!("a detail")).contains("a detail"));
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        let error = filter("flockwork=loud").unwrap_err().to_string();
        assert!(error.contains("FLOCKWORK_LOG=flockwork=loud"), "{error}");
    }
}
