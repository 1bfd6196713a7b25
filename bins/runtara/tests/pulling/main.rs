//! The real command between a registry and a server: a real registry, and ones that answer as a test says.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

#[path = "../../../../crates/oci-pull/tests/pulling/content.rs"]
#[expect(dead_code, reason = "shared with the tests of the library")]
mod content;
#[path = "../../../../crates/oci-pull/tests/pulling/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the library")]
mod fake;
#[path = "../../../../crates/oci-pull/tests/pulling/real.rs"]
#[expect(dead_code, reason = "shared with the tests of the library")]
mod real;

mod exit_status;
mod registered;
mod secure;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;

use fake::{Fake, Reply};

/// Longest time a command of a test may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A server of the environment that takes every image.
pub(crate) async fn environment() -> Fake {
    Fake::start(|asked| match asked.method.as_str() {
        "POST" => {
            let answer = json!({"success": true, "image_id": "4f3c"});
            Reply::new(201, answer.to_string()).header("content-type", "application/json")
        }
        _ => {
            let answer = json!({"healthy": true, "version": "0.1.0"});
            Reply::new(200, answer.to_string()).header("content-type", "application/json")
        }
    })
    .await
}

/// Who runs the command: a directory of their own, for what is temporary and for the configuration of docker.
pub(crate) struct Person {
    home: tempfile::TempDir,
    server: String,
    more: Vec<(&'static str, String)>,
}

impl Person {
    pub(crate) fn of(server: &Fake) -> Self {
        let person = Self {
            home: tempfile::tempdir().unwrap(),
            server: server.address.to_string(),
            more: Vec::new(),
        };
        std::fs::create_dir_all(person.home().join(".docker")).unwrap();
        std::fs::create_dir_all(person.temporary()).unwrap();
        person
    }

    /// Sets a variable of the environment.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.more.push((name, value.into()));
        self
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn temporary(&self) -> std::path::PathBuf {
        self.home().join("tmp")
    }

    /// What `docker login` would have written.
    pub(crate) fn docker_config(&self) -> std::path::PathBuf {
        self.home().join(".docker/config.json")
    }

    /// Runs `runtara image pull` with these words, and checks that it leaves nothing behind.
    pub(crate) async fn pull(&self, arguments: &[&str]) -> Ran {
        let child = Command::new(env!("CARGO_BIN_EXE_runtara"))
            .args(["image", "pull"])
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUNTARA_ENVIRONMENT_ADDR", &self.server)
            .env("RUNTARA_TENANT", "acme")
            .env("HOME", self.home())
            .env("TMPDIR", self.temporary())
            .envs(self.more.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
        let output = output.expect("the command ends in time").unwrap();
        let left: Vec<_> = std::fs::read_dir(self.temporary()).unwrap().collect();
        assert!(left.is_empty(), "{left:?} is left");
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A registry of one image under `team/app:1`, and the reference to it.
pub(crate) async fn registry() -> (Fake, String) {
    let content = content::Content::simple();
    let fake = Fake::start(move |asked| content.answer(asked)).await;
    let reference = format!("{}/team/app:1", fake.address);
    (fake, reference)
}
