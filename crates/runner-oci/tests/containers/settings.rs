//! What an image and a start may say.

use std::fs;

use runtara_domain::NetworkMode;
use runtara_runner_oci::rootfs::RootFile;
use runtara_runner_oci::spec::ImageUser;

use crate::container::{Running, Trial, output_of};

#[test]
fn a_program_starts_in_its_run_directory_with_the_host_name_of_its_instance() {
    let seen = output_of("pwd; hostname; echo mine > /data/file; cat file; umask");
    assert_eq!(
        seen.lines().collect::<Vec<_>>()[..4],
        ["/data", "order-7", "mine", "0022"]
    );
}

#[test]
fn a_program_is_who_the_image_says_where_it_says() {
    let mut trial = Trial::new(
        "id; pwd; echo $COLOUR; touch /data/mine && stat -c '%u %g' /data /data/mine; touch /no 2>/dev/null || echo refused; cat /secret-of-root 2>/dev/null || echo closed",
    );
    trial.image.user = ImageUser {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![2000],
        home: None,
    };
    trial.image.working_dir = "/home/app/./".to_owned();
    trial.env.push(("COLOUR", "blue"));
    let outcome = trial.run();
    assert_eq!(
        outcome.succeeded(),
        "uid=1000(app) gid=1000(app) groups=2000\n/home/app\nblue\n1000 1000\n1000 1000\nrefused\nclosed\n"
    );
}

#[test]
fn a_read_only_root_leaves_the_places_in_memory() {
    let mut trial = Trial::new(
        "for place in / /etc/ /bin/ /data/ /tmp/ /dev/shm/; do if touch ${place}x 2>/dev/null; then echo $place; fi; done",
    );
    trial.read_only = true;
    assert_eq!(trial.run().succeeded(), "/data/\n/tmp/\n/dev/shm/\n");
}

#[test]
fn upper_layers_cover_lower_ones() {
    let mut trial = Trial::new("cat /etc/group /etc/above; ls /home");
    for (name, content) in [("second", "second"), ("third", "third")] {
        let layer = trial.directory().join("closed").join(name);
        fs::create_dir_all(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/group"), content).unwrap();
        fs::write(layer.join("etc/above"), content).unwrap();
        trial.layers.push(layer);
    }
    assert_eq!(trial.run().succeeded(), "thirdthirdapp\n");
}

#[test]
fn an_image_of_many_layers_is_mounted() {
    let mut trial = Trial::new("ls /many | wc -l");
    for index in 0..120 {
        let layer = trial
            .directory()
            .join("closed")
            .join(format!("a-rather-long-name-{index}"));
        fs::create_dir_all(layer.join("many")).unwrap();
        fs::write(layer.join("many").join(index.to_string()), "").unwrap();
        trial.layers.push(layer);
    }
    assert_eq!(trial.run().succeeded(), "120\n");
}

#[test]
fn files_for_the_root_are_there_and_the_containers_own() {
    let mut trial = Trial::new(
        "cat /etc/hosts /etc/passwd /extra/file; stat -c '%u %a' /etc/hosts /extra; rm /etc/hosts && echo removed",
    );
    let file = |directory, name, content: &'static str| RootFile {
        directory,
        name,
        content: content.as_bytes(),
    };
    trial.files = vec![
        file("etc", "hosts", "hosts\n"),
        file("etc", "passwd", "passwd\n"),
        file("extra", "file", "file\n"),
    ];
    assert_eq!(
        trial.run().succeeded(),
        "hosts\npasswd\nfile\n0 644\n0 755\nremoved\n"
    );
}

#[test]
fn the_network_of_the_host_is_the_hosts_and_nothing_else_is() {
    let mut trial = Trial::new(
        "readlink /proc/self/ns/net; readlink /proc/self/ns/mnt; ls /sys 2>/dev/null | wc -l; grep CapEff /proc/self/status",
    );
    trial.network = NetworkMode::Host;
    let outcome = trial.run();
    let seen = outcome.succeeded();
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    assert!(seen.contains(host("net").to_str().unwrap()), "{seen}");
    assert!(!seen.contains(host("mnt").to_str().unwrap()), "{seen}");
    assert!(seen.contains("\n0\nCapEff:\t0000000000000000"), "{seen}");
}

#[test]
fn a_program_that_is_not_there_is_told_by_its_name() {
    let mut trial = Trial::new("");
    trial.image.entrypoint = vec!["/bin/nothing".to_owned()];
    let reason = trial.start().map(Running::end).unwrap_err();
    assert!(
        reason.contains("run' failed") && reason.contains("/bin/nothing"),
        "{reason}"
    );
}

#[test]
fn a_layer_that_is_gone_is_named() {
    let mut trial = Trial::new("true");
    trial.layers.push("/nonexistent/layer".into());
    let reason = trial.start().map(Running::end).unwrap_err();
    assert!(
        reason.contains("mounting layer '/nonexistent/layer': No such file"),
        "{reason}"
    );
}

#[test]
fn a_stop_signal_reaches_a_program() {
    let script = "trap 'echo leaving; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let trial = Trial::new(script);
    let running = trial.start().unwrap();
    let soon = std::time::Duration::from_secs(20);
    running.has_written("ready");
    assert!(trial.runtime.kill(&trial.id, 15, soon).unwrap());
    let outcome = running.end();
    assert_eq!(outcome.stdout, "ready\nleaving\n");
    assert!(
        matches!(outcome.status, nix::sys::wait::WaitStatus::Exited(_, 7)),
        "{outcome:?}"
    );
    assert!(!trial.runtime.kill(&trial.id, 15, soon).unwrap());
}
