//! Configurations, good and bad.

use std::os::unix::ffi::OsStringExt as _;

use runtara_domain::{Keep, NetworkMode};

use super::*;

fn read(mode: Mode, variables: &[(&str, &str)]) -> Result<Config, Error> {
    Config::read(mode, &|name| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn serve_demands_a_database_and_dev_does_not() {
    let error = read(Mode::Serve, &[]).unwrap_err().to_string();
    assert!(
        error.contains("RUNTARA_ENVIRONMENT_DATABASE_URL") && error.contains("dev"),
        "{error}"
    );
    assert!(read(Mode::Dev, &[]).unwrap().database.is_none());
}

#[test]
fn the_address_of_shared_images_is_checked_and_not_repeated() {
    let at = |url| read(Mode::Dev, &[("RUNTARA_IMAGE_STORE_URL", url)]);
    let config = at("file:///srv/images").unwrap();
    let url = config.image_store.map(|url| url.to_string());
    assert_eq!(url.as_deref(), Some("file:///srv/images"));
    assert_eq!(config.image_cache_bytes, 10 << 30);
    let error = at("s3://key:hunter2@bucket").unwrap_err().to_string();
    assert!(
        error.contains("RUNTARA_IMAGE_STORE_URL") && error.contains("AWS_ACCESS_KEY_ID"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "a key is shown: {error}");
}

#[test]
fn every_problem_is_told_at_once() {
    let error = read(
        Mode::Serve,
        &[
            ("RUNTARA_DATABASE_URL", "mysql://root:hunter2@db/x"),
            ("RUNTARA_ENV_HTTP_PORT", "eight"),
            ("RUNTARA_CORE_ADDR", "nowhere"),
            ("RUNTARA_MAX_RUNS", "0"),
            ("RUNTARA_ALLOW_UNAUTHENTICATED", "maybe"),
            ("RUNTARA_ALLOWED_HOSTS", "good.example, http://bad.example"),
            ("RUST_LOG", "runtara=loud=="),
        ],
    )
    .unwrap_err();
    let text = error.to_string();
    for name in [
        "RUNTARA_DATABASE_URL",
        "RUNTARA_ENV_HTTP_PORT",
        "RUNTARA_CORE_ADDR",
        "RUNTARA_MAX_RUNS",
        "RUNTARA_ALLOW_UNAUTHENTICATED",
        "RUNTARA_ALLOWED_HOSTS",
        "RUST_LOG",
    ] {
        assert!(text.contains(name), "{name} is missing in {text}");
    }
    assert!(!text.contains("hunter2"), "a password is shown: {text}");
    assert!(
        text.starts_with("the configuration has 7 problems:\n"),
        "{text}"
    );
}

#[test]
fn one_problem_is_counted_as_one() {
    let error = read(Mode::Dev, &[("RUST_LOG", "info=loud=")]).unwrap_err();
    let text = error.to_string();
    let told = "the configuration has 1 problem:\n  RUST_LOG: found \"info=loud=\"";
    assert!(text.starts_with(told), "{text}");
    let fine = read(Mode::Dev, &[("RUST_LOG", "warn,runtara_scheduler=debug")]).unwrap();
    assert_eq!(fine.log_filter, "warn,runtara_scheduler=debug");
}

#[test]
fn listening_to_others_must_be_allowed() {
    let exposed = [
        ("RUNTARA_ENV_HTTP_BIND", "0.0.0.0"),
        ("RUNTARA_CORE_ADDR", "0.0.0.0:8001"),
    ];
    let text = read(Mode::Dev, &exposed).unwrap_err().to_string();
    assert!(text.contains("RUNTARA_ENV_HTTP_BIND") && text.contains("RUNTARA_CORE_ADDR"));
    let mut allowed = exposed.to_vec();
    allowed.push(("RUNTARA_ALLOW_UNAUTHENTICATED", "true"));
    assert!(read(Mode::Dev, &allowed).is_ok());
}

#[test]
fn passwords_are_not_shown() {
    let url: DatabaseUrl = "postgres://me:secret@db:5432/app?password=secret"
        .parse()
        .unwrap();
    assert_eq!(
        format!("{url} {url:?}"),
        "postgres://db:5432/app postgres://db:5432/app"
    );
}

#[test]
fn what_containers_may_have_is_read() {
    let config = read(
        Mode::Dev,
        &[
            ("RUNTARA_OCI_RUNTIME", "crun"),
            ("RUNTARA_NETWORK_MODE", "pasta"),
            ("RUNTARA_ALLOWED_NETWORK_MODES", "egress, host,egress"),
            ("RUNTARA_CONTAINER_MEMORY_BYTES", "67108864"),
            ("RUNTARA_CONTAINER_MAX_PIDS", "100"),
            ("RUNTARA_CONTAINER_ID_BASE", "200000"),
            ("RUNTARA_CONTAINER_ID_RANGES", "3"),
        ],
    );
    let containers = config.unwrap().containers;
    assert_eq!(containers.runtime, "crun");
    assert_eq!(containers.network, NetworkMode::Egress);
    let allowed = [NetworkMode::Egress, NetworkMode::Host];
    assert_eq!(containers.allowed_networks, allowed);
    assert_eq!(containers.default_limits.memory_bytes, Some(64 << 20));
    assert_eq!(containers.ceiling.pids, Some(100));
    assert_eq!(containers.ids.first_range().first(), 200_000);
}

#[test]
fn what_containers_cannot_have_is_a_problem() {
    for (name, value, told) in [
        (
            "RUNTARA_NETWORK_MODE",
            "host",
            "RUNTARA_ALLOWED_NETWORK_MODES does not allow it",
        ),
        ("RUNTARA_NETWORK_MODE", "bridge", "isolated, egress or host"),
        (
            "RUNTARA_ALLOWED_NETWORK_MODES",
            "isolated,lan",
            "'lan' is no network mode",
        ),
        ("RUNTARA_CONTAINER_MEMORY_BYTES", "1000", "too low"),
        ("RUNTARA_CONTAINER_PIDS", "many", "a whole number"),
        ("RUNTARA_CONTAINER_ID_BASE", "1000", "choose another base"),
        ("RUNTARA_CONTAINER_ID_RANGES", "0", "not all between"),
        ("RUNTARA_CONTAINER_RUN_DIR", "here", "an absolute path"),
    ] {
        let text = read(Mode::Dev, &[(name, value)]).unwrap_err().to_string();
        assert!(text.contains(name) && text.contains(told), "{name}: {text}");
    }
}

#[test]
fn what_is_kept_is_read() {
    let config = read(
        Mode::Dev,
        &[
            ("RUNTARA_RETENTION", "14d, failed@acme=forever"),
            ("RUNTARA_LOGS_MAX_AGE", "12h"),
            ("RUNTARA_LOGS_MAX_BYTES", "1048576"),
            ("RUNTARA_IMAGES_UNUSED", "90d"),
            ("RUNTARA_MAX_EVENTS", "5000"),
        ],
    );
    let config = config.unwrap();
    assert_eq!(config.max_events, Some(5_000));
    let upkeep = config.upkeep;
    assert_eq!(upkeep.retention, "failed@acme=forever,14d".parse().unwrap());
    assert_eq!(upkeep.logs_max_age, Keep::For(12 * 3_600_000));
    assert_eq!(upkeep.logs_max_bytes, Some(1 << 20));
    assert_eq!(upkeep.images_unused, Keep::days(90));
    let default = read(Mode::Dev, &[]).unwrap().upkeep;
    assert_eq!(default.retention, "30d".parse().unwrap());
    assert_eq!(default.images_unused, Keep::Forever);
    for (name, value, told) in [
        (
            "RUNTARA_RETENTION",
            "acme=7d",
            "\"acme\" names no instances",
        ),
        ("RUNTARA_RETENTION", "30", "\"30\" is no time"),
        ("RUNTARA_LOGS_MAX_AGE", "soon", "\"soon\" is no time"),
        (
            "RUNTARA_LOGS_MAX_BYTES",
            "10",
            "a whole number from 1048576",
        ),
        ("RUNTARA_MAX_EVENTS", "99", "a whole number from 100"),
        ("RUNTARA_IMAGES_UNUSED", "5m", "at least 1h"),
        ("RUNTARA_IMAGES_UNUSED", "off", "\"off\" is no time"),
    ] {
        let text = problem(Mode::Dev, &[(name, value)]);
        assert!(text.starts_with(name) && text.contains(told), "{text}");
    }
}

#[test]
fn the_readme_lists_every_variable() {
    let readme = include_str!("../../../../README.md");
    for variable in VARIABLES {
        let row = format!(
            "| `{}` | {} | {} |",
            variable.name, variable.default, variable.meaning
        );
        assert!(readme.contains(&row), "the README has no row {row}");
    }
}

#[test]
fn every_variable_that_is_listed_is_read() {
    use std::cell::RefCell;
    let asked = RefCell::new(Vec::new());
    let lookup = |name: &str| {
        asked.borrow_mut().push(name.to_owned());
        None
    };
    let _config = Config::read(Mode::Dev, &lookup);
    for variable in VARIABLES {
        assert!(
            asked.borrow().iter().any(|name| name == variable.name),
            "{}",
            variable.name
        );
    }
}

/// What is wrong with the only variable that is.
fn problem(mode: Mode, variables: &[(&str, &str)]) -> String {
    match read(mode, variables) {
        Err(Error::Configuration { problems }) if problems.len() == 1 => problems[0].to_string(),
        other => panic!("one problem is wanted: {other:?}"),
    }
}

#[test]
fn a_user_that_is_not_there_is_a_problem() {
    let text = problem(Mode::Dev, &[("RUNTARA_NATIVE_USER", "no-such-user")]);
    assert!(
        text.starts_with("RUNTARA_NATIVE_USER: ") && text.contains("no-such-user"),
        "{text}"
    );
}

#[test]
fn an_embedded_core_needs_an_address_of_this_machine() {
    // RFC 5737 keeps 192.0.2.0/24 for documentation, RFC 6761 the domain .invalid.
    for address in ["192.0.2.1:8001", "core.invalid:8001"] {
        let embedded = [
            ("RUNTARA_CORE_MODE", "embedded"),
            ("RUNTARA_CORE_ADDR", address),
        ];
        let text = problem(Mode::Dev, &embedded);
        assert!(
            text.starts_with("RUNTARA_CORE_ADDR: ") && text.contains(address),
            "{text}"
        );
        let elsewhere = [("RUNTARA_CORE_ADDR", address)];
        assert!(read(Mode::Dev, &elsewhere).is_ok(), "{address}");
    }
    let named = [
        ("RUNTARA_CORE_MODE", "embedded"),
        ("RUNTARA_CORE_ADDR", "localhost:8001"),
    ];
    assert!(read(Mode::Dev, &named).is_ok());
}

#[test]
fn each_protocol_needs_a_port_of_its_own() {
    for (variable, clash) in [
        (
            "RUNTARA_CORE_ADDR",
            [
                ("RUNTARA_ENV_HTTP_PORT", "9000"),
                ("RUNTARA_CORE_ADDR", "localhost:9000"),
            ],
        ),
        (
            "RUNTARA_CORE_HTTP_PORT",
            [
                ("RUNTARA_ENV_HTTP_PORT", "9000"),
                ("RUNTARA_CORE_HTTP_PORT", "9000"),
            ],
        ),
        (
            "RUNTARA_CORE_HTTP_PORT",
            [
                ("RUNTARA_CORE_ADDR", "127.0.0.1:9000"),
                ("RUNTARA_CORE_HTTP_PORT", "9000"),
            ],
        ),
    ] {
        let text = problem(Mode::Dev, &clash);
        assert!(text.starts_with(variable), "{text}");
    }
    let free = [
        ("RUNTARA_ENV_HTTP_PORT", "0"),
        ("RUNTARA_CORE_ADDR", "127.0.0.1:0"),
    ];
    assert!(read(Mode::Dev, &free).is_ok());
}

#[test]
fn what_is_not_text_is_a_problem() {
    let broken = |name: &str| {
        let secret = b"sqlite:hunter2\xff".to_vec();
        ["RUNTARA_DATABASE_URL", "DATA_DIR"]
            .contains(&name)
            .then(|| OsString::from_vec(secret))
    };
    let error = Config::read(Mode::Serve, &broken).unwrap_err().to_string();
    for name in ["RUNTARA_DATABASE_URL", "DATA_DIR"] {
        assert_eq!(error.matches(name).count(), 1, "{name}: {error}");
    }
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_database_that_keeps_nothing_is_a_problem() {
    for url in ["sqlite::memory:", "sqlite:"] {
        let text = problem(Mode::Serve, &[("RUNTARA_DATABASE_URL", url)]);
        assert!(text.contains("names no file"), "{text}");
    }
}
