//! Programs that reach the internet, and nothing of the host.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::Ordering;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtara_domain::ExitCause;
use runtara_runner_oci::machine::EgressProgram;
use runtara_runner_oci::plan::CoreRelay;

use crate::image;
use crate::network::answer_one;
use crate::stage::{Stage, until};
use crate::world::{
    HOST, HOST_BY_IPV6, HOST_PORT, METADATA, OUTSIDE, OUTSIDE_BY_IPV6, OUTSIDE_PORT, World,
};

/// Addresses of the host, by one of which it is one of many.
const OF_HOST: [&str; 4] = [HOST, "10.77.0.255", "127.0.0.1", "127.9.9.9"];
/// What the helper has for the next hop, for itself, and for the host's resolver.
const OF_HELPER: [&str; 3] = ["198.18.83.1", "198.18.83.2", "198.18.83.3"];

/// What it looks like that nobody answers.
const UNANSWERED: [&str; 5] = [
    "Operation already in progress",
    "Network is unreachable",
    "No route to host",
    "Operation now in progress",
    "Resource temporarily unavailable",
];

fn slirp4netns() -> EgressProgram {
    EgressProgram::Slirp4netns(image::needed("slirp4netns", "slirp4netns"))
}

fn pasta() -> EgressProgram {
    EgressProgram::Pasta(image::needed("pasta", "passt"))
}

async fn stage(program: EgressProgram) -> Stage {
    let mut stage = Stage::new().await;
    stage.core = Some(CoreRelay {
        port: 8001,
        socket: stage.path("core.sock"),
    });
    stage.egress = Some(program);
    let reach = stage.path("data/layer/bin/reach");
    image::compile("reach.c", &reach);
    stage
}

pub(crate) async fn slirp4netns_leads_out_and_nowhere_else(world: World) {
    leads_out_and_nowhere_else(world, slirp4netns()).await;
}

pub(crate) async fn pasta_leads_out_and_nowhere_else(world: World) {
    leads_out_and_nowhere_else(world, pasta()).await;
}

async fn leads_out_and_nowhere_else(world: World, program: EgressProgram) {
    let stage = stage(program).await;
    // As many images have it.
    let etc = stage.path("data/layer/etc/resolv.conf");
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", etc).unwrap();
    let core = UnixListener::bind(stage.path("core.sock")).unwrap();
    let answering = std::thread::spawn(move || answer_one(&core));
    let outside = format!("tcp - {OUTSIDE} {OUTSIDE_PORT}");
    let mut refused = vec![
        format!("tcp - {METADATA} {OUTSIDE_PORT}"),
        format!("tcp tap0 {METADATA} {OUTSIDE_PORT}"),
    ];
    for (address, port) in [(HOST_BY_IPV6, HOST_PORT), (OUTSIDE_BY_IPV6, OUTSIDE_PORT)] {
        for way in ["tcp -", "tcp tap0", "udp -", "udp tap0"] {
            refused.push(format!("{way} {address} {port}"));
        }
    }
    for address in OF_HOST.iter().chain(&OF_HELPER) {
        for way in ["tcp -", "tcp tap0", "udp -", "udp tap0"] {
            refused.push(format!("{way} {address} {HOST_PORT}"));
        }
    }
    let script = format!(
        "wget -q -O - http://127.0.0.1:8001/r/token/health; nslookup shop.example; reach {outside} {}",
        refused.join(" ")
    );
    let ended = stage.run(&script).await;
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    assert!(ended.stdout.contains("alive\n"), "the core: {ended:?}");
    let resolved = format!("Address: {OUTSIDE}\n");
    assert!(ended.stdout.contains(&resolved), "a name: {ended:?}");
    assert_eq!(told(&ended.stdout, &outside), "outside", "{ended:?}");
    for refused in &refused {
        let told = told(&ended.stdout, refused);
        let expected: &[&str] = match refused.split(' ').collect::<Vec<_>>()[1..3] {
            // No route leads there, or nobody takes the frames.
            [_, address] if address.contains(':') => &UNANSWERED,
            // Its own loopback, where nobody listens.
            ["-", address] if address.starts_with("127.") => &["Connection refused"],
            ["-", _] => &["Permission denied"],
            // A neighbour that does not answer; slirp4netns lets its own be known, and refuses.
            _ => &UNANSWERED,
        };
        assert!(expected.contains(&told), "{refused}: {told}: {ended:?}");
    }
    let calls = world.calls_of_host.load(Ordering::Relaxed);
    assert_eq!(calls, 0, "nobody called the host: {ended:?}");
    assert_eq!(answering.join().unwrap(), "GET /r/token/health HTTP/1.1");
}

