//! What a machine lacks is told before anything fails for it: by `runtara doctor` of the machine of a server, and by
//! `runtara-environment doctor` without a server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};
use runtara_tests::http::Request;
use runtara_tests::{Ran, Setup, Store, program};

const MISSING: &str = "/no/such/runc";
const ADVICE: &str =
    "install it (Debian: apt install runc), or name another with RUNTARA_OCI_RUNTIME";

/// `runtara-environment doctor` with nothing but these variables.
fn doctor(place: &Path, variables: &[(&str, &str)]) -> Ran {
    let child = Command::new(program("runtara-environment"))
        .arg("doctor")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("DATA_DIR", place.join("not/yet"))
        .envs(variables.iter().copied())
        // No `.env` of the working tree.
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Ran::of(child.expect("the program can be started"))
}

/// Somebody as whom native programs may be run here.
fn somebody() -> String {
    if geteuid().is_root() {
        return "nobody".to_owned();
    }
    let me = User::from_uid(geteuid()).expect("users can be looked up");
    me.expect("this process is somebody's").name
}

/// What follows the name of a check, in words.
fn told<'a>(ran: &'a Ran, about: &str) -> Vec<&'a str> {
    let mut lines = ran.stdout.lines();
    let rest = lines.find_map(|line| line.strip_prefix(&format!("{about}  ")));
    let rest = rest.unwrap_or_else(|| panic!("no line about {about:?}: {ran:#?}"));
    rest.split_whitespace().collect()
}

/// The lines about what the machine lacks.
fn lacks(ran: &Ran) -> Vec<&str> {
    let lines = ran.stdout.lines();
    let of_machine = lines.filter(|line| !line.contains(" images  "));
    of_machine
        .filter(|line| line.contains("  missing  "))
        .collect()
}

#[test]
fn a_machine_is_looked_at_without_a_server_and_nothing_is_made() {
    let place = tempfile::tempdir().expect("a directory can be made");
    let somebody = somebody();
    let ran = doctor(place.path(), &[("RUNTARA_NATIVE_USER", &somebody)]).expect(0);
    assert_eq!(
        told(&ran, "native images")[..4],
        ["ok", "run", "as", &somebody]
    );
    assert_eq!(told(&ran, "wasm images")[0], "ok");
    let containers = match lacks(&ran)[..] {
        [] => "ok",
        _ => "missing",
    };
    assert_eq!(told(&ran, "oci images")[0], containers, "{ran:#?}");
    for mode in ["isolated", "egress", "host"] {
        let word = told(&ran, &format!("network mode {mode}"))[0];
        assert!(["ok", "warning"].contains(&word), "{mode}: {ran:#?}");
    }
    assert_eq!(ran.stderr, "");
    let left: Vec<_> = fs::read_dir(place.path()).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_runtime_that_is_missing_is_told_without_a_server() {
    let place = tempfile::tempdir().expect("a directory can be made");
    let somebody = somebody();
    let missing = ("RUNTARA_OCI_RUNTIME", MISSING);
    // What is left are native programs.
    let ran = doctor(place.path(), &[missing, ("RUNTARA_NATIVE_USER", &somebody)]).expect(0);
    assert_eq!(told(&ran, "OCI runtime")[0], "missing");
    assert!(
        ran.stdout.contains(MISSING) && ran.stdout.contains(ADVICE),
        "{ran:#?}"
    );
    assert_eq!(told(&ran, "oci images")[0], "missing");
    // Nothing is left, and the configuration is wrong.
    let ran = doctor(
        place.path(),
        &[missing, ("RUNTARA_NATIVE_USER", "no-such-user")],
    )
    .expect(1);
    assert_eq!(told(&ran, "native images")[0], "missing");
    assert!(
        ran.stdout
            .starts_with("configuration: RUNTARA_NATIVE_USER: "),
        "{ran:#?}"
    );
}

#[test]
fn a_server_that_is_root_is_told_as_whom_native_programs_could_run() {
    if !geteuid().is_root() {
        return;
    }
    let place = tempfile::tempdir().expect("a directory can be made");
    let missing = ("RUNTARA_OCI_RUNTIME", MISSING);
    // What is left are guests.
    let ran = doctor(place.path(), &[missing]).expect(0);
    assert_eq!(told(&ran, "native images")[0], "missing");
    // Nothing is left: no machine has such an address space.
    let guests = ("RUNTARA_WASM_MAX_INSTANCES", "100000");
    let ran = doctor(place.path(), &[missing, guests]).expect(1);
    assert_eq!(told(&ran, "wasm images")[0], "missing");
    assert!(ran.stdout.contains("set RUNTARA_NATIVE_USER"), "{ran:#?}");
}

#[test]
fn a_runtime_that_is_missing_is_told_by_the_doctor_and_at_registrations() {
    let server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_OCI_RUNTIME", MISSING)
        .start();
    let ran = server.runtara(&["doctor"]).expect(0);
    assert_eq!(told(&ran, "OCI runtime")[0], "missing");
    assert_eq!(told(&ran, "oci images")[0], "missing");
    assert_eq!(told(&ran, "native images")[0], "ok");
    let advice = format!("OCI runtime: {ADVICE}");
    assert!(ran.stdout.lines().any(|line| line == advice), "{ran:#?}");

    let layout = server.place().join("layout");
    fs::create_dir(&layout).expect("the directory is ours");
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("it is ours");
    fs::write(
        layout.join("index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .expect("it is ours");
    let archive = server.place().join("web.tar");
    let packed = Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&layout)
        .args(["oci-layout", "index.json"])
        .status();
    assert!(packed.expect("tar can be started").success());
    let archive = archive.to_str().expect("it is plain");
    let refused = server.runtara(&["image", "push", archive]).expect(1);
    assert!(
        refused.stderr.contains(MISSING) && refused.stderr.contains(ADVICE),
        "{refused:#?}"
    );
}

#[test]
fn what_is_told_of_the_machine_is_the_same_for_every_tenant() {
    let server = Setup::new(Store::Sqlite).start();
    let body = server.ask(&Request::get("/api/v1/machine")).expect(200);
    let checks = body["checks"].as_array().expect("a list");
    assert!(checks.len() > 8, "{body:#}");
    for check in checks {
        let fields: Vec<_> = check.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["about", "result", "text"]);
        let result = check["result"].as_str().expect("a word");
        assert!(["fine", "warning", "unfit"].contains(&result), "{check}");
    }
    let of_tenant = Request::get("/api/v1/machine").header("X-Runtara-Tenant-Id", "somebody");
    assert_eq!(server.ask(&of_tenant).expect(200), body);
}
