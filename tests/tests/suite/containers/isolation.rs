//! What a program in a container reaches of the machine, of the server and of others: nothing.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use runtara_tests::image::{Layer, archive, base_layer, compile, sha256};
use runtara_tests::{Server, Setup, Store, holds_for, processes};
use serde_json::{Value, json};

use super::images::shell;

const SECRET_FILE: &str = "s3cret-of-the-machine";
const SECRET_VARIABLE: &str = "s3cret-of-the-server";

/// A server with secrets: one in a file that every user of the machine may read, and one in a variable.
fn server_with_secrets() -> Server {
    let server = Setup::new(Store::Sqlite.in_containers())
        .variable("MY_SECRET", SECRET_VARIABLE)
        .start();
    fs::write(server.place().join("marker"), SECRET_FILE).expect("the place is ours");
    server
}

#[test]
fn neither_files_nor_variables_of_the_machine_are_seen() {
    let server = server_with_secrets();
    let place = server.place().display().to_string();
    let script = format!(
        "cat {place}/marker {place}/data/node /proc/1/root{place}/marker 2>/dev/null; ls / /home /tmp /data /run; \
         ls -d /tmp/runtara* 2>/dev/null; cat /proc/*/environ /proc/*/cmdline /proc/*/mountinfo /proc/*/maps 2>/dev/null; \
         for process in /proc/[0-9]*; do readlink $process/root $process/cwd $process/exe; ls $process/root$PWD; done; \
         readlink /proc/self/fd/*; env; cat /proc/cmdline | wc -c; echo end"
    );
    let seen = server.launch(&server.shell(&script), &json!({})).stdout();
    assert!(seen.ends_with("end\n"), "{seen}");
    for secret in [
        SECRET_FILE,
        SECRET_VARIABLE,
        &place,
        "RUNTARA_ENVIRONMENT_DATABASE_URL",
        "DATA_DIR",
    ] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    let root: Vec<_> = seen
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .collect();
    for name in root {
        assert!(
            [
                "bin", "data", "dev", "etc", "home", "lib", "lib64", "proc", "program", "sys",
                "tmp", "usr"
            ]
            .contains(&name),
            "'{name}' is neither of the image nor of the run: {seen}"
        );
    }
}

#[test]
fn another_container_is_out_of_reach() {
    let server = Server::start(Store::Sqlite.in_containers());
    let victim = server.shell(
        "echo s3cret-of-a-neighbour > /tmp/mine; cp /tmp/mine /data/mine; cp /tmp/mine /mine; \
         nc -l -p 7000 < /tmp/mine & echo ready; while :; do sleep 0.1; done",
    );
    let victim = server.launch(
        &victim,
        &json!({ "env": { "KEY": "s3cret-of-a-neighbour" } }),
    );
    let _ready = victim.wait_for_line("ready");
    let attacker = server.shell(
        "kill -9 -1; for process in 2 3 4 5 6 7 8 9 10 20 100 1000; do kill -9 $process; done 2>/dev/null; \
         cat /mine /tmp/mine /data/mine /proc/*/root/tmp/mine /proc/*/environ 2>/dev/null; \
         nc -w 1 127.0.0.1 7000 < /dev/null 2>&1; ls -d /proc/[0-9]* | wc -l; echo end",
    );
    let attack = server.launch(&attacker, &json!({}));
    let seen = attack.stdout();
    assert!(seen.ends_with("end\n"), "{seen}");
    assert!(!seen.contains("neighbour"), "{seen}");
    let own: usize = seen
        .lines()
        .rev()
        .nth(1)
        .and_then(|line| line.parse().ok())
        .expect("it counts");
    assert!(own <= 3, "it sees {own} processes: {seen}");
    holds_for(Duration::from_millis(300), "the neighbour", || {
        let found = victim.status();
        if found["status"] == "running" && found["run_number"] == 1 {
            Ok(())
        } else {
            Err(found)
        }
    });
}

/// A field of `/proc/<pid>/status`, first number.
fn number(pid: i32, field: &str) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let first = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    first.expect("proc(5)")
}