/// What came of an attempt.
fn told<'a>(stdout: &'a str, attempt: &str) -> &'a str {
    let line = stdout
        .lines()
        .find_map(|line| line.strip_prefix(attempt)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("{attempt} was not tried: {stdout}"))
}

/// The processes that have this path among their arguments.
fn helpers(staging: &Path) -> Vec<Pid> {
    let staging = staging.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let has_it = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(staging)
    };
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(has_it).map(Pid::from_raw).collect()
}

pub(crate) async fn no_helper_of_an_ended_run_is_left(_world: World) {
    for program in [slirp4netns(), pasta()] {
        let stage = stage(program).await;
        let run = stage.launch(stage.plan("echo ready; sleep 0.2")).await;
        run.wrote("ready").await;
        let staging = run.plan.staging.clone();
        let [helper] = helpers(&staging)[..] else {
            panic!("there is one helper");
        };
        let memory = fs::read_to_string(format!("/proc/{helper}/cgroup")).unwrap();
        assert!(!memory.contains(&run.plan.id), "not the run's: {memory}");
        let environment = fs::read(format!("/proc/{helper}/environ")).unwrap();
        assert!(environment.is_empty(), "{environment:?}");
        run.end().await;
        assert_eq!(helpers(&staging), []);
    }
}

pub(crate) async fn no_helper_of_a_killed_shim_is_left(_world: World) {
    for program in [slirp4netns(), pasta()] {
        let stage = stage(program).await;
        let run = stage.launch(stage.plan("echo ready; sleep 1000")).await;
        run.wrote("ready").await;
        assert_eq!(helpers(&run.plan.staging).len(), 1);
        crate::ending::kill_shim(&run).await;
        until("the helper is gone", || {
            helpers(&run.plan.staging).is_empty()
        })
        .await;
        run.remove_places();
    }
}

pub(crate) async fn a_program_goes_on_without_its_helper(_world: World) {
    for program in [slirp4netns(), pasta()] {
        let stage = stage(program).await;
        let script = format!(
            "echo ready; while test -e /sys/class/net/tap0; do sleep 0.01; done; reach tcp - {OUTSIDE} {OUTSIDE_PORT}"
        );
        let run = stage.launch(stage.plan(&script)).await;
        run.wrote("ready").await;
        for helper in helpers(&run.plan.staging) {
            kill(helper, Signal::SIGKILL).unwrap();
        }
        let ended = run.end().await;
        assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
        assert!(
            ended.stdout.ends_with(": Network is unreachable\n"),
            "{ended:?}"
        );
    }
}

/// Why a run was not launched.
async fn refusal(program: EgressProgram) -> String {
    let stage = stage(program).await;
    let ended = stage.run("echo ready").await;
    match ended.record.cause {
        ExitCause::NotLaunched {
            permanent: false,
            error,
        } => error,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_helper_that_is_not_there_is_named(_world: World) {
    let error = refusal(EgressProgram::Slirp4netns("/no/slirp4netns".into())).await;
    assert!(error.contains("apt install slirp4netns"), "{error}");
    let error = refusal(EgressProgram::Pasta("/no/pasta".into())).await;
    assert!(error.contains("apt install passt"), "{error}");
}

pub(crate) async fn a_helper_that_fails_is_quoted(_world: World) {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("pasta");
    fs::write(&program, "#!/bin/sh\necho no tap today >&2\nexit 3\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let error = refusal(EgressProgram::Pasta(program)).await;
    assert!(error.contains("exit status: 3"), "{error}");
    assert!(error.contains("no tap today"), "{error}");
}
