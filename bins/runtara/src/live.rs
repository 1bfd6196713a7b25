//! Watching an instance until it ends: a line that is written over on a terminal, else a line for each change.

use std::time::Duration;

use runtara_management_sdk::{Client, Error, EventFilter, EventType, Instance, SortOrder, Status};
use serde_json::Value;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::screen::{Screen, status_text};
use crate::text::{cut, printable, span};

/// How long the server is asked to wait at a time: short where each round shows something, long where none does.
const SHOWING: Duration = Duration::from_millis(500);
const SILENT: Duration = Duration::from_secs(20);
/// How long a server that answered before may be away.
pub(crate) const LONGEST_OUTAGE: Duration = Duration::from_secs(60);
/// Longest message of a program on the line.
const MESSAGE_CHARS: usize = 200;

/// Waits until the instance has ended, or `timeout` is over, or the user leaves.
pub(crate) async fn until_end(
    client: &Client,
    screen: &mut Screen,
    id: &str,
    timeout: Option<Duration>,
) -> Result<Instance, Failure> {
    let is_live = screen.is_live();
    let result = or_interrupt(|| goes_on(id), watch(client, screen, id, timeout)).await;
    if is_live {
        screen.over("");
    }
    result
}

/// What becomes of an instance whose user only looked at it.
pub(crate) fn goes_on(id: &str) -> String {
    format!("instance {id:?} goes on, `runtara wait {id}` waits for it again")
}

/// Carries `work` out unless the user leaves with Ctrl-C first, who is told what becomes of it.
pub(crate) async fn or_interrupt<T>(
    left_behind: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        result = work => result,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            Err(Failure::Interrupted(left_behind()))
        }
    }
}

async fn watch(
    client: &Client,
    screen: &mut Screen,
    id: &str,
    timeout: Option<Duration>,
) -> Result<Instance, Failure> {
    let began = Instant::now();
    let deadline = timeout.map(|timeout| began + timeout);
    let longest = if screen.json { SILENT } else { SHOWING };
    // The first answer shows at once where things stand.
    let mut round = Duration::ZERO;
    let mut last: Option<(Status, Instant)> = None;
    let mut shown = String::new();
    loop {
        let asked = Instant::now();
        match client.instance_after(id, round).await {
            Ok(instance) if instance.status.is_end() => return Ok(instance),
            Ok(instance) => {
                last = Some((instance.status.clone(), Instant::now()));
                let progress = if screen.json {
                    None
                } else {
                    progress(client, id).await
                };
                show(
                    screen,
                    &line(&instance, progress.as_deref()),
                    began,
                    &mut shown,
                );
            }
            Err(error) => match &last {
                Some((_, answered))
                    if error.is_transient() && answered.elapsed() < LONGEST_OUTAGE =>
                {
                    show(
                        screen,
                        &format!("{}  the server is away, waiting for it", printable(id)),
                        began,
                        &mut shown,
                    );
                }
                _ => return Err(error.into()),
            },
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if let (Some(after), Some(Duration::ZERO), Some((status, _))) = (timeout, left, &last) {
            let (id, status) = (id.to_owned(), status.clone());
            return Err(Error::WaitTimedOut { id, after, status }.into());
        }
        // Where the server did not wait, this does; the first round is not to be waited for.
        let next = asked
            + if round.is_zero() {
                Duration::ZERO
            } else {
                SHOWING.min(round)
            };
        tokio::time::sleep_until(next).await;
        round = left
            .unwrap_or(longest)
            .min(longest)
            .max(Duration::from_millis(1));
    }
}

/// What the program said last of its progress. It is an ornament: where it cannot be had, the line goes without.
async fn progress(client: &Client, id: &str) -> Option<String> {
    let filter = EventFilter::new()
        .event_type(EventType::Custom)
        .subtype("progress")
        .sort_order(SortOrder::Desc)
        .limit(1);
    let page = client.events(id, &filter).await.ok()?;
    progress_text(&page.items.first()?.payload.as_ref()?.to_value()?)
}

/// `{"message", "percent"?}` in words.
fn progress_text(told: &Value) -> Option<String> {
    let message = told
        .get("message")
        .and_then(Value::as_str)
        .map(|text| cut(&printable(text), MESSAGE_CHARS));
    let percent = told
        .get("percent")
        .and_then(Value::as_f64)
        .map(|percent| format!("{percent:.0} %"));
    let words: Vec<_> = percent.into_iter().chain(message).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Where the instance stands, without the time, so that only a change makes a new one.
fn line(instance: &Instance, progress: Option<&str>) -> String {
    let mut line = format!(
        "{}  {}",
        printable(&instance.instance_id),
        printable(&status_text(
            &instance.status,
            instance.status_reason.as_ref()
        ))
    );
    if let Some(run) = instance.run_number.filter(|run| *run > 1) {
        line.push_str(&format!("  run {run}"));
    }
    if let Some(due) = instance
        .due_at_ms
        .filter(|_| !matches!(instance.status, Status::Running))
    {
        line.push_str(&format!("  until {}", crate::text::moment(due)));
    }
    if let Some(progress) = progress {
        line.push_str("  ");
        line.push_str(progress);
    }
    line
}

fn show(screen: &mut Screen, line: &str, began: Instant, shown: &mut String) {
    if screen.is_live() {
        screen.over(&format!("{line}  {}", span(began.elapsed())));
    } else if !screen.json && line != shown {
        screen.note(line);
        line.clone_into(shown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn progress_is_told_in_words() {
        for (told, wanted) in [
            (
                json!({"message": "charging\u{7} card", "percent": 41.7}),
                Some("42 % charging  card"),
            ),
            (json!({"message": "a"}), Some("a")),
            (json!({"percent": 5}), Some("5 %")),
            (json!({"other": 1}), None),
            (json!("text"), None),
        ] {
            assert_eq!(progress_text(&told).as_deref(), wanted, "{told}");
        }
    }

    #[test]
    fn the_line_tells_status_run_and_due_time() {
        let instance: Instance = serde_json::from_value(json!({
            "instance_id": "o-1", "status": "suspended", "status_reason": "sleeping", "run_number": 2, "due_at_ms": 0
        }))
        .unwrap();
        assert_eq!(
            line(&instance, Some("50 % half")),
            "o-1  suspended (sleeping)  run 2  until 1970-01-01 00:00:00Z  50 % half"
        );
    }
}
