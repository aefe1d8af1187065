//! The one error type that crosses module boundaries. Not here: verdicts on events (they are data).

use std::fmt;

/// What a caller must do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The call, the request or the configuration is wrong: fix it.
    Invalid,
    /// What was named does not exist.
    NotFound,
    /// Over a stated limit on size or number.
    TooLarge,
    /// Too much at once: try again after a pause.
    Exhausted,
    /// Cannot answer now: try again with back-off.
    Unavailable,
    /// The read demands positions that were not applied within its wait.
    NotYetApplied,
    /// Stored bytes are not what was written: rebuild.
    Corrupted,
    /// A defect of Thalweg itself, or of the machine below it.
    Internal,
}

/// An error with the reaction that it asks for and one sentence for a person.
#[derive(Debug)]
pub struct Error {
    /// What to do about it.
    pub kind: ErrorKind,
    /// One sentence: what is wrong.
    pub message: String,
    /// What would mend it; empty when nothing is known.
    pub hint: String,
}

/// The result of fallible operations of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new() }
    }

    /// The caller's mistake.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Something that was named and does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// A passing inability.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Stored bytes that cannot be right.
    pub fn corrupted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupted, message)
    }

    /// What RocksDB has said of `what`.
    #[cfg(feature = "rocksdb")]
    pub fn of_storage(what: &str, error: &rocksdb::Error) -> Self {
        use rocksdb::ErrorKind as Kind;
        let message = format!("{what}: {error}");
        match error.kind() {
            Kind::Corruption => Self::corrupted(message),
            // A full disk, too many open files: what may pass.
            Kind::IOError
            | Kind::Busy
            | Kind::TimedOut
            | Kind::TryAgain
            | Kind::Incomplete
            | Kind::Aborted => Self::unavailable(message),
            _ => Self::internal(message),
        }
    }

    /// A defect or a failing machine.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same error with a remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::internal(format!("input/output: {e}"))
    }
}