#[test]
fn each_container_is_another_nobody_outside() {
    const BASE: u32 = 0x6a00_0000;
    let server = Setup::new(Store::Sqlite.in_containers())
        .variable("RUNTARA_CONTAINER_ID_BASE", &BASE.to_string())
        .variable("RUNTARA_CONTAINER_ID_RANGES", "2")
        .start();
    let image = server.program("sleeps_forever");
    let [first, second] =
        ["first", "second"].map(|id| server.launch(&image, &json!({ "instance_id": id })));
    let mut ids = [&first, &second].map(|run| {
        let pid = run.wait_for_process().pid;
        assert_eq!(number(pid, "CapEff:"), 0);
        assert_eq!(
            (number(pid, "NoNewPrivs:"), number(pid, "Seccomp:")),
            (1, 2)
        );
        assert_eq!(number(pid, "Uid:"), number(pid, "Gid:"));
        number(pid, "Uid:")
    });
    // Which was launched first has the first range.
    let freed = ids[0];
    ids.sort_unstable();
    // Where the kernel does not shift owners of files, all share the first range, and `check` says so.
    let wanted = match ids[0] == ids[1] {
        true => [BASE, BASE],
        false => [BASE, BASE + 65_536],
    };
    assert_eq!(ids, wanted);
    if wanted[0] != wanted[1] {
        // Both ranges are taken: a third waits for one, and is not run with somebody else's.
        let third = server.launch(&image, &json!({ "instance_id": "third" }));
        holds_for(Duration::from_millis(500), "that it is not run", || {
            let found = third.processes();
            if found.is_empty() { Ok(()) } else { Err(found) }
        });
        assert_eq!(first.stop(0)["success"], true);
        assert_eq!(number(third.wait_for_process().pid, "Uid:"), freed);
    }
}

/// Tries what leads out of containers, as whoever it is, and prints what succeeded.
const TRIES: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
static int tried;
static void must_fail(const char *what, long answer) {
    tried++;
    if (answer >= 0) printf("succeeded: %s\n", what);
}
static int opened(const char *path, int how) { return open(path, how | O_CLOEXEC); }
int main(int count, char **arguments) {
    setvbuf(stdout, 0, _IONBF, 0);
    must_fail("mount tmpfs", mount("none", "/tmp", "tmpfs", 0, 0));
    must_fail("mount proc", mount("none", "/tmp", "proc", 0, 0));
    must_fail("bind", mount("/", "/tmp", 0, MS_BIND, 0));
    must_fail("remount", mount(0, "/", 0, MS_REMOUNT, 0));
    must_fail("umount", umount2("/proc/kcore", MNT_DETACH));
    must_fail("chroot", chroot("/tmp"));
    must_fail("pivot_root", syscall(SYS_pivot_root, "/", "/tmp"));
    must_fail("unshare user", unshare(CLONE_NEWUSER));
    must_fail("unshare mounts", unshare(CLONE_NEWNS));
    must_fail("unshare network", unshare(CLONE_NEWNET));
    must_fail("enter mounts", setns(opened("/proc/1/ns/mnt", O_RDONLY), 0));
    must_fail("mknod memory", mknod("/tmp/memory", S_IFCHR | 0666, makedev(1, 1)));
    must_fail("mknod disk", mknod("/tmp/disk", S_IFBLK | 0666, makedev(8, 0)));
    const char *devices[] = {"/dev/mem", "/dev/kmem", "/dev/port", "/dev/sda", "/dev/vda", "/dev/kmsg", "/dev/fuse",
                             "/dev/loop-control", "/dev/net/tun", "/dev/kvm"};
    for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++) must_fail(devices[i], opened(devices[i], O_RDONLY));
    const char *kernel[] = {"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
                            "/proc/sys/vm/drop_caches", "/sys/kernel/uevent_helper", "/sys/power/state", "/proc/1/exe",
                            "/proc/self/exe", "/bin/../proc/sys/net/ipv4/ip_forward"};
    for (unsigned i = 0; i < sizeof kernel / sizeof *kernel; i++) must_fail(kernel[i], opened(kernel[i], O_WRONLY));
    must_fail("cgroup", mkdir("/sys/fs/cgroup/mine", 0755));
    must_fail("trace a process of the machine", ptrace(PTRACE_ATTACH, atoi(arguments[1]), 0, 0));
    must_fail("end a process of the machine", kill(atoi(arguments[1]), SIGKILL));
    must_fail("hostname", sethostname("x", 1));
    must_fail("load a module", syscall(SYS_init_module, "", 0, ""));
    must_fail("bpf", syscall(SYS_bpf, 0, "", 0));
    must_fail("io_uring", syscall(SYS_io_uring_setup, 1, "0123456789012345678901234567890123456789012345678901234567890123"));
    must_fail("keys", syscall(SYS_keyctl, 0, -3, 1));
    must_fail("raw socket", syscall(SYS_socket, 2, 3, 1));
    must_fail("packets", syscall(SYS_socket, 17, 3, 0));
    if (getuid() != 0) {
        must_fail("be root", setuid(0));
        must_fail("be root's group", setgid(0));
        must_fail("write what is root's", opened("/etc/passwd", O_WRONLY));
        must_fail("read what is root's", opened("/of-root", O_RDONLY));
    }
    printf("tried %d as %d\n", tried, (int)getuid());
    return 0;
}
"#;

