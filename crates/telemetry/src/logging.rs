//! Log lines: set up once by each program's `main`, filter changed while it runs through [`LogHandle`].
//!
//! Lines go to standard error, so that what a program prints for its caller stays alone on standard output.
//! Filters are `tracing-subscriber` directives: `info`, `warn,access=info`, `karst_hbone=trace`.

mod limit;
mod line;

pub(crate) use self::line::{escaped, json_line, time};

use std::{fmt, io, str::FromStr, sync::Arc};

use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// The filter when nobody names one.
const DEFAULT_FILTER: &str = "info";
/// A filter longer than this is refused: it comes from an HTTP request.
const FILTER_BYTES_MAX: usize = 4096;

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Tab-separated: time, level, target, message, then `key=value` fields.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The form of each line.
    pub format: Format,
    /// Which targets at which level.
    pub filter: String,
}

/// Why logging could not be set up or changed. Each is a mistake of whoever wrote the setting.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The format is neither `text` nor `json`.
    #[error("log format {0:?} is unknown: use text or json")]
    Format(String),
    /// The filter does not parse.
    #[error(
        "log filter {filter:?} is not valid: use directives such as info or karst_hbone=debug,access=info"
    )]
    Filter {
        /// As it was given.
        filter: String,
        /// What the parser says.
        #[source]
        cause: tracing_subscriber::filter::ParseError,
    },
    /// The filter is longer than anyone needs.
    #[error("log filter has {0} bytes, at most {FILTER_BYTES_MAX} are accepted")]
    FilterTooLong(usize),
    /// [`init`] ran before in this process.
    #[error("logging is already set up in this process")]
    AlreadySetUp,
    /// The subscriber is gone: the program is ending.
    #[error("logging has ended")]
    Ended,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: Format::Text,
            filter: DEFAULT_FILTER.to_owned(),
        }
    }
}

impl LogConfig {
    /// Reads `LOG_FORMAT` (`text` or `json`) and `RUST_LOG` (the filter) through `variable`, as Istio's proxies do.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, LogError> {
        let defaults = Self::default();
        let format = match variable("LOG_FORMAT") {
            Some(format) => format.parse()?,
            None => defaults.format,
        };
        let filter = variable("RUST_LOG").filter(|filter| !filter.is_empty());
        Ok(Self {
            format,
            filter: filter.unwrap_or(defaults.filter),
        })
    }
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(name: &str) -> Result<Self, LogError> {
        match name {
            "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Changes the filter of a running program. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    initial: Arc<str>,
}

/// Sets up logging for the whole process. Call it once, first thing in `main`.
///
/// # Errors
/// When the filter does not parse, or logging is already set up.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (subscriber, handle) = subscriber(config, io::stderr)?;
    subscriber
        .try_init()
        .map_err(|_already| LogError::AlreadySetUp)?;
    Ok(handle)
}

/// The same as [`init`] without making it the process's own: for a program that captures its lines.
///
/// # Errors
/// When the filter does not parse.
pub fn subscriber<W>(
    config: &LogConfig,
    writer: W,
) -> Result<(impl tracing::Subscriber + Send + Sync, LogHandle), LogError>
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, reload) = reload::Layer::new(parse(&config.filter)?);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(line::Line::new(config.format))
        .with_writer(writer);
    let handle = LogHandle {
        filter: reload,
        initial: config.filter.as_str().into(),
    };
    Ok((Registry::default().with(filter).with(lines), handle))
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    if filter.len() > FILTER_BYTES_MAX {
        return Err(LogError::FilterTooLong(filter.len()));
    }
    EnvFilter::try_new(filter).map_err(|cause| LogError::Filter {
        filter: filter.to_owned(),
        cause,
    })
}

impl LogHandle {
    /// The filter in force.
    pub fn current(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// When it does not parse: the old filter stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let filter = parse(filter)?;
        self.filter.reload(filter).map_err(|_gone| LogError::Ended)
    }

    /// Adds a directive such as `karst_hbone=debug` to the filter in force; a later directive for a target wins.
    ///
    /// # Errors
    /// When the result does not parse: the old filter stays.
    pub fn add(&self, directive: &str) -> Result<(), LogError> {
        self.set(&format!("{},{directive}", self.current()))
    }

    /// Goes back to the filter that the program started with.
    ///
    /// # Errors
    /// When the program is ending.
    pub fn reset(&self) -> Result<(), LogError> {
        self.set(&self.initial)
    }
}

#[cfg(test)]
pub(crate) use tests::captured;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Where a test's lines go.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `work` logs under `config`.
    pub(crate) fn captured(format: Format, filter: &str, work: impl FnOnce(&LogHandle)) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = LogConfig {
            format,
            filter: filter.to_owned(),
        };
        let (subscriber, handle) = subscriber(&config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&handle));
        lines.text()
    }

    #[test]
    fn the_filter_changes_live_and_resets() {
        let text = captured(Format::Text, "warn", |handle| {
            tracing::info!("one");
            handle.add("karst_telemetry=info").unwrap();
            tracing::info!("two");
            handle.reset().unwrap();
            tracing::info!("three");
        });
        assert!(
            text.contains("two") && !text.contains("one") && !text.contains("three"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_filter_leaves_the_old_one() {
        captured(Format::Text, "warn", |handle| {
            assert!(matches!(
                handle.set("a=b=c=d"),
                Err(LogError::Filter { .. })
            ));
            assert!(matches!(
                handle.set(&"x".repeat(5000)),
                Err(LogError::FilterTooLong(5000))
            ));
            assert_eq!(handle.current(), "warn");
        });
    }

    #[test]
    fn variables_choose_format_and_filter() {
        let config = LogConfig::from_variables(|name| match name {
            "LOG_FORMAT" => Some("json".to_owned()),
            _ => None,
        });
        let config = config.unwrap();
        assert_eq!(
            (config.format, config.filter.as_str()),
            (Format::Json, "info")
        );
        let wrong = LogConfig::from_variables(|_| Some("xml".to_owned())).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "log format \"xml\" is unknown: use text or json"
        );
    }
}
