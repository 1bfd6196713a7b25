//! What a program finds in its environment, whichever runner launches it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::LaunchSpec;

/// How long a published client waits for an answer, in milliseconds, unless the start says otherwise: its own 30 s would make it
/// give up while a server restarts.
const REQUEST_TIMEOUT_MS: &str = "600000";

/// Variables that say who a program is, by which secret it speaks, and where its files are.
const IDENTITY: [&str; 9] = [
    "RUNTARA_INSTANCE_ID",
    "RUNTARA_TENANT_ID",
    "RUNTARA_HTTP_URL",
    "RUNTARA_SERVER_ADDR",
    "RUNTARA_CHECKPOINT_ID",
    "RUNTARA_RUN_NUMBER",
    "RUNTARA_INPUT_FILE",
    "RUNTARA_OUTPUT_FILE",
    "RUNTARA_RUN_DIR",
];

/// Where the files of a program are, as it sees them.
#[derive(Debug, Clone, Copy)]
pub struct ProgramPaths<'a> {
    /// Its private directory, which is also its home and its place for temporary files.
    pub run_dir: &'a Path,
    /// The file with its input.
    pub input_file: &'a Path,
    /// The file into which it may write its output.
    pub output_file: &'a Path,
}

/// Whether a start may not set a variable of this name: it would change who the program is, or what the dynamic loader does before
/// the program has a say (ld.so(8)), or it is no name at all (environ(7)).
#[must_use]
pub fn forbidden_env_name(name: &str) -> bool {
    name.is_empty()
        || name.contains(['=', '\0'])
        || IDENTITY.contains(&name)
        || name.starts_with("LD_")
        || matches!(name, "GLIBC_TUNABLES" | "GCONV_PATH" | "MALLOC_TRACE")
}

