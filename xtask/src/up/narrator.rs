//! Tells a person what happens, when it happens.

use std::time::Instant;

/// Prints short lines with the time since the story began.
#[derive(Clone, Copy)]
pub(super) struct Narrator {
    began: Instant,
}

impl Narrator {
    /// Begins the story now.
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    /// Says what was seen or done.
    pub(super) fn say(self, text: impl AsRef<str>) {
        println!(
            "{:7.2} s  {}",
            self.began.elapsed().as_secs_f64(),
            text.as_ref()
        );
    }

    /// Says what was done to the instance or the server, so that it stands out.
    pub(super) fn strike(self, text: impl AsRef<str>) {
        self.say(format!(">>> {}", text.as_ref()));
    }
}
