//! The real command against a server that answers as a test says.

#[path = "../../../../crates/management-sdk/tests/client/fake.rs"]
mod fake;

mod containers;
mod doctor;
mod exit_status;
mod output;
mod shapes;
mod waiting;

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// Longest time a command of a test may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The command with a clean environment and a server's address.
pub(crate) fn command(server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtara"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("RUNTARA_ENVIRONMENT_ADDR", server)
        .env("RUNTARA_TENANT", "acme")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

pub(crate) async fn finish(child: Child) -> Ran {
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    let output = output
        .expect("the command ends in time")
        .expect("the command can be awaited");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) async fn run(server: &str, arguments: &[&str]) -> Ran {
    finish(
        command(server, arguments)
            .spawn()
            .expect("the command starts"),
    )
    .await
}

pub(crate) async fn run_with_input(server: &str, arguments: &[&str], input: &str) -> Ran {
    let mut child = command(server, arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = child.stdin.take().expect("a piped input");
    stdin
        .write_all(input.as_bytes())
        .await
        .expect("the command reads its input");
    drop(stdin);
    finish(child).await
}
