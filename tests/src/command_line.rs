//! The command line, as a person runs it against a server.

use std::process::{Child, Command, Stdio};

use crate::programs::program;
use crate::server::Server;
use crate::verbs::TENANT;

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ran {
    /// Waits for the end of a command.
    ///
    /// # Panics
    /// If it cannot be waited for.
    #[must_use]
    pub fn of(child: Child) -> Self {
        let output = child.wait_with_output().expect("it is our child");
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Gives what a command wrote that ended with this exit status.
    ///
    /// # Panics
    /// If it ended otherwise.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "another exit status: {self:#?}");
        self
    }
}

impl Server {
    /// The address of the environment protocol as people write it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.environment_port())
    }

    /// The address of the core as people write it.
    #[must_use]
    pub fn core_address(&self) -> String {
        format!("127.0.0.1:{}", self.core_port())
    }

    /// Begins a command of `runtara` for [`TENANT`], with nothing of this process's environment.
    ///
    /// # Panics
    /// If the program was not built.
    #[must_use]
    #[track_caller]
    pub fn begin(&self, arguments: &[&str]) -> Child {
        let child = Command::new(program("runtara"))
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUNTARA_ENVIRONMENT_ADDR", self.address())
            .env("RUNTARA_TENANT", TENANT)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        child.expect("the command can be started")
    }

    /// Carries a command of `runtara` out.
    #[must_use]
    #[track_caller]
    pub fn runtara(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.begin(arguments))
    }
}
