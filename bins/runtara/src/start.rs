//! `runtara start` and `runtara wait`: from an image to a result.

use std::time::Duration;

use clap::Args;
use runtara_management_sdk::{Client, Instance, Payload, StartRequest, Status};
use serde_json::Value;

use crate::failure::Failure;
use crate::live::until_end;
use crate::screen::Screen;
use crate::settings::SettingsArgs;
use crate::text::{printable, printable_lines};
use crate::values::{duration, exact_moment, json_from, pair, rfc3339, variable};

/// Start an instance of an image
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Name or id of the image
    #[arg(long)]
    image: String,
    /// The input as JSON in place, as @file, or - for standard input
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    input: Option<String>,
    /// Id of the new instance; the same start with the same id is one start
    #[arg(long)]
    id: Option<String>,
    /// A variable for the program, may be repeated; NAME alone hands on the one that is set here
    #[arg(long = "env", value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// A label, may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Start after this time, such as 5s or 1h30m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    delay: Option<Duration>,
    /// Start at this moment, such as 2030-01-01T08:00:00Z
    #[arg(long, value_name = "MOMENT", value_parser = exact_moment, conflicts_with = "delay")]
    at: Option<i64>,
    /// Longest running time of one run
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Launches without progress that are allowed, the first included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// Longest silence of a run: without a call to the environment for so long it is ended and launched again; 10s and more
    #[arg(long, value_name = "TIME", value_parser = duration)]
    heartbeat_timeout: Option<Duration>,
    /// The instance fails at this moment if it has not ended, such as 2030-01-01T08:00:00Z
    #[arg(long, value_name = "MOMENT", value_parser = exact_moment, conflicts_with = "expires_in")]
    expires_at: Option<i64>,
    /// The instance fails after this time if it has not ended
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Option<Duration>,
    /// How many events are kept, at least 100; 0 for all. The oldest that the program has reported are folded into one
    #[arg(long, value_name = "N")]
    max_events: Option<u32>,
    /// Makes repeated starts without an id the same start
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Wait for the end, show progress meanwhile, and print the result; with a time, no longer than that
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = duration)]
    wait: Option<Option<Duration>>,
    /// Arguments of the program
    #[arg(last = true)]
    args: Vec<String>,
}

/// Wait until an instance has ended, and print its result
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Id of the instance
    id: String,
    /// No longer than this
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn start(
    client: &Client,
    screen: &mut Screen,
    args: StartArgs,
) -> Result<(), Failure> {
    let wait = args.wait;
    let input = match &args.input {
        Some(given) => Some(json_from(given).await?),
        None => None,
    };
    let image = client.find_image(&args.image).await?;
    let started = client.start(&request(args, image.image_id, input)).await?;
    if started.deduplicated {
        screen.note(&format!("{} had been started before", started.instance_id));
    }
    match wait {
        Some(timeout) => {
            if !screen.json {
                screen.note(&format!("started {}", started.instance_id));
            }
            let ended = until_end(client, screen, &started.instance_id, timeout).await?;
            result(screen, &ended)
        }
        None if screen.json => Ok(screen.json(&started)?),
        None => Ok(screen.line(&printable(&started.instance_id))?),
    }
}

fn request(args: StartArgs, image_id: String, input: Option<Value>) -> StartRequest {
    let mut request = StartRequest::new(image_id);
    request.instance_id = args.id;
    request.input = input;
    // Half a second is not none: the wire knows whole seconds.
    let whole_seconds = |time: Duration| time.as_millis().div_ceil(1000) as u64;
    request.timeout_seconds = args.timeout.map(whole_seconds);
    request.heartbeat_timeout_seconds = args.heartbeat_timeout.map(whole_seconds);
    request.expires_at = args.expires_at.map(rfc3339);
    request.expires_in_seconds = args.expires_in.map(whole_seconds);
    request.env = args.env.into_iter().collect();
    request.labels = args.labels.into_iter().collect();
    request.start_at_ms = args.at;
    request.delay_ms = args
        .delay
        .map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    request.max_attempts = args.max_attempts;
    request.max_events = args.max_events;
    request.args = args.args;
    request.limits = args.settings.limits();
    request.network = args.settings.network();
    request.allowed_hosts = args.settings.allowed_hosts();
    request.read_only = args.settings.read_only();
    request.idempotency_key = args.idempotency_key;
    request
}

pub(crate) async fn wait(
    client: &Client,
    screen: &mut Screen,
    args: &WaitArgs,
) -> Result<(), Failure> {
    let ended = until_end(client, screen, &args.id, args.timeout).await?;
    result(screen, &ended)
}

