//! `runtara-environment maintain`: has what is not needed any more removed, now.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;
use runtara_environment::Error;
use runtara_environment::maintain::{Event, NAMES, Report, Request, maintain};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The status of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// What is asked for.
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// Remove nothing, and say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Do this one alone; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(NAMES))]
    only: Vec<String>,
    /// How many things are named of what each removes, at most 1000.
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1000))]
    names: u16,
    /// Say it as JSON: one object.
    #[arg(long)]
    json: bool,
}

/// Does it and tells.
pub(crate) async fn run(wanted: &Wanted) -> Result<ExitCode, Error> {
    let request = Request {
        dry_run: wanted.dry_run,
        only: wanted.only.clone(),
        names: usize::from(wanted.names),
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(super::signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(super::signals)?;
    let (events, mut told) = mpsc::channel(16);
    let mut reports = Vec::new();
    let mut is_interrupted = false;
    let doing = maintain(&request, events);
    let listening = async {
        loop {
            let event = tokio::select! {
                event = told.recv() => event,
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            };
            match event {
                None => return,
                Some(Event::Progress { name, items, bytes }) => {
                    eprintln!("{name}: {items} so far, {}", human(bytes));
                }
                Some(Event::Done(report)) => reports.push(report),
            }
        }
        is_interrupted = true;
        eprintln!("interrupted; it ends after the batch that is under way");
        // Whoever is at work sees that nobody listens.
        told.close();
    };
    let (done, ()) = tokio::join!(doing, listening);
    while let Ok(event) = told.try_recv() {
        if let Event::Done(report) = event {
            reports.push(report);
        }
    }
    if reports.is_empty() || !is_interrupted {
        done?;
    }
    let text = match wanted.json {
        true => format!(
            "{}\n",
            json!({ "dry_run": wanted.dry_run, "interrupted": is_interrupted, "reconcilers": reports })
        ),
        false => reports
            .iter()
            .map(|report| told_of(report, wanted.dry_run))
            .collect(),
    };
    let printed = io::stdout().lock().write_all(text.as_bytes());
    let has_failed = reports.iter().any(|report| report.error.is_some());
    Ok(match printed {
        // Whoever has read enough has not been failed.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ if is_interrupted => ExitCode::from(INTERRUPTED),
        _ if has_failed => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// What one did, for people.
fn told_of(report: &Report, dry_run: bool) -> String {
    let verb = if dry_run {
        "would be removed"
    } else {
        "removed"
    };
    let mut text = format!(
        "{:<10} {} {verb}, {}, in {} ms ({})\n",
        report.name,
        report.items,
        human(report.bytes),
        report.took_ms,
        printable(&report.about),
    );
    for name in &report.names {
        let _infallible = writeln!(text, "    {}", printable(name));
    }
    let more = report.items.saturating_sub(report.names.len() as u64);
    if more > 0 && !report.names.is_empty() {
        let _infallible = writeln!(text, "    and {more} more");
    }
    if report.stopped {
        text.push_str("    stopped before its end\n");
    }
    if let Some(error) = &report.error {
        let _infallible = writeln!(text, "    failed: {}", printable(error));
    }
    text
}

/// What others have named must not steer the terminal.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(shown).collect()
}

fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut unit, mut size) = ("B", bytes as f64);
    for larger in UNITS {
        if size < 1024.0 {
            break;
        }
        (unit, size) = (larger, size / 1024.0);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_told_in_full() {
        let report = Report {
            name: "instances".to_owned(),
            about: "ended instances beyond their retention".to_owned(),
            items: 3,
            bytes: 3 << 19,
            names: vec!["a\u{1b}[2J of acme, failed".to_owned()],
            took_ms: 12,
            stopped: true,
            error: Some("the store is away".to_owned()),
        };
        let wanted = "instances  3 would be removed, 1.5 MiB, in 12 ms (ended instances beyond their retention)\n    \
                      a [2J of acme, failed\n    and 2 more\n    stopped before its end\n    failed: the store is away\n";
        assert_eq!(told_of(&report, true), wanted);
    }

    #[test]
    fn sizes_are_said_in_their_units() {
        for (bytes, wanted) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(human(bytes), wanted);
        }
    }
}