/// The whole environment of a program. What names it cannot be overridden; of the rest, the start wins over the operator, and the
/// operator over what is usual.
///
/// Values are secrets: they belong on no command line and into no log.
#[must_use]
pub fn contract_env(spec: &LaunchSpec, paths: ProgramPaths<'_>) -> BTreeMap<String, String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut env: BTreeMap<String, String> = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("HOME", path(paths.run_dir)),
        ("TMPDIR", path(paths.run_dir)),
        ("RUNTARA_REQUEST_TIMEOUT_MS", REQUEST_TIMEOUT_MS.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let given = spec.passed_env.iter().chain(&spec.env);
    let given = given.filter(|(name, value)| !forbidden_env_name(name) && !value.contains('\0'));
    env.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    let url = format!("http://{}/r/{}", spec.core_addr, spec.token.expose());
    let mut identity = vec![
        ("RUNTARA_INSTANCE_ID", spec.key.instance_id.to_string()),
        ("RUNTARA_TENANT_ID", spec.tenant_id.to_string()),
        ("RUNTARA_HTTP_URL", url),
        ("RUNTARA_SERVER_ADDR", spec.core_addr.clone()),
        ("RUNTARA_RUN_NUMBER", spec.key.run_number.to_string()),
        ("RUNTARA_INPUT_FILE", path(paths.input_file)),
        ("RUNTARA_OUTPUT_FILE", path(paths.output_file)),
        ("RUNTARA_RUN_DIR", path(paths.run_dir)),
    ];
    if let Some(checkpoint_id) = &spec.checkpoint_id {
        identity.push(("RUNTARA_CHECKPOINT_ID", checkpoint_id.to_string()));
    }
    env.extend(
        identity
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value)),
    );
    env
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtara_domain::{ImageContent, ImageDigest, InstanceId, RunNumber, RunToken, TenantId};

    use super::*;
    use crate::{AskedSettings, Input, PreparedImage, RunKey};

    fn spec(env: &[(&str, &str)], passed: &[(&str, &str)]) -> LaunchSpec {
        let map = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        LaunchSpec {
            key: RunKey {
                instance_id: InstanceId::new("order-7").unwrap(),
                run_number: RunNumber(3),
            },
            tenant_id: TenantId::new("acme").unwrap(),
            image: PreparedImage {
                content: ImageContent {
                    digest: ImageDigest::of(b""),
                    base: None,
                },
                about: None,
                path: "/image".into(),
            },
            settings: AskedSettings::default(),
            args: Vec::new(),
            env: map(env),
            passed_env: map(passed),
            input: Input::Inline("{}".into()),
            checkpoint_id: None,
            token: RunToken::generate(),
            core_addr: "127.0.0.1:8001".to_owned(),
            timeout: Duration::from_secs(1),
            expires_in: None,
        }
    }

    fn env_of(spec: &LaunchSpec) -> BTreeMap<String, String> {
        let paths = ProgramPaths {
            run_dir: Path::new("/run/work"),
            input_file: Path::new("/run/input.json"),
            output_file: Path::new("/run/work/output.json"),
        };
        contract_env(spec, paths)
    }

    #[test]
    fn a_program_is_told_who_it_is_and_nothing_of_the_server() {
        let spec = spec(&[], &[]);
        let env = env_of(&spec);
        let names: Vec<_> = env.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "HOME",
                "LANG",
                "PATH",
                "RUNTARA_HTTP_URL",
                "RUNTARA_INPUT_FILE",
                "RUNTARA_INSTANCE_ID",
                "RUNTARA_OUTPUT_FILE",
                "RUNTARA_REQUEST_TIMEOUT_MS",
                "RUNTARA_RUN_DIR",
                "RUNTARA_RUN_NUMBER",
                "RUNTARA_SERVER_ADDR",
                "RUNTARA_TENANT_ID",
                "TMPDIR",
            ]
        );
        let url = format!("http://127.0.0.1:8001/r/{}", spec.token.expose());
        assert_eq!(env["RUNTARA_HTTP_URL"], url);
        assert_eq!(env["RUNTARA_RUN_NUMBER"], "3");
        assert_eq!(env["RUNTARA_REQUEST_TIMEOUT_MS"], "600000");
    }

    #[test]
    fn a_start_wins_over_the_operator_and_neither_over_the_identity() {
        let spec = spec(
            &[
                ("RUNTARA_INSTANCE_ID", "another"),
                ("LD_PRELOAD", "/evil.so"),
                ("RUNTARA_REQUEST_TIMEOUT_MS", "5"),
                ("COLOUR", "red"),
            ],
            &[
                ("COLOUR", "blue"),
                ("RUNTARA_HTTP_URL", "http://elsewhere"),
                ("REGION", "eu"),
            ],
        );
        let env = env_of(&spec);
        assert_eq!(env["RUNTARA_INSTANCE_ID"], "order-7");
        assert!(env["RUNTARA_HTTP_URL"].starts_with("http://127.0.0.1:8001/r/"));
        assert!(!env.contains_key("LD_PRELOAD"));
        assert_eq!(env["RUNTARA_REQUEST_TIMEOUT_MS"], "5");
        assert_eq!(
            (env["COLOUR"].as_str(), env["REGION"].as_str()),
            ("red", "eu")
        );
    }

    #[test]
    fn the_readme_tells_every_variable_of_a_program() {
        let readme = include_str!("../../../README.md");
        let variables = IDENTITY.iter().chain(&["RUNTARA_REQUEST_TIMEOUT_MS"]);
        for name in variables {
            let told = format!("`{name}`");
            assert!(readme.contains(&told), "the README does not say {told}");
        }
    }

    #[test]
    fn names_that_are_none_are_forbidden() {
        for name in [
            "",
            "A=B",
            "A\0",
            "LD_AUDIT",
            "GLIBC_TUNABLES",
            "RUNTARA_RUN_DIR",
        ] {
            assert!(forbidden_env_name(name), "{name:?}");
        }
        for name in ["LDAP", "RUNTARA_SKIP_CERT_VERIFICATION", "PATH", "HOME"] {
            assert!(!forbidden_env_name(name), "{name:?}");
        }
    }
}
