//! What may be typed.

use clap::{Args, Parser, Subcommand, ValueEnum};
use runtara_management_sdk::{Client, ClientBuilder};

use crate::failure::Failure;
use crate::screen::Screen;
use crate::{
    checkpoints, completions, doctor, events, image, instances, lifecycle, logs, node, start, stop,
};

/// Register programs, start durable instances of them, and see where they stand.
#[derive(Debug, Parser)]
#[command(name = "runtara", version, propagate_version = true, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 fine, 1 the instance failed or the server refused, 2 usage, 3 not found, \
4 the server or the registry cannot be reached, 124 the time to wait is over, 130 interrupted.";

/// Under what the options of every command stand, apart from a command's own.
const HEADING: &str = "Everywhere";

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Address of the environment, as host:port or http://host:port
    #[arg(
        long,
        global = true,
        help_heading = HEADING,
        env = "RUNTARA_ENVIRONMENT_ADDR",
        default_value = "127.0.0.1:8002",
        value_name = "ADDRESS"
    )]
    pub(crate) server: String,
    /// The tenant to act for
    #[arg(
        long,
        global = true,
        help_heading = HEADING,
        env = "RUNTARA_TENANT",
        default_value = "default",
        value_name = "ID"
    )]
    pub(crate) tenant: String,
    /// Print JSON, for scripts
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) json: bool,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, help_heading = HEADING, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub(crate) color: When,
}

/// When to use colours. The variants carry no doc comments: clap would switch to its long, spaced-out help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

/// One verb each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Register, list, show and delete images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Start an instance of an image
    Start(start::StartArgs),
    /// List instances
    Ps(instances::PsArgs),
    /// Show everything known of an instance
    Show(instances::ShowArgs),
    /// Print what an instance wrote
    Logs(logs::LogsArgs),
    /// Print what happened to an instance
    Events(events::EventsArgs),
    /// List an instance's checkpoints, or show one
    Checkpoints(checkpoints::CheckpointsArgs),
    /// Send a custom signal that an instance waits for
    Signal(lifecycle::SignalArgs),
    /// Ask instances to leave and wait for a resume
    Pause(lifecycle::Instances),
    /// Let instances run on from their last checkpoint
    Resume(lifecycle::Instances),
    /// Ask instances to end
    Cancel(lifecycle::Instances),
    /// End instances: ask, then kill after the grace
    Stop(stop::StopArgs),
    /// Wait until an instance has ended, and print its result
    Wait(start::WaitArgs),
    /// Remove ended instances with their checkpoints, events and logs
    Rm(lifecycle::Instances),
    /// List, drain and remove the servers that share a database
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Check what works on the machine of the server and what to install there
    ///
    /// The server tells what it found out when it started. Where none can be reached, `runtara-environment doctor` tells the same on
    /// its machine.
    ///
    /// Exit status: 0 the server is ready, 1 it is not, 4 it cannot be reached. What is missing for single kinds of images is
    /// told, and does not count.
    Doctor,
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Carries a command out.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let mut screen = Screen::new(cli.global.json, cli.global.color);
    let screen = &mut screen;
    match (cli.command, client(&cli.global)) {
        // No server is asked for these: a setting that no client can have must not keep a shell from starting.
        (Command::Completions(args), _) => completions::run(screen, &args),
        (_, Err(failure)) => Err(failure),
        (Command::Image(command), Ok(client)) => image::run(&client, screen, command).await,
        (Command::Start(args), Ok(client)) => start::start(&client, screen, args).await,
        (Command::Ps(args), Ok(client)) => instances::ps(&client, screen, args).await,
        (Command::Show(args), Ok(client)) => instances::show(&client, screen, &args).await,
        (Command::Logs(args), Ok(client)) => logs::run(&client, screen, &args).await,
        (Command::Events(args), Ok(client)) => events::run(&client, screen, args).await,
        (Command::Checkpoints(args), Ok(client)) => checkpoints::run(&client, screen, args).await,
        (Command::Signal(args), Ok(client)) => lifecycle::signal(&client, screen, args).await,
        (Command::Pause(args), Ok(client)) => lifecycle::pause(&client, screen, &args).await,
        (Command::Resume(args), Ok(client)) => lifecycle::resume(&client, screen, &args).await,
        (Command::Cancel(args), Ok(client)) => lifecycle::cancel(&client, screen, &args).await,
        (Command::Stop(args), Ok(client)) => stop::run(&client, screen, &args).await,
        (Command::Wait(args), Ok(client)) => start::wait(&client, screen, &args).await,
        (Command::Rm(args), Ok(client)) => lifecycle::remove(&client, screen, &args).await,
        (Command::Node(command), Ok(client)) => node::run(&client, screen, command).await,
        (Command::Doctor, Ok(client)) => doctor::run(&client, screen).await,
    }
}