#[test]
fn what_leads_out_of_containers_is_refused() {
    let server = Server::start(Store::Sqlite.in_containers());
    let layer = Layer::new()
        .program("tries", compile(TRIES))
        .entry(tar::EntryType::Regular, "of-root", 0o600, b"x", "")
        .finish();
    let sentinel = server.launch(&server.program("sleeps_forever"), &json!({}));
    let outside = sentinel.wait_for_process().pid;
    for user in ["", "app"] {
        let config = json!({ "Entrypoint": ["/tries"], "User": user });
        let image = server.register_archive(&archive(&[base_layer(), &layer], &config));
        let run = server.launch(&image, &json!({ "args": [outside.to_string()] }));
        let said = run.stdout();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 1, "{said}");
        let tried: u32 = lines[0]
            .split(' ')
            .nth(1)
            .and_then(|text| text.parse().ok())
            .expect("it counts");
        assert!(tried > 40, "{said}");
        assert!(
            lines[0].ends_with(if user.is_empty() { "as 0" } else { "as 1000" }),
            "{said}"
        );
    }
    assert!(processes::lives(outside));
}

/// The runtime of this machine.
fn runtime() -> PathBuf {
    let name = std::env::var("RUNTARA_TEST_OCI_RUNTIME");
    let name = name.unwrap_or_else(|_| "runc".to_owned());
    let path = std::env::var_os("PATH").expect("there is one");
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(&name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; Debian: apt install {name}"))
}

#[test]
fn the_runtime_cannot_be_overwritten_from_the_inside() {
    // CVE-2019-5736: the program of the image is the runtime itself, by the link of the kernel, and another process writes to it.
    let server = Server::start(Store::Sqlite.in_containers());
    let before = sha256(&fs::read(runtime()).expect("it can be read"));
    let links = Layer::new()
        .link("itself", "/proc/self/exe")
        .program("script", "#!/proc/self/exe\n")
        .finish();
    let overwrite = "for n in 1 2 3; do (echo owned > /proc/1/exe) 2>/dev/null; (echo owned > /proc/self/exe) 2>/dev/null; done; \
                     for process in /proc/[0-9]*; do (echo owned > $process/exe) 2>/dev/null && echo wrote; done; echo end";
    let configs: [Value; 4] = [
        shell(overwrite),
        json!({ "Entrypoint": ["/proc/self/exe", "--version"] }),
        json!({ "Entrypoint": ["/itself", "init"] }),
        json!({ "Entrypoint": ["/script"] }),
    ];
    for config in configs {
        let content = archive(&[base_layer(), &links], &config);
        let image = server.register_archive(&content);
        let run = server.launch(&image, &json!({ "max_attempts": 1 }));
        let found = run.get("?wait_ms=20000").expect(200);
        assert!(
            ["completed", "failed"].contains(&found["status"].as_str().unwrap_or_default()),
            "{config}: {found}"
        );
        let said = run.logs("stream=stdout").text();
        assert!(
            !said.contains("wrote") && !said.contains("runc version"),
            "{config}: {said}"
        );
    }
    let after = sha256(&fs::read(runtime()).expect("it can be read"));
    assert_eq!(after, before, "the runtime was changed");
    server
        .launch(&server.shell("true"), &json!({}))
        .wait_for("completed");
}

#[test]
fn an_image_on_which_nothing_can_be_mounted_is_refused() {
    let server = Server::start(Store::Sqlite.in_containers());
    let circle = Layer::new().link("tmp", "/tmp/further").finish();
    let content = archive(&[base_layer(), &circle], &shell("true"));
    let refused = server.try_register_archive(&content);
    let error = refused.expect(400)["error"].to_string();
    assert!(error.contains("a directory at '/tmp'"), "{error}");
    let place = server.place().display().to_string();
    assert!(!error.contains(&place), "a path of the host: {error}");
}

#[test]
fn links_of_an_image_lead_nowhere() {
    let server = server_with_secrets();
    let place = server.place().display().to_string();
    let up = "../../../../../../../..";
    let layer = Layer::new()
        .link("data", &format!("{up}{place}/shared"))
        .link("outside", up)
        .finish();
    let script = format!(
        "echo escaped > /data/escaped; echo escaped > /outside{place}/escaped; cat /outside{place}/marker; ls /outside; true"
    );
    let content = archive(&[base_layer(), &layer], &shell(&script));
    // Whether it is run or not: what counts is that nothing gets out.
    let answer = server.try_register_archive(&content);
    if answer.status == 201 {
        let run = server.launch(&answer.image(), &json!({ "max_attempts": 1 }));
        let found = run.get("?wait_ms=20000").expect(200);
        assert_ne!(found["status"], "running", "{found}");
        let said = run.logs("stream=stdout").text();
        assert!(!said.contains(SECRET_FILE), "{said}");
    }
    let find = |directory: &str| fs::metadata(server.place().join(directory).join("escaped"));
    assert!(
        find("").is_err() && find("shared").is_err(),
        "it wrote outside"
    );
}
