use std::time::Duration;

use runtara_domain::{ImageContent, ImageDigest, RunNumber, RunToken, TenantId};
use runtara_runner::{AskedSettings, Input, LaunchSpec, PreparedImage, ProgramPaths, RunKey};
use serde_json::{Value, json};

use super::*;
use crate::limits::{LimitSources, merge};

fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).into()
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: strings(["/app"]),
        cmd: strings(["serve"]),
        ..ImageConfig::default()
    }
}

/// The configuration of a container, changed before it is built.
fn built(image: &ImageConfig, change: impl FnOnce(&mut Container<'_>)) -> Result<Value, SpecError> {
    let limits = merge(&LimitSources::default()).unwrap();
    let env = BTreeMap::from([("NAME".to_owned(), "value".to_owned())]);
    let mut container = Container {
        image,
        args: &[],
        env: &env,
        limits: &limits,
        network: NetworkMode::Isolated,
        hostname: "order-7".to_owned(),
        rootfs: Path::new("/staging/root"),
        read_only: false,
        run_directory: Path::new("/staging/data"),
        ids: IdRange::starting_at(100_000).unwrap(),
        cgroup: Path::new("/runtara/rt-x"),
        cgroups: CgroupFeatures {
            unified: true,
            swap: true,
        },
        oom_score_adj: None,
        hooks: None,
    };
    change(&mut container);
    configuration(&container).map(|spec| serde_json::to_value(spec).unwrap())
}

#[test]
fn a_container_is_confined_in_every_way() {
    let spec = built(&image(), |_| {}).unwrap();
    let process = &spec["process"];
    assert_eq!(process["noNewPrivileges"], json!(true));
    assert_eq!(process["terminal"], json!(false));
    for set in [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ] {
        assert_eq!(process["capabilities"][set], json!([]), "{set}");
    }
    let linux = &spec["linux"];
    let kinds: Vec<_> = linux["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["user", "pid", "mount", "ipc", "uts", "cgroup", "network"]
    );
    let mapping = json!([{"hostID": 100_000, "containerID": 0, "size": 65_536}]);
    assert_eq!(linux["uidMappings"], mapping);
    assert_eq!(linux["gidMappings"], mapping);
    assert_eq!(linux["rootfsPropagation"], json!("private"));
    assert_eq!(linux["seccomp"]["defaultAction"], json!("SCMP_ACT_ERRNO"));
    assert!(linux.get("sysctl").is_none());
    assert!(
        linux["maskedPaths"]
            .as_array()
            .unwrap()
            .contains(&json!("/proc/kcore"))
    );
    assert!(
        linux["readonlyPaths"]
            .as_array()
            .unwrap()
            .contains(&json!("/proc/sys"))
    );
    assert_eq!(
        linux["resources"]["devices"],
        json!([{"allow": false, "access": "rwm"}])
    );
}

#[test]
fn limits_reach_the_cgroup() {
    let spec = built(&image(), |_| {}).unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(
        resources["memory"],
        json!({"limit": 536_870_912, "swap": 536_870_912})
    );
    assert_eq!(resources["pids"], json!({"limit": 512}));
    assert!(resources.get("cpu").is_none());
    let mut limits = merge(&LimitSources::default()).unwrap();
    limits.cpu_millicores = Some(1500);
    let spec = built(&image(), |container| {
        container.limits = Box::leak(Box::new(limits));
        container.cgroups.swap = false;
    })
    .unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(
        resources["cpu"],
        json!({"quota": 150_000, "period": 100_000})
    );
    assert_eq!(resources["memory"], json!({"limit": 536_870_912}));
}

#[test]
fn only_places_in_memory_and_the_run_directory_can_be_written() {
    let spec = built(&image(), |container| container.read_only = true).unwrap();
    assert_eq!(
        spec["root"],
        json!({"path": "/staging/root", "readonly": true})
    );
    for mount in spec["mounts"].as_array().unwrap() {
        let options = mount["options"].as_array().unwrap();
        assert!(options.contains(&json!("nosuid")), "{mount}");
        let kind = mount["type"].as_str().unwrap();
        match kind {
            "tmpfs" => assert!(mount.to_string().contains("size="), "{mount}"),
            "bind" => assert_eq!(mount["source"], json!("/staging/data")),
            _ => assert!(mount["source"].as_str() == Some(kind), "{mount}"),
        }
    }
}

#[test]
fn the_network_of_the_host_comes_without_its_sys() {
    let spec = built(&image(), |container| container.network = NetworkMode::Host).unwrap();
    assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
    assert!(!spec["mounts"].to_string().contains("/sys"));
}

#[test]
fn a_start_adds_arguments_and_never_replaces_a_program() {
    let args = |entrypoint: &[&str], cmd: &[&str], start: &[&str]| {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let image = ImageConfig {
            entrypoint: own(entrypoint),
            cmd: own(cmd),
            ..ImageConfig::default()
        };
        let start: Vec<String> = own(start);
        program_args(&image, &start).map(|args| args.join(" "))
    };
    assert_eq!(
        args(&["/app"], &["serve"], &[]),
        Ok("/app serve".to_owned())
    );
    assert_eq!(
        args(&["/app"], &["serve"], &["once"]),
        Ok("/app once".to_owned())
    );
    assert_eq!(args(&[], &["/app", "a"], &["b"]), Ok("/app a b".to_owned()));
    assert_eq!(args(&[], &[], &["sh"]), Ok("sh".to_owned()));
    assert_eq!(args(&[], &[], &[]), Err(SpecError::NoProgram));
    assert_eq!(args(&[""], &[], &[]), Err(SpecError::NoProgram));
}

#[test]
fn a_working_directory_of_the_kernel_is_refused() {
    for (found, place) in [
        ("/proc/self/fd/7", "/proc"),
        ("/proc", "/proc"),
        ("/proc/", "/proc"),
        ("//proc//self", "/proc"),
        ("/app/../proc/self/fd/8", "/proc"),
        ("/../../proc/self/cwd", "/proc"),
        ("proc/self/fd/7", "/proc"),
        ("./sys/fs/cgroup", "/sys"),
        ("/dev/fd/9", "/dev"),
    ] {
        let error = working_dir(found).unwrap_err();
        let found = found.to_owned();
        assert_eq!(error, SpecError::WorkingDirectory { found, place });
    }
    for (found, path) in [
        ("", "/data"),
        ("/", "/"),
        ("/srv/app/", "/srv/app"),
        ("srv/./app/../lib", "/srv/lib"),
        ("/process", "/process"),
        ("/srv/proc", "/srv/proc"),
    ] {
        assert_eq!(working_dir(found).as_deref(), Ok(path), "{found:?}");
    }
}

#[test]
fn a_user_without_a_number_in_the_container_is_refused() {
    let mut image = image();
    image.user.additional_gids = vec![10, 65_536];
    assert_eq!(
        built(&image, |_| {}).unwrap_err(),
        SpecError::IdOutOfRange {
            what: "group",
            found: 65_536
        }
    );
    image.user.additional_gids = vec![10];
    image.user.uid = 1000;
    let spec = built(&image, |_| {}).unwrap();
    assert_eq!(
        spec["process"]["user"],
        json!({"uid": 1000, "gid": 0, "additionalGids": [10]})
    );
}

#[test]
fn texts_with_nul_are_refused() {
    let mut image = image();
    image.cmd = strings(["a\0b"]);
    let error = built(&image, |_| {}).unwrap_err();
    assert_eq!(
        error,
        SpecError::Nul {
            what: "an argument"
        }
    );
    assert!(working_dir("/a\0").is_err());
}

#[test]
fn the_host_name_is_the_id_where_it_can_be() {
    let name = |id: &str| hostname(&InstanceId::new(id).unwrap());
    assert_eq!(name("order-7"), "order-7");
    let long = "a".repeat(64);
    for id in ["-order", "order-", "order_7", "a.b", "größe", long.as_str()] {
        let name = name(id);
        assert_eq!(name.len(), 26, "{id}: {name}");
    }
}

fn launch(env: &[(&str, &str)], passed: &[(&str, &str)]) -> LaunchSpec {
    let own = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        pairs.collect::<BTreeMap<_, _>>()
    };
    LaunchSpec {
        key: RunKey {
            instance_id: InstanceId::new("order-7").unwrap(),
            run_number: RunNumber(1),
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
        env: own(env),
        passed_env: own(passed),
        input: Input::Inline("{}".into()),
        checkpoint_id: None,
        token: RunToken::generate(),
        core_addr: "127.0.0.1:8001".to_owned(),
        timeout: Duration::from_secs(1),
        expires_in: None,
    }
}

fn env_of(image: &ImageConfig, spec: &LaunchSpec) -> BTreeMap<String, String> {
    let paths = ProgramPaths {
        run_dir: Path::new("/data"),
        input_file: Path::new("/data/input.json"),
        output_file: Path::new("/data/output.json"),
    };
    container_env(image, spec, paths)
}

#[test]
fn an_image_says_what_nobody_else_does() {
    let mut image = image();
    image.env = strings([
        "COLOUR=red",
        "REGION=eu",
        "LD_LIBRARY_PATH=/opt/lib",
        "MODE=a=b",
        "broken",
    ]);
    let env = env_of(&image, &launch(&[("COLOUR", "blue")], &[("REGION", "us")]));
    assert_eq!(env["COLOUR"], "blue");
    assert_eq!(env["REGION"], "us");
    assert_eq!(env["LD_LIBRARY_PATH"], "/opt/lib");
    assert_eq!(env["MODE"], "a=b");
    assert!(!env.contains_key("broken"));
    assert!(env["PATH"].starts_with("/usr/local/sbin:"));
    assert_eq!(env["HOME"], "/data");
}

#[test]
fn path_and_home_are_those_of_the_image() {
    let mut image = image();
    image.env = strings(["PATH=/app/bin"]);
    image.user.home = Some("/home/app".to_owned());
    let env = env_of(&image, &launch(&[], &[]));
    assert_eq!(env["PATH"], "/app/bin");
    assert_eq!(env["HOME"], "/home/app");
    image.env.push("HOME=/srv".to_owned());
    let env = env_of(&image, &launch(&[("PATH", "/mine")], &[]));
    assert_eq!(
        (env["HOME"].as_str(), env["PATH"].as_str()),
        ("/srv", "/mine")
    );
}

#[test]
fn an_image_cannot_say_who_a_run_is() {
    let mut image = image();
    image.env = strings([
        "RUNTARA_INSTANCE_ID=other",
        "RUNTARA_HTTP_URL=http://evil",
        "RUNTARA_CHECKPOINT_ID=x",
    ]);
    let env = env_of(&image, &launch(&[], &[]));
    assert_eq!(env["RUNTARA_INSTANCE_ID"], "order-7");
    assert!(env["RUNTARA_HTTP_URL"].starts_with("http://127.0.0.1:8001/r/"));
    assert!(!env.contains_key("RUNTARA_CHECKPOINT_ID"));
}

#[test]
fn nobody_else_reads_a_written_configuration() {
    use std::os::unix::fs::PermissionsExt as _;
    let bundle = tempfile::tempdir().unwrap();
    write_configuration(&Spec::default(), bundle.path()).unwrap();
    let file = bundle.path().join("config.json");
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(Spec::load(file).unwrap(), Spec::default());
}