fn client(global: &Global) -> Result<Client, Failure> {
    let builder = ClientBuilder::from_env()?;
    Ok(builder
        .address(&global.server)
        .tenant(&global.tenant)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    /// Walks over a command and all below it.
    fn each(
        command: &clap::Command,
        path: &str,
        seen: &mut Vec<String>,
        check: &dyn Fn(&clap::Command, &str),
    ) {
        seen.push(path.to_owned());
        check(command, path);
        for below in command
            .get_subcommands()
            .filter(|below| below.get_name() != "help")
        {
            each(below, &format!("{path} {}", below.get_name()), seen, check);
        }
    }

    #[test]
    fn every_verb_and_every_option_says_what_it_does() {
        let mut seen = Vec::new();
        let mut command = Cli::command();
        command.build();
        each(&command, "runtara", &mut seen, &|command, path| {
            assert!(
                command
                    .get_about()
                    .is_some_and(|about| !about.to_string().is_empty()),
                "{path} has no text"
            );
            let help = command.clone().render_help().to_string();
            assert!(help.contains("Usage: runtara"), "{path}: {help}");
            for argument in command.get_arguments() {
                let text = argument
                    .get_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    !text.is_empty(),
                    "{path}: {} has no text",
                    argument.get_id()
                );
            }
        });
        let verbs = [
            "image",
            "image push",
            "image pull",
            "image ls",
            "image show",
            "image rm",
            "start",
            "ps",
            "show",
            "logs",
            "events",
            "checkpoints",
            "signal",
            "pause",
            "resume",
            "cancel",
            "stop",
            "wait",
            "rm",
            "node",
            "node ls",
            "node drain",
            "node undrain",
            "node remove",
            "doctor",
            "completions",
        ];
        for verb in verbs {
            assert!(
                seen.contains(&format!("runtara {verb}")),
                "{verb} is missing in {seen:?}"
            );
        }
        assert_eq!(seen.len(), verbs.len() + 1, "{seen:?}");
    }

    #[test]
    fn every_verb_answers_to_help() {
        let mut seen = Vec::new();
        let mut command = Cli::command();
        command.build();
        each(&command, "runtara", &mut seen, &|_, _| {});
        for path in seen {
            let words = path.split(' ').chain(["--help"]);
            let help = Cli::try_parse_from(words).expect_err("help is not a command");
            assert_eq!(help.kind(), ErrorKind::DisplayHelp, "{path}");
            assert!(help.to_string().lines().count() > 5, "{path}: {help}");
        }
    }

    #[test]
    fn globals_stand_before_or_behind_the_verb() {
        for line in [
            "runtara --json --tenant t ps",
            "runtara ps --tenant t --json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json && cli.global.tenant == "t", "{line}");
            assert_eq!(cli.global.color, When::Auto);
        }
    }

    #[test]
    fn the_readme_tells_every_setting_and_exit_status() {
        let readme: Vec<_> = include_str!("../../../README.md")
            .split_whitespace()
            .collect();
        let readme = readme.join(" ");
        let mut wanted = vec![
            "RUNTARA_CONNECT_TIMEOUT_MS".to_owned(),
            "RUNTARA_REQUEST_TIMEOUT_MS".to_owned(),
        ];
        for argument in Cli::command().get_arguments() {
            let variable = argument.get_env();
            wanted.extend(variable.map(|name| name.to_string_lossy().into_owned()));
            wanted.extend(argument.get_long().map(|name| format!("`--{name}`")));
        }
        let statuses = EXIT_STATUS.trim_end_matches('.').split(", ");
        wanted.extend(statuses.map(str::to_owned));
        wanted.retain(|text| text != "`--help`" && text != "`--version`");
        assert!(wanted.len() > 12, "{wanted:?}");
        for text in wanted {
            assert!(readme.contains(&text), "the README does not say {text:?}");
        }
    }

    /// Splits a line as a shell does where nothing but single quotes is special.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for letter in line.chars() {
            match letter {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                other => words.last_mut().unwrap().push(other),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn what_the_documentation_shows_can_be_typed() {
        let readme = include_str!("../../../README.md")
            .lines()
            .flat_map(|line| line.split(" #").next().unwrap_or_default().split("; "))
            .filter(|command| command.starts_with("runtara "));
        let sdk = include_str!("../../../crates/sdk/src/lib.rs")
            .split('`')
            .filter(|text| text.starts_with("runtara "));
        let commands: Vec<_> = readme.chain(sdk).collect();
        assert!(commands.len() > 10, "{commands:?}");
        for command in commands {
            if let Err(error) = Cli::try_parse_from(words(command)) {
                panic!("{command}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "runtara",
            "runtara start",
            "runtara start --image a --delay 5s --at 2030-01-01T00:00:00Z",
            "runtara start --image a --delay soon",
            "runtara start --image a --label =v",
            "runtara start --image a --memory 256MB",
            "runtara start --image a --cpus half",
            "runtara start --image a --network bridge",
            "runtara image push a --read-only false b",
            "runtara ps --all --offset 5",
            "runtara ps --cursor a --offset 5",
            "runtara ps --status asleep",
            "runtara pause",
            "runtara signal id",
            "runtara completions tcsh",
            "runtara node",
            "runtara node drain",
            "runtara node drain a --hand-over-after soon",
            "runtara image pull work",
            "runtara image pull --from alpine",
            "runtara image pull work --from https://ghcr.io/a",
            "runtara image pull work --from alpine --platform arm64",
            "runtara --color maybe ps",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }
}
