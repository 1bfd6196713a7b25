//! `runtara events`: what happened.

use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use runtara_management_sdk::{Client, Event, EventFilter, EventType, SortOrder};
use tokio::time::Instant;

use crate::failure::Failure;
use crate::live::{LONGEST_OUTAGE, goes_on, or_interrupt};
use crate::screen::Screen;
use crate::text::{cut, moment, printable};

/// Longest payload that is shown in a line.
const PAYLOAD_CHARS: usize = 160;
const PAUSE: Duration = Duration::from_millis(500);

/// Print what happened to an instance
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Id of the instance
    id: String,
    /// Go on as things happen, until it ends; all earlier events come first. As JSON one object per line
    #[arg(long, short)]
    follow: bool,
    /// Only those of this type
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(EventType::KNOWN.iter().copied()))]
    event_type: Option<String>,
    /// Only custom events of this subtype
    #[arg(long)]
    subtype: Option<String>,
    /// How many at most: the newest
    #[arg(long, default_value_t = 100, value_name = "N", conflicts_with = "follow", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    args: EventsArgs,
) -> Result<(), Failure> {
    let mut filter = EventFilter::new();
    filter.event_type = args.event_type.map(EventType::from);
    filter.subtype = args.subtype;
    if args.follow {
        return or_interrupt(
            || goes_on(&args.id),
            follow(client, screen, &args.id, filter),
        )
        .await;
    }
    // The list of an unknown instance is empty: only its status tells the two apart.
    client.instance(&args.id).await?;
    let mut page = client
        .events(
            &args.id,
            &filter.sort_order(SortOrder::Desc).limit(args.limit),
        )
        .await?;
    page.items.reverse();
    if screen.json {
        return Ok(screen.json(&page)?);
    }
    if page.next_cursor.is_some() {
        screen.note(&format!(
            "the newest {} of {}",
            page.items.len(),
            page.total_count
        ));
    }
    Ok(page
        .items
        .iter()
        .try_for_each(|event| screen.line(&line(event)))?)
}

async fn follow(
    client: &Client,
    screen: &mut Screen,
    id: &str,
    filter: EventFilter,
) -> Result<(), Failure> {
    client.instance(id).await?;
    let mut events = client.follow_events(id, filter);
    let mut last_answer = Instant::now();
    loop {
        match events.next().await {
            Ok(Some(event)) if screen.json => screen.json_line(&event)?,
            Ok(Some(event)) => screen.line(&line(&event))?,
            Ok(None) => return Ok(()),
            Err(error) if error.is_transient() && last_answer.elapsed() < LONGEST_OUTAGE => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        last_answer = Instant::now();
    }
}

fn line(event: &Event) -> String {
    let mut line = format!(
        "{}  {:>5}  {:<9}",
        moment(event.created_at_ms),
        event.id,
        printable(event.event_type.as_str())
    );
    let payload = event.payload.as_ref().map(|payload| {
        let text = match payload.to_value() {
            Some(value) => value.to_string(),
            None => String::from_utf8_lossy(payload.as_bytes()).into_owned(),
        };
        cut(&text, PAYLOAD_CHARS)
    });
    for part in [event.subtype.clone(), event.checkpoint_id.clone(), payload]
        .into_iter()
        .flatten()
    {
        line.push_str("  ");
        line.push_str(&printable(&part));
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(event: serde_json::Value) -> String {
        line(&serde_json::from_value(event).unwrap())
    }

    #[test]
    fn an_event_is_a_line() {
        assert_eq!(
            text(json!({"id": 7, "instance_id": "o", "event_type": "started", "created_at_ms": 0})),
            "1970-01-01 00:00:00Z      7  started"
        );
        let progress = json!({"id": 12, "instance_id": "o", "event_type": "custom", "subtype": "progress", "created_at_ms": 0,
                              "payload": "eyJtZXNzYWdlIjoiYSJ9"});
        assert_eq!(
            text(progress),
            r#"1970-01-01 00:00:00Z     12  custom     progress  {"message":"a"}"#
        );
    }
}