/// Prints the result of an ended instance; one without a result is a failure of the command.
fn result(screen: &mut Screen, ended: &Instance) -> Result<(), Failure> {
    if screen.json {
        screen.json(ended)?;
    } else if let Some(output) = &ended.output {
        screen.line(&output_text(output))?;
    }
    if ended.status == Status::Completed {
        return Ok(());
    }
    if let Some(stderr) = ended
        .stderr
        .as_ref()
        .filter(|text| !screen.json && !text.trim().is_empty())
    {
        screen.note(stderr.trim_end());
    }
    Err(Failure::Ended {
        id: ended.instance_id.clone(),
        status: ended.status.clone(),
        error: ended.error.clone(),
    })
}

/// A result as people read it: text as it is, other JSON indented.
pub(crate) fn output_text(output: &Payload) -> String {
    match output.to_value() {
        Some(Value::String(text)) => printable_lines(&text),
        Some(value) => serde_json::to_string_pretty(&value).unwrap_or_else(|_| value.to_string()),
        None => printable_lines(&String::from_utf8_lossy(output.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;
    use runtara_management_sdk::{NetworkMode, ResourceLimits};

    fn parse(line: &str) -> StartArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Start(args) => args,
            other => panic!("another command: {other:?}"),
        }
    }

    #[test]
    fn everything_typed_is_asked_for() {
        let args = parse(
            "runtara start --image orders --id o-1 --env A=1 --env B=2=3 --label t=s --delay 1m --timeout 1500ms \
             --max-attempts 2 --max-events 500 --heartbeat-timeout 10500ms --expires-at 2030-01-01T08:00:00.5Z --idempotency-key k --memory 256M --cpus 0.5 --pids 5 --open-files 6 --writable 1G \
             --network pasta --read-only --wait=10s -- -v x",
        );
        assert_eq!(args.wait, Some(Some(Duration::from_secs(10))));
        let request = request(args, "i-1".to_owned(), Some(5.into()));
        assert_eq!(request.image_id, "i-1");
        assert_eq!(request.instance_id.as_deref(), Some("o-1"));
        assert_eq!(request.env["B"], "2=3");
        assert_eq!(request.labels["t"], "s");
        assert_eq!(
            (
                request.delay_ms,
                request.timeout_seconds,
                request.max_attempts,
                request.max_events
            ),
            (Some(60_000), Some(2), Some(2), Some(500))
        );
        assert_eq!(request.heartbeat_timeout_seconds, Some(11));
        assert_eq!(
            request.expires_at.as_deref(),
            Some("2030-01-01T08:00:00.5Z")
        );
        assert_eq!(request.args, ["-v", "x"]);
        assert_eq!(request.idempotency_key.as_deref(), Some("k"));
        let limits = ResourceLimits::new()
            .memory_bytes(256 << 20)
            .cpu_millicores(500)
            .pids(5)
            .open_files(6)
            .writable_bytes(1 << 30);
        assert_eq!(request.limits, limits);
        assert_eq!(request.network, Some(NetworkMode::Egress));
        assert_eq!(request.read_only, Some(true));
    }

    #[test]
    fn waiting_takes_a_time_only_behind_an_equals_sign() {
        assert_eq!(parse("runtara start --image a --wait").wait, Some(None));
        assert_eq!(parse("runtara start --image a").wait, None);
        assert_eq!(
            parse("runtara start --image a --input -").input.as_deref(),
            Some("-")
        );
        assert_eq!(
            parse("runtara start --image a --input -5").input.as_deref(),
            Some("-5")
        );
        assert_eq!(
            parse("runtara start --image a --at 1970-01-01T00:00:01Z").at,
            Some(1000)
        );
    }

    #[test]
    fn a_read_only_root_can_be_taken_back() {
        let args = parse("runtara start --image a --read-only=false");
        assert_eq!(args.settings.read_only(), Some(false));
        let args = parse("runtara start --image a");
        assert_eq!(args.settings.read_only(), None);
        assert!(args.settings.limits().is_empty());
    }

    #[test]
    fn results_read_well() {
        let text = |json: &str| output_text(&Payload::from(json.as_bytes().to_vec()));
        assert_eq!(text(r#""a\nb""#), "a\nb");
        assert_eq!(text(r#"{"a":1}"#), "{\n  \"a\": 1\n}");
        assert_eq!(text("no json"), "no json");
    }
}
