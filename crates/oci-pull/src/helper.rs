//! Programs that keep credentials (docker-credential-helpers: `get` on the command line, the registry on standard input, JSON on
//! standard output).
//!
//! The crate `docker_credential` speaks this too; but it waits without a deadline, and shows what a helper said in its errors.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::PullError;
use crate::credentials::Secret;

/// How long a helper may take: it may have to ask a person to unlock the keys.
const DEADLINE: Duration = Duration::from_secs(60);
/// Most that is read of a helper's answer, in bytes. Tokens of cloud registries have some thousands.
const ANSWER_BYTES: u64 = 64 * 1024;
/// What helpers write where they have nothing for the registry (docker-credential-helpers, credentials/error.go).
const NOTHING: &str = "credentials not found in native keychain";
/// For a user of this name the secret is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper of that name, which `file` names.
pub(crate) async fn ask(
    name: &str,
    registry: &str,
    file: &Path,
) -> Result<Option<Secret>, PullError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(PullError::CredentialsFile {
            file: file.to_owned(),
            problem: format!("{name:?}, where a helper is named, is no name of a program"),
        });
    }
    let program = format!("docker-credential-{name}");
    run(Path::new(&program), registry, file, DEADLINE).await
}

/// Runs a helper.
pub(crate) async fn run(
    program: &Path,
    registry: &str,
    file: &Path,
    deadline: Duration,
) -> Result<Option<Secret>, PullError> {
    let refused = |problem: String| PullError::CredentialHelper {
        program: shown(program),
        registry: registry.to_owned(),
        file: file.to_owned(),
        problem,
    };
    match tokio::time::timeout(deadline, exchange(program, registry)).await {
        Ok(result) => result.map_err(refused),
        // The process goes with the future.
        Err(_) => Err(refused(format!("did not answer within {deadline:?}"))),
    }
}

async fn exchange(program: &Path, registry: &str) -> Result<Option<Secret>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        // One that knows without reading may be gone already.
        let _ = input.write_all(registry.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        let read = output.take(ANSWER_BYTES + 1).read_to_end(&mut answer).await;
        read.map_err(|error| format!("cannot be read from: {error}"))?;
    }
    if answer.len() as u64 > ANSWER_BYTES {
        return Err(format!("answers with more than {ANSWER_BYTES} bytes"));
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if !status.success() {
        let has_nothing = String::from_utf8_lossy(&answer).trim() == NOTHING;
        return if has_nothing {
            Ok(None)
        } else {
            Err(format!("failed with {status}"))
        };
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| "answers with what is not the JSON of a credential helper".to_owned())?;
    Ok(Some(if answer.username == TOKEN_USER {
        Secret::IdentityToken(answer.secret)
    } else {
        Secret::Password {
            username: answer.username,
            password: answer.secret,
        }
    }))
}

fn shown(program: &Path) -> String {
    let name = program.file_name().unwrap_or(OsStr::new(""));
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A process that is forked while a helper is being written keeps that file open, and it cannot be run then.
    static FORKS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// Runs a helper of this text for `reference`, and gives what came of it and what the helper was told.
    async fn helped(script: &str, reference: &str) -> (Result<Option<Secret>, PullError>, String) {
        let _alone = FORKS.lock().await;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let text = format!(
            "#!/bin/sh\n{{ echo \"$1\"; cat; }} > {}\n{script}\n",
            path("told").display()
        );
        std::fs::write(path("docker-credential-kept"), text).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path("docker-credential-kept"), mode).unwrap();
        // By its path, since the environment belongs to all tests of the process.
        let found = run(
            &path("docker-credential-kept"),
            reference
                .parse::<crate::Reference>()
                .unwrap()
                .credentials_key(),
            &path("config.json"),
            Duration::from_secs(2),
        )
        .await;
        let told = std::fs::read_to_string(path("told")).unwrap_or_default();
        (found, told)
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_registry() {
        let script = r#"echo '{"ServerURL": "x", "Username": "me", "Secret": "hunter2"}'"#;
        let (found, told) = helped(script, "alpine").await;
        assert!(
            found.unwrap()
                == Some(Secret::Password {
                    username: "me".to_owned(),
                    password: "hunter2".to_owned(),
                })
        );
        assert_eq!(told, "get\nhttps://index.docker.io/v1/");
        let script = r#"echo '{"Username": "<token>", "Secret": "hunter2"}'"#;
        let (found, _) = helped(script, "ghcr.io/a").await;
        let wanted = Some(Secret::IdentityToken("hunter2".to_owned()));
        assert!(found.unwrap() == wanted);
        let script = "echo 'credentials not found in native keychain'; exit 1";
        let (found, told) = helped(script, "ghcr.io:444/a").await;
        assert!(found.unwrap().is_none());
        assert_eq!(told, "get\nghcr.io:444");
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_named_and_its_words_are_not_repeated() {
        for (script, problem) in [
            ("echo hunter2; echo hunter2 >&2; exit 3", "exit status: 3"),
            ("echo hunter2", "not the JSON"),
            (
                r#"echo '{"Username": "hunter2", "Secret": 5}'"#,
                "not the JSON",
            ),
            ("exec sleep 60", "did not answer within 2s"),
            ("exec cat /dev/zero", "more than 65536 bytes"),
        ] {
            let (found, _) = helped(script, "ghcr.io/a").await;
            let error = found.unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains(problem), "{script}: {told}");
            assert!(told.contains("docker-credential-kept"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
