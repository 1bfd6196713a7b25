//! Container images as people make them: by hand, with umoci, with skopeo.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use runtara_tests::http::Request;
use runtara_tests::image::{Layer, Layout, architecture, archive, base_layer, busybox};
use runtara_tests::{Server, Store, eventually, on_both_stores};
use serde_json::{Value, json};

on_both_stores!(
    layers_are_kept_once_and_go_with_the_last_image_that_has_them,
    an_image_is_shown_with_what_it_says_of_itself,
);

/// The configuration of an image whose shell carries a script out.
pub(super) fn shell(script: &str) -> Value {
    json!({ "Entrypoint": ["/bin/sh", "-c", script] })
}

fn server() -> Server {
    Server::start(Store::Sqlite.in_containers())
}

/// What an image with the base layer alone prints.
fn printed(server: &Server, config: &Value, start: &Value) -> String {
    let image = server.register_archive(&archive(&[base_layer()], config));
    server.launch(&image, start).stdout()
}

#[test]
fn a_program_in_an_image_is_told_what_every_program_is_told() {
    let server = server();
    let script = "hostname; pwd; echo $RUNTARA_INPUT_FILE $RUNTARA_OUTPUT_FILE $RUNTARA_RUN_DIR $RUNTARA_RUN_NUMBER; \
                  echo $RUNTARA_HTTP_URL | sed 's|/r/.*||'; cat $RUNTARA_INPUT_FILE; echo; cat; echo; echo '[1]' > $RUNTARA_OUTPUT_FILE";
    let image = server.register_archive(&archive(&[base_layer()], &shell(script)));
    let run = server.launch(
        &image,
        &json!({ "instance_id": "order-7", "input": { "a": 1 } }),
    );
    assert_eq!(
        run.stdout(),
        "order-7\n/\n/data/input.json /data/output.json /data 1\nhttp://127.0.0.1:8001\n{\"a\":1}\n{\"a\":1}\n"
    );
    assert_eq!(run.output(), json!([1]));
    let odd = server.launch(&image, &json!({ "instance_id": "Ordér-7" }));
    let name = odd.stdout().lines().next().unwrap_or_default().to_owned();
    assert!(
        name.len() == 26 && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "an id that is no name of a host is written in letters: {name}"
    );
}

#[test]
fn arguments_of_a_start_take_the_place_of_the_command_and_never_of_the_entrypoint() {
    let server = server();
    let both = json!({ "Entrypoint": ["/bin/echo", "-n"], "Cmd": ["of", "the image"] });
    assert_eq!(printed(&server, &both, &json!({})), "of the image");
    let args = json!({ "args": ["of  the", "$HOME", "start"] });
    assert_eq!(printed(&server, &both, &args), "of  the $HOME start");
    let cmd = json!({ "Cmd": ["/bin/echo", "-n", "a"] });
    assert_eq!(printed(&server, &cmd, &json!({})), "a");
    assert_eq!(printed(&server, &cmd, &json!({ "args": ["b"] })), "a b");
    let none = server.register_archive(&archive(&[base_layer()], &json!({})));
    let program = json!({ "args": ["/bin/echo", "-n", "c"] });
    assert_eq!(server.launch(&none, &program).stdout(), "c");
    let found = server.launch(&none, &json!({})).wait_for("failed");
    assert_eq!(
        found["run_number"], 1,
        "nothing will ever come of it: {found}"
    );
    let error = found["error"].as_str().unwrap_or_default();
    assert!(error.contains("entrypoint"), "{error}");
}

#[test]
fn an_image_says_where_as_whom_and_with_what_its_program_runs() {
    let server = server();
    let with = |more: Value, script: &str| {
        let mut config = shell(script);
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    };
    let env =
        json!({ "Env": ["MODE=image", "COLOUR=red", "RUNTARA_INSTANCE_ID=forged", "PATH=/bin"] });
    let script = "echo $MODE $COLOUR $RUNTARA_INSTANCE_ID";
    let start = json!({ "instance_id": "order-1", "env": { "COLOUR": "blue" } });
    assert_eq!(
        printed(&server, &with(env, script), &start),
        "image blue order-1\n",
        "the start wins over the image, and nothing over who it is"
    );
    let place = json!({ "WorkingDir": "/home/app/./x/.." });
    assert_eq!(
        printed(&server, &with(place, "pwd; touch here"), &json!({})),
        "/home/app\n"
    );
    let identity = "id -u; id -g; echo $HOME; touch /data/mine /tmp/mine && echo wrote; touch /etc/theirs 2>/dev/null || echo not";
    for (user, said) in [
        ("", "0\n0\n/\nwrote\n"),
        ("app", "1000\n1000\n/home/app\nwrote\nnot\n"),
        ("1000:1000", "1000\n1000\n/home/app\nwrote\nnot\n"),
        ("4321:8765", "4321\n8765\n/data\nwrote\nnot\n"),
    ] {
        let found = printed(
            &server,
            &with(json!({ "User": user }), identity),
            &json!({}),
        );
        assert_eq!(found, said, "as user {user:?}");
    }
    for (more, word) in [
        (json!({ "User": "nobody-knows" }), "nobody-knows"),
        (json!({ "User": "70000" }), "70000"),
        (
            json!({ "WorkingDir": "/proc/self/fd/7" }),
            "/proc/self/fd/7",
        ),
        (json!({ "StopSignal": "SIGNONE" }), "SIGNONE"),
    ] {
        let content = archive(&[base_layer()], &with(more, "true"));
        let text = server.try_register_archive(&content).text();
        assert!(
            text.contains("IMAGE_NOT_RUNNABLE") && text.contains(word),
            "{word}: {text}"
        );
    }
}

