//! How a command ends that did not do what it was asked.

use std::process::ExitCode;

/// Why, in the words that scripts decide by: the exit code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// 1: it failed.
    Error(anyhow::Error),
    /// 2: it was asked in a way that makes no sense. clap ends with the same code.
    Usage(String),
    /// 3: there is no such thing.
    NotFound(String),
    /// 4: it contradicts what is there.
    Conflict(String),
    /// 5: it goes on, and was not waited for any longer.
    StillRunning(String),
}

impl Failure {
    /// What happened, without the code.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Error(error) => format!("{error:#}"),
            Self::Usage(text) | Self::NotFound(text) | Self::Conflict(text) | Self::StillRunning(text) => {
                text.clone()
            }
        }
    }

    /// Says so on standard error.
    pub(crate) fn told(self) -> ExitCode {
        let (text, code) = match self {
            // With all its causes.
            Self::Error(error) => (format!("{error:#}"), 1),
            Self::Usage(text) => (text, 2),
            Self::NotFound(text) => (text, 3),
            Self::Conflict(text) => (text, 4),
            Self::StillRunning(text) => (text, 5),
        };
        eprintln!("error: {text}");
        ExitCode::from(code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// What commands return.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;
