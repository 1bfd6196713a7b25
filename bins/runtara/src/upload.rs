//! What uploads of images share: what is told of an image, the line that shows how far it is, and the end.

use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::PossibleValuesParser;
use runtara_management_sdk::{ImageRegistration, RunnerKind, UploadProgress};

use crate::screen::Screen;
use crate::settings::SettingsArgs;
use crate::text::{cut, printable, size};
use crate::values::pair;

/// How often the line is written anew.
const REDRAW: Duration = Duration::from_millis(100);
/// Columns for the name in the line: as much again is left for the numbers on a terminal of 80.
const NAME_WIDTH: usize = 40;

/// What is told of an image beside its name.
#[derive(Debug, Args)]
pub(crate) struct Described {
    /// What it is for, in your words
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The isolation to demand; decided by the content if absent
    #[arg(long, value_parser = PossibleValuesParser::new(RunnerKind::KNOWN.iter().copied()))]
    kind: Option<String>,
    /// A label, may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Described {
    /// Begins the registration of an image called `name`.
    pub(crate) fn registration(self, name: &str) -> ImageRegistration {
        let mut registration = ImageRegistration::new(name);
        registration.description = self.description;
        registration.runner_type = self.kind.map(RunnerKind::from);
        registration.labels = self.labels.into_iter().collect();
        registration.limits = self.settings.limits();
        registration.network = self.settings.network();
        registration.allowed_hosts = self.settings.allowed_hosts();
        registration.read_only = self.settings.read_only();
        registration
    }
}

/// The line on standard error that shows how far something is, where it can be written over.
pub(crate) struct Line {
    is_live: bool,
    head: String,
    drawn: Option<Instant>,
}

impl Line {
    /// Shows that `verb` is being done to `name`.
    pub(crate) fn begin(screen: &Screen, verb: &str, name: &str) -> Self {
        let mut line = Self {
            is_live: screen.is_live(),
            head: format!("{verb} {}", cut(&printable(name), NAME_WIDTH)),
            drawn: None,
        };
        line.draw("");
        line
    }

    /// Shows so many bytes of so many.
    pub(crate) fn show(&mut self, done: u64, total: Option<u64>) {
        if self.drawn.is_none_or(|drawn| drawn.elapsed() > REDRAW) {
            self.draw(&format!("  {}", progress_text(done, total)));
            self.drawn = Some(Instant::now());
        }
    }

    /// Makes what an upload calls.
    pub(crate) fn uploading(mut self) -> impl FnMut(UploadProgress) + Send + 'static {
        move |progress| self.show(progress.sent_bytes, progress.total_bytes)
    }

    fn draw(&mut self, text: &str) {
        if self.is_live {
            let line = format!("\r\u{1b}[2K{}{text}", self.head);
            // Whoever does not see it misses nothing of the result.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

fn progress_text(done: u64, total: Option<u64>) -> String {
    let shown = size(done);
    match total {
        Some(total) if total > 0 => {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!("{shown} of {}  {percent} %", size(total))
        }
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_as_far_as_it_is_known() {
        assert_eq!(progress_text(512, Some(2048)), "512 B of 2.0 KiB  25 %");
        assert_eq!(progress_text(512, Some(0)), "512 B");
        assert_eq!(progress_text(2048, None), "2.0 KiB");
        let huge = progress_text(u64::MAX, Some(u64::MAX));
        assert!(huge.ends_with("  100 %"), "{huge}");
    }
}