#[test]
fn the_stop_signal_of_an_image_is_what_asks_it_to_leave() {
    let server = server();
    let script = "trap 'echo asked; exit 0' USR1; trap 'echo term' TERM; echo ready; while :; do sleep 0.05; done";
    let mut config = shell(script);
    config["StopSignal"] = "SIGUSR1".into();
    let image = server.register_archive(&archive(&[base_layer()], &config));
    let run = server.launch(&image, &json!({}));
    eventually("the trap", || {
        let text = run.logs("stream=stdout").text();
        if text == "ready\n" { Ok(()) } else { Err(text) }
    });
    assert_eq!(run.stop(20)["success"], true);
    assert_eq!(run.logs("stream=stdout").text(), "ready\nasked\n");
}

fn an_image_is_shown_with_what_it_says_of_itself(store: Store) {
    let server = Server::start(store.in_containers());
    let config = json!({
        "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "true"], "Env": ["API_KEY=s3cret-of-the-builder"], "User": "app",
        "WorkingDir": "/home/app", "StopSignal": "SIGINT", "Labels": { "org.opencontainers.image.version": "1.2" },
    });
    let image = server.register_archive(&archive(&[base_layer()], &config));
    let shown = server.image(&image);
    assert_eq!(shown["runner_type"], "oci", "{shown}");
    let about = &shown["container"];
    for (key, value) in [
        ("entrypoint", json!(["/bin/sh"])),
        ("cmd", json!(["-c", "true"])),
        ("user", json!("app")),
        ("working_dir", json!("/home/app")),
        ("stop_signal", json!("SIGINT")),
        ("layers", json!(1)),
        ("env_names", json!(["API_KEY"])),
        (
            "labels",
            json!({ "org.opencontainers.image.version": "1.2" }),
        ),
    ] {
        assert_eq!(about[key], value, "{key} of {about}");
    }
    let list = server.ask(&Request::get("/api/v1/images")).text();
    assert!(
        !shown.to_string().contains("s3cret") && !list.contains("s3cret"),
        "values may be secrets: {shown}"
    );
}

#[test]
fn an_archive_may_be_compressed_and_may_be_one_of_docker() {
    let server = server();
    let tools = Tools::new();
    let plain = archive(&[base_layer()], &shell("echo packed"));
    for (program, arguments) in [("gzip", &["-1"][..]), ("zstd", &["-1", "-q"])] {
        let packed = tools.piped(program, arguments, &plain);
        assert!(packed.len() < plain.len());
        let image = server.register_archive(&packed);
        let run = server.launch(&image, &json!({}));
        assert_eq!(run.stdout(), "packed\n", "{program}");
    }
    fs::write(tools.path("plain.tar"), &plain).expect("it is ours");
    let from = format!("oci-archive:{}", tools.text("plain.tar"));
    let to = format!("docker-archive:{}:made:by-skopeo", tools.text("docker.tar"));
    tools.run("skopeo", &["--insecure-policy", "copy", "-q", &from, &to]);
    let docker = fs::read(tools.path("docker.tar")).expect("it was made");
    let image = server.register_archive(&docker);
    assert_eq!(server.launch(&image, &json!({})).stdout(), "packed\n");
    let text = server
        .try_register_archive(&tools.piped("gzip", &["-1"], b"just text"))
        .refuses(400, "IMAGE_NOT_RUNNABLE");
    assert!(text.contains("not a container image"), "{text}");
    let cut = server.try_register_archive(&docker[..docker.len() / 2]);
    cut.refuses(400, "IMAGE_NOT_RUNNABLE");
}

