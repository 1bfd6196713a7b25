//! `runtara ps` and `runtara show`: looking at instances.

use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use runtara_management_sdk::{
    Client, Instance, InstanceFilter, InstanceOrder, InstanceSummary, Page, Status, TimeInStates,
};

use crate::failure::Failure;
use crate::image::labels_text;
use crate::screen::{Screen, status_cell};
use crate::start::output_text;
use crate::table::{Cell, Table, Tint};
use crate::text::{moment, now_ms, printable, printable_lines, relative, size, span};
use crate::values;

/// List instances
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Only those that stand so
    #[arg(long, value_parser = PossibleValuesParser::new(Status::KNOWN.iter().copied()))]
    status: Option<String>,
    /// Only those whose image has a name that begins so
    #[arg(long, value_name = "PREFIX")]
    image: Option<String>,
    /// Only those of the image with this id
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
    /// Only those with this label, may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Only those created since: 2h for two hours ago, or a moment such as 2026-08-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    created_after: Option<i64>,
    /// Only those created before
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    created_before: Option<i64>,
    /// Only those that ended since
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    finished_after: Option<i64>,
    /// Only those that ended before
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    finished_before: Option<i64>,
    /// In which order
    #[arg(long, value_parser = PossibleValuesParser::new(InstanceOrder::KNOWN.iter().copied()))]
    order: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// How many to leave out in front
    #[arg(long, value_name = "N")]
    offset: Option<u64>,
    /// Go on where a page ended
    #[arg(long, conflicts_with = "offset")]
    cursor: Option<String>,
    /// All of them, page by page; as JSON one object per line
    #[arg(long, conflicts_with_all = ["limit", "offset", "cursor"])]
    all: bool,
    /// Only the ids, one per line
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// Show everything known of an instance
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Id of the instance
    id: String,
}

impl PsArgs {
    fn filter(&self) -> InstanceFilter {
        let mut filter = InstanceFilter::new().limit(if self.all { 1000 } else { self.limit });
        filter.status = self.status.as_deref().map(Status::from);
        filter.image_name_prefix.clone_from(&self.image);
        filter.image_id.clone_from(&self.image_id);
        filter.labels = Some(self.labels.clone());
        filter.created_after_ms = self.created_after;
        filter.created_before_ms = self.created_before;
        filter.finished_after_ms = self.finished_after;
        filter.finished_before_ms = self.finished_before;
        filter.order_by = self.order.as_deref().map(InstanceOrder::from);
        filter.offset = self.offset;
        filter.cursor.clone_from(&self.cursor);
        filter
    }
}

pub(crate) async fn ps(client: &Client, screen: &mut Screen, args: PsArgs) -> Result<(), Failure> {
    let mut filter = args.filter();
    let mut is_first = true;
    loop {
        let page = client.instances(&filter).await?;
        print(screen, &args, &page, is_first)?;
        is_first = false;
        // A cursor that does not move would list the same page for ever.
        let more = page
            .next_cursor
            .clone()
            .filter(|cursor| Some(cursor) != filter.cursor.as_ref());
        match more {
            Some(cursor) if args.all => filter.cursor = Some(cursor),
            more => {
                if let (Some(cursor), false, false) = (more, screen.json, args.quiet) {
                    screen.note(&format!(
                        "{}; --all for the rest, or --cursor {cursor}",
                        counted(&page)
                    ));
                }
                return Ok(());
            }
        }
    }
}

fn print(
    screen: &mut Screen,
    args: &PsArgs,
    page: &Page<InstanceSummary>,
    is_first: bool,
) -> Result<(), Failure> {
    if args.quiet {
        page.items
            .iter()
            .try_for_each(|instance| screen.line(&printable(&instance.instance_id)))?;
    } else if screen.json && args.all {
        page.items
            .iter()
            .try_for_each(|instance| screen.json_line(instance))?;
    } else if screen.json {
        screen.json(page)?;
    } else {
        screen.table(&table(&page.items, now_ms()), is_first)?;
    }
    Ok(())
}

fn counted(page: &Page<InstanceSummary>) -> String {
    let about = if page.total_is_exact { "" } else { "about " };
    format!("{} of {about}{}", page.items.len(), page.total_count)
}

fn table(instances: &[InstanceSummary], now: i64) -> Table {
    let mut table = Table::new([
        "INSTANCE", "STATUS", "IMAGE", "CREATED", "TOOK", "NEXT", "LABELS",
    ]);
    for instance in instances {
        let took = instance
            .started_at_ms
            .map(|started| lasted(started, instance.finished_at_ms.unwrap_or(now)));
        let next = instance.due_at_ms.filter(|_| !instance.status.is_end());
        table.row([
            Cell::from(&instance.instance_id),
            status_cell(&instance.status, instance.status_reason.as_ref()),
            instance
                .image_name
                .as_ref()
                .or(instance.image_id.as_ref())
                .map_or("", String::as_str)
                .into(),
            relative(instance.created_at_ms, now).into(),
            took.unwrap_or_default().into(),
            next.map(|due| relative(due, now))
                .unwrap_or_default()
                .into(),
            Cell::new(labels_text(&instance.labels), Tint::Dim),
        ]);
    }
    table
}

fn lasted(from: i64, to: i64) -> String {
    span(Duration::from_millis(
        u64::try_from(to.saturating_sub(from)).unwrap_or_default(),
    ))
}

pub(crate) async fn show(
    client: &Client,
    screen: &mut Screen,
    args: &ShowArgs,
) -> Result<(), Failure> {
    let instance = client.instance(&args.id).await?;
    if screen.json {
        return Ok(screen.json(&instance)?);
    }
    screen.facts(&facts(&instance, now_ms()))?;
    let parts = [
        ("input", instance.input.as_ref().map(output_text)),
        ("output", instance.output.as_ref().map(output_text)),
        (
            "standard error",
            instance
                .stderr
                .as_deref()
                .map(|text| printable_lines(text.trim_end())),
        ),
    ];
    for (name, text) in parts {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            screen.text(&format!("\n{name}:\n{text}\n"))?;
        }
    }
    Ok(())
}

