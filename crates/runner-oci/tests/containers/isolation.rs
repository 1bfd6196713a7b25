//! What a program in a container sees, and what it does not.

use std::fs;

use crate::container::{Trial, output_of};

/// The value behind a name in `/proc/<pid>/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {status}"));
    line[name.len()..].trim()
}

#[test]
fn root_in_a_container_is_nobody_outside() {
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map; echo done; sleep 60";
    let trial = Trial::new(script);
    let running = trial.start().unwrap();
    running.has_written("done");
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid)).unwrap();
    let first = trial.ids.first().to_string();
    assert_eq!(field(&status, "Uid:"), [first.as_str(); 4].join("\t"));
    assert_eq!(field(&status, "Gid:"), [first.as_str(); 4].join("\t"));
    trial
        .runtime
        .kill(&trial.id, 9, std::time::Duration::from_secs(20))
        .unwrap();
    let outcome = running.end();
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    let map = ["0", &first, "65536"];
    assert_eq!(words, [&["0"][..], &map, &map, &["done"]].concat());
}

#[test]
fn a_program_has_no_capabilities_and_no_way_to_get_them() {
    let status = output_of("cat /proc/self/status");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Seccomp:"), "2");
}

#[test]
fn a_container_has_its_own_namespaces() {
    let seen = output_of("for kind in /proc/self/ns/*; do readlink $kind; done");
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    for kind in kinds {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(seen.contains(&format!("{kind}:[")), "{seen}");
        assert!(
            !seen.contains(host.to_str().unwrap()),
            "{kind} is the host's"
        );
    }
}

#[test]
fn only_its_own_processes_are_seen() {
    let seen = output_of("ls -d /proc/[0-9]*; readlink /proc/1/exe");
    assert!(seen.starts_with("/proc/1\n"), "{seen}");
    assert!(seen.lines().count() <= 3, "{seen}");
    assert!(seen.ends_with("/bin/busybox\n"), "{seen}");
}

#[test]
fn nothing_of_the_host_shows_but_what_belongs_to_the_run() {
    let trial = Trial::new("ls -a / /data /tmp /dev; cat /proc/self/mountinfo; env");
    let outcome = trial.run();
    let seen = outcome.succeeded();
    let root = seen.split("\n\n").next().unwrap();
    let names: Vec<_> = root.lines().skip(3).collect();
    assert_eq!(
        names,
        [
            "bin",
            "data",
            "dev",
            "etc",
            "home",
            "proc",
            "secret-of-root",
            "sys",
            "tmp"
        ]
    );
    let place = trial.directory().to_str().unwrap();
    assert!(!seen.contains(place), "{seen}");
    assert!(!seen.contains("console"), "{seen}");
    for line in seen.lines().filter(|line| line.contains(" - ")) {
        // Of runc and of crun.
        let is_mask = [" - tmpfs tmpfs ro", " ro,relatime - tmpfs tmpfs "]
            .iter()
            .any(|mask| line.contains(mask));
        let is_bound_device = line.contains(" - devtmpfs ") || line.contains(" /proc/");
        let is_devices = line.contains(" /dev rw") || line.contains(" /dev/pts ");
        assert!(
            line.contains("nosuid") || is_bound_device || is_mask,
            "{line}"
        );
        assert!(
            line.contains("nodev") || is_bound_device || is_devices || is_mask,
            "{line}"
        );
    }
    let env: Vec<_> = seen
        .lines()
        .filter(|line| line.starts_with("RUNTARA") || line.starts_with("CARGO"))
        .collect();
    assert!(env.is_empty(), "{env:?}");
}

#[test]
fn files_of_the_images_root_are_its_own() {
    let seen = output_of(
        "cat /secret-of-root; stat -c %u /secret-of-root /bin /etc/passwd / /data; echo more >> /secret-of-root; cat /secret-of-root",
    );
    assert_eq!(seen, "of the image0\n0\n0\n0\n0\nof the imagemore\n");
}

#[test]
fn a_container_does_not_see_where_its_cgroup_is() {
    let seen = output_of("cat /proc/self/cgroup");
    for line in seen.lines() {
        assert!(line.ends_with(":/"), "{line}");
    }
    assert!(!seen.is_empty());
}

#[test]
fn owners_need_no_shift_where_layers_lie_in_the_range() {
    let mut trial = Trial::new("cat /secret-of-root; stat -c '%u %g' /secret-of-root /bin");
    let changed = std::process::Command::new("chown")
        .args(["-hR", &format!("{0}:{0}", trial.ids.first())])
        .arg(&trial.layers[0])
        .status()
        .unwrap();
    assert!(changed.success());
    trial.shift_owners = false;
    assert_eq!(trial.run().succeeded(), "of the image0 0\n0 0\n");
}

#[test]
fn what_a_container_writes_does_not_reach_the_image() {
    let trial =
        Trial::new("rm /etc/passwd; echo x > /etc/group; mkdir /new; mv /home /house; ls /");
    assert!(trial.run().succeeded().contains("new"));
    let layer = &trial.layers[0];
    assert!(
        fs::read_to_string(layer.join("etc/group"))
            .unwrap()
            .starts_with("root")
    );
    assert!(layer.join("etc/passwd").exists() && layer.join("home/app").exists());
    assert!(!layer.join("new").exists());
}

#[test]
fn an_isolated_container_has_nothing_but_loopback() {
    let seen = output_of(
        "ls /sys/class/net; ip -o addr | grep -v lo; ping -c 1 -w 1 127.0.0.1 > /dev/null 2>&1; \
         (echo hello | nc -l -p 7000 &) ; sleep 0.3; nc 127.0.0.1 7000 < /dev/null; \
         nc -w 1 192.0.2.1 80 2>&1; true",
    );
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[..2], ["lo", "hello"], "{seen}");
    assert!(
        lines[2].contains("Network is unreachable") || lines[2].contains("can't connect"),
        "{seen}"
    );
}

#[test]
fn the_kernel_cannot_be_set() {
    let seen = output_of(
        "for file in /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_forward /proc/sysrq-trigger /proc/irq/default_smp_affinity \
           /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /sys/kernel/profiling /sys/module/overlay/parameters/metacopy; do \
           if (echo 1 > $file) 2>/dev/null; then echo \"wrote $file\"; fi; done; \
         if mkdir /sys/fs/cgroup/mine 2>/dev/null; then echo made; fi; \
         cat /proc/kcore /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l; echo end",
    );
    assert_eq!(seen, "0\n0\nend\n");
}

#[test]
fn a_program_inherits_its_standard_streams_and_nothing_else() {
    // As if some library had opened it without care.
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let seen = output_of("ls /proc/self/fd");
    // 3 is the directory that `ls` reads.
    assert_eq!(seen, "0\n1\n2\n3\n");
}
