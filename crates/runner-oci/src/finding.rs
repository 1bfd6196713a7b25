//! What was found out about this machine, for `doctor`.

/// Something that was found out, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, in a word or two.
    pub about: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found, and, if it is not fine, after a semicolon what to do.
    pub text: String,
}

/// How it is with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Fine,
    /// Containers run, and the operator should know.
    Warning,
    /// Containers cannot run like this.
    Unfit,
}

impl Finding {
    pub(crate) fn new(about: &'static str, level: Level, text: impl Into<String>) -> Self {
        Self {
            about,
            level,
            text: text.into(),
        }
    }
}