#[test]
fn higher_layers_change_and_remove_what_lower_ones_have() {
    let server = server();
    let tools = Tools::new();
    let image = format!("{}:latest", tools.text("layout"));
    tools.run("umoci", &["init", "--layout", &tools.text("layout")]);
    tools.run("umoci", &["new", "--image", &image]);
    let layer = |name: &str, change: &dyn Fn(&Path)| {
        let bundle = tools.text(name);
        tools.run("umoci", &["unpack", "--image", &image, &bundle]);
        change(&Path::new(&bundle).join("rootfs"));
        tools.run("umoci", &["repack", "--image", &image, &bundle]);
    };
    layer("first", &|root| {
        for directory in ["bin", "kept", "gone/deep"] {
            fs::create_dir_all(root.join(directory)).expect("it is ours");
        }
        for file in ["kept/changed", "kept/removed", "gone/deep/file"] {
            fs::write(root.join(file), "lower\n").expect("it is ours");
        }
        fs::write(root.join("bin/busybox"), busybox()).expect("it is ours");
        tools.run(
            "chmod",
            &["755", &root.join("bin/busybox").display().to_string()],
        );
    });
    layer("second", &|root| {
        fs::write(root.join("kept/changed"), "higher\n").expect("it is ours");
        fs::remove_file(root.join("kept/removed")).expect("it is ours");
        fs::remove_dir_all(root.join("gone")).expect("it is ours");
    });
    let script = "cd /; cat kept/changed; ls kept; ls -d gone 2>&1";
    let entrypoint = ["/bin/busybox", "sh", "-c", script];
    let mut arguments = vec!["config", "--image", &image];
    for word in &entrypoint {
        arguments.extend(["--config.entrypoint", word]);
    }
    tools.run("umoci", &arguments);
    let layout = tools.text("layout");
    let all = tools.run("tar", &["-C", &layout, "-cf", "-", "."]);
    let image = server.register_archive(&all);
    assert_eq!(server.image(&image)["container"]["layers"], 2);
    let run = server.launch(&image, &json!({}));
    let text = run.wait_for("failed");
    assert_eq!(
        text["exit_code"], 1,
        "what is gone cannot be listed: {text}"
    );
    assert_eq!(
        run.logs("stream=stdout").text(),
        "higher\nchanged\nls: gone: No such file or directory\n"
    );
}

#[test]
fn of_images_for_several_machines_that_of_this_one_is_taken() {
    let server = server();
    let other = match architecture() {
        "arm64" => "amd64",
        _ => "arm64",
    };
    let both = Layout::default()
        .image_for(other, &[base_layer()], &shell("echo of another machine"))
        .image(&[base_layer()], &shell("echo of this machine"));
    let image = server.register_archive(&both.archive());
    assert_eq!(
        server.launch(&image, &json!({})).stdout(),
        "of this machine\n"
    );
    let foreign = Layout::default()
        .image_for(other, &[base_layer()], &shell("true"))
        .image_for("s390x", &[base_layer()], &shell("true"));
    let text = server
        .try_register_archive(&foreign.archive())
        .refuses(400, "IMAGE_NOT_RUNNABLE");
    for word in [architecture(), other, "s390x"] {
        assert!(text.contains(&format!("linux/{word}")), "{word}: {text}");
    }
}

/// The directories of layers that a server has unpacked.
pub(super) fn layers(server: &Server) -> Vec<PathBuf> {
    let directory = server.data_dir().join("cache/oci/layers");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut layers: Vec<_> = entries.map(|entry| entry.path()).collect();
    layers.sort();
    layers
}

fn layers_are_kept_once_and_go_with_the_last_image_that_has_them(store: Store) {
    let mut server = Server::start(store.in_containers());
    let images = ["first", "second"].map(|name| {
        let own = Layer::new().file("name", format!("{name}\n")).finish();
        let content = archive(&[base_layer(), &own], &shell("cat /name"));
        let texts = [("tenant_id", runtara_tests::TENANT), ("name", name)];
        let image = server.upload(&texts, &content).image();
        let run = server.launch(&image, &json!({ "instance_id": name }));
        assert_eq!(run.stdout(), format!("{name}\n"));
        image
    });
    let all = layers(&server);
    assert_eq!(all.len(), 3, "one layer is common to both: {all:?}");
    let delete = |server: &Server, path: &str| {
        eventually(&format!("that {path} is deleted"), || {
            let answer = server.ask(&Request::delete(&format!("/api/v1/{path}")));
            // The process of an instance that has just completed may still be leaving.
            match answer.status {
                200 if answer.json()["success"] == true => Ok(()),
                _ => Err(answer.text()),
            }
        });
    };
    let delete_all_of = |server: &Server, number: usize, name: &str| {
        delete(server, &format!("images/{}", images[number].0));
        delete(server, &format!("instances/{name}"));
    };
    let wait_for_layers = |server: &Server, count: usize| {
        eventually(&format!("{count} layers"), || {
            let found = layers(server);
            if found.len() == count {
                Ok(())
            } else {
                Err(found)
            }
        });
    };
    delete_all_of(&server, 0, "first");
    // What nobody needs is looked for at the start of a server, and every ten minutes.
    server.kill_9_and_restart();
    wait_for_layers(&server, 2);
    let again = server.launch(&images[1], &json!({ "instance_id": "again" }));
    assert_eq!(
        again.stdout(),
        "second\n",
        "the common layer is still there"
    );
    delete(&server, "instances/again");
    delete_all_of(&server, 1, "second");
    server.kill_9_and_restart();
    wait_for_layers(&server, 0);
}

/// Tools that people make images with, and a directory for them.
struct Tools(tempfile::TempDir);

impl Tools {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Runs a tool, and gives what it prints.
    fn run(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot run {program} ({error}); Debian: apt install {program}")
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        output.stdout
    }

    /// Runs a tool that changes what it reads from standard input.
    fn piped(&self, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let path = self.text("piped");
        let mut file = fs::File::create(&path).expect("it is ours");
        file.write_all(input).expect("it is ours");
        self.run(program, &[arguments, &["-c", &path]].concat())
    }
}