/// How long an instance has stood where: `pending 12ms, running 4.5s, suspended 3d 2h`.
fn stood(time: TimeInStates) -> String {
    let parts = [
        ("pending", time.pending),
        ("running", time.running),
        ("suspended", time.suspended),
    ];
    parts
        .map(|(status, ms)| format!("{status} {}", span(Duration::from_millis(ms))))
        .join(", ")
}

fn facts(instance: &Instance, now: i64) -> Vec<(&'static str, Option<Cell>)> {
    let time = |ms: Option<i64>| {
        ms.map(|ms| Cell::from(format!("{} ({})", moment(ms), relative(ms, now))))
    };
    let text = |text: &str| (!text.is_empty()).then(|| Cell::from(text));
    let cpu = |usec| span(Duration::from_micros(usec));
    vec![
        ("instance", text(&instance.instance_id)),
        ("tenant", text(&instance.tenant_id)),
        (
            "image",
            text(format!("{} {}", instance.image_name, instance.image_id).trim()),
        ),
        (
            "status",
            Some(status_cell(
                &instance.status,
                instance.status_reason.as_ref(),
            )),
        ),
        (
            "reason",
            instance
                .termination_reason
                .as_ref()
                .map(|reason| reason.as_str().into()),
        ),
        (
            "error",
            instance
                .error
                .as_ref()
                .map(|error| Cell::new(error, Tint::Red)),
        ),
        (
            "exit code",
            instance.exit_code.map(|code| code.to_string().into()),
        ),
        ("created", time(instance.created_at_ms)),
        ("started", time(instance.started_at_ms)),
        ("finished", time(instance.finished_at_ms)),
        (
            "heard of",
            time(instance.heartbeat_at_ms).filter(|_| !instance.status.is_end()),
        ),
        ("due", time(instance.due_at_ms)),
        (
            "ends by",
            time(instance.expires_at_ms).filter(|_| !instance.status.is_end()),
        ),
        ("run", instance.run_number.map(|run| run.to_string().into())),
        (
            "retries",
            instance
                .retry_count
                .filter(|count| *count > 0)
                .map(|count| count.to_string().into()),
        ),
        (
            "checkpoint",
            instance.checkpoint_id.as_ref().map(Cell::from),
        ),
        (
            "signal",
            instance
                .signal_pending
                .as_ref()
                .map(|signal| format!("{signal} (pending)").into()),
        ),
        (
            "memory peak",
            instance.memory_peak_bytes.map(|bytes| size(bytes).into()),
        ),
        ("cpu", instance.cpu_usage_usec.map(|usec| cpu(usec).into())),
        (
            "time",
            instance.time_in_states_ms.map(|time| stood(time).into()),
        ),
        ("labels", text(&labels_text(&instance.labels))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;
    use serde_json::json;

    #[test]
    fn instances_are_listed_in_columns() {
        let rows: Vec<InstanceSummary> = serde_json::from_value(json!([
            {"instance_id": "o-1", "tenant_id": "t", "status": "suspended", "status_reason": "sleeping", "image_name": "orders",
             "created_at_ms": 0, "started_at_ms": 1000, "due_at_ms": 3_600_000},
            {"instance_id": "order-2", "tenant_id": "t", "status": "completed", "image_id": "4f3c", "created_at_ms": 30_000,
             "started_at_ms": 30_000, "finished_at_ms": 30_250, "due_at_ms": 5, "labels": {"a": "b"}}
        ]))
        .unwrap();
        assert_eq!(
            table(&rows, 61_000).render(true, false),
            "INSTANCE  STATUS                IMAGE   CREATED    TOOK   NEXT        LABELS\n\
             o-1       suspended (sleeping)  orders  1m 1s ago  1m     in 58m 59s\n\
             order-2   completed             4f3c    31s ago    250ms              a=b\n"
        );
    }

    #[test]
    fn filters_are_handed_on() {
        let line = "runtara ps --status failed --image or --label a=b --label c --created-after 1970-01-01T00:00:01Z --order finished_at_asc --limit 7";
        let Command::Ps(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("another command");
        };
        let wanted = InstanceFilter::new()
            .status(Status::Failed)
            .image_name_prefix("or")
            .labels(vec!["a=b".into(), "c".into()])
            .created_after_ms(1000)
            .order_by(InstanceOrder::FinishedAtAsc)
            .limit(7);
        assert_eq!(args.filter(), wanted);
    }

    #[test]
    fn an_instance_shows_what_is_known_and_nothing_else() {
        let instance: Instance = serde_json::from_value(json!({
            "instance_id": "o-1", "status": "failed", "error": "no stock", "exit_code": 1, "run_number": 3,
            "finished_at_ms": 0, "memory_peak_bytes": 2048, "cpu_usage_usec": 1_500_000, "signal_pending": "pause",
            "time_in_states_ms": {"pending": 12, "running": 4_500, "suspended": 266_400_000}
        }))
        .unwrap();
        let text = crate::table::facts(&facts(&instance, 5_000), false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "instance     o-1",
                "status       failed",
                "error        no stock",
                "exit code    1",
                "finished     1970-01-01 00:00:00Z (5.0s ago)",
                "run          3",
                "signal       pause (pending)",
                "memory peak  2.0 KiB",
                "cpu          1.5s",
                "time         pending 12ms, running 4.5s, suspended 3d 2h",
            ]
        );
    }
}
