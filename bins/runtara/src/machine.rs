//! What this machine offers to run programs in isolation.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::doctor::Check;

/// Longest time a probed program may take.
const PROBE: Duration = Duration::from_secs(5);

/// Whether containers can be run: an OCI runtime by its name or path.
pub(crate) async fn oci_runtime(program: &str) -> Check {
    let advice = "install runc (Debian, Ubuntu: apt install runc; Fedora: dnf install runc; Alpine: apk add runc), \
                  or name another runtime by RUNTARA_OCI_RUNTIME";
    match first_line(program, &["--version"]).await {
        Ok(version) => Check::ok(program, version),
        Err(why) => Check::missing(program, why, advice),
    }
}

/// Which version of control groups is mounted, and so whether limits can be set.
pub(crate) fn cgroup(root: &Path) -> Check {
    let mounted = root.join("sys/fs/cgroup");
    // cgroups(7): the unified hierarchy has this file at its root.
    match std::fs::read_to_string(mounted.join("cgroup.controllers")) {
        Ok(controllers) => {
            let missing: Vec<_> = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|wanted| !controllers.split_whitespace().any(|found| found == *wanted))
                .collect();
            if missing.is_empty() {
                return Check::ok(
                    "cgroup",
                    format!("version 2, controllers {}", controllers.trim()),
                );
            }
            let found = format!("version 2 without the controllers {}", missing.join(", "));
            Check::missing(
                "cgroup",
                found,
                "delegate the controllers to this user or container (systemd: Delegate=yes)",
            )
        }
        Err(_) if mounted.join("memory").is_dir() => Check::ok("cgroup", "version 1".to_owned()),
        Err(_) => Check::missing(
            "cgroup",
            "no control groups are mounted at /sys/fs/cgroup".to_owned(),
            "mount them (mount -t cgroup2 none /sys/fs/cgroup), or start this container with access to them",
        ),
    }
}

/// Whether user namespaces are allowed by the kernel's settings (user_namespaces(7)).
pub(crate) fn user_namespaces(root: &Path, is_root: bool) -> Check {
    const NAME: &str = "user namespaces";
    let setting = |path: &str| {
        let text = std::fs::read_to_string(root.join("proc/sys").join(path)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    if !root.join("proc/self/ns/user").exists() {
        return Check::missing(
            NAME,
            "the kernel has none".to_owned(),
            "use a kernel with CONFIG_USER_NS",
        );
    }
    match setting("user/max_user_namespaces") {
        Some(0) => {
            let advice = "allow them: sysctl user.max_user_namespaces=15000";
            return Check::missing(NAME, "none are allowed".to_owned(), advice);
        }
        // Root needs no permission for the two below.
        _ if is_root => return Check::ok(NAME, "allowed".to_owned()),
        _ => {}
    }
    if setting("kernel/unprivileged_userns_clone") == Some(0) {
        let advice =
            "allow them: sysctl kernel.unprivileged_userns_clone=1, or run the server as root";
        return Check::missing(NAME, "only root may make them".to_owned(), advice);
    }
    if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        let advice = "add an AppArmor profile with `userns,`, or: sysctl kernel.apparmor_restrict_unprivileged_userns=0";
        return Check::missing(NAME, "AppArmor restricts them".to_owned(), advice);
    }
    Check::ok(NAME, "allowed for every user".to_owned())
}

/// Whether a user namespace can be made, by making one: settings may allow what a container or a seccomp filter denies. Without
/// unshare(1) the settings have the last word.
pub(crate) async fn tried_user_namespace(by_settings: Check, unshare: &str) -> Check {
    const ABSENT: &str = "not installed";
    if !by_settings.is_ok() {
        return by_settings;
    }
    match first_line(unshare, &["--user", "--map-root-user", "echo", "made"]).await {
        Ok(_) => Check::ok(
            &by_settings.name,
            format!("{}, and one could be made", by_settings.found),
        ),
        Err(why) if why == ABSENT => by_settings,
        Err(_) => Check::missing(
            &by_settings.name,
            format!(
                "{} by the settings, but making one is denied",
                by_settings.found
            ),
            "a container or a seccomp filter denies them: run outside of it, or start the container with them allowed",
        ),
    }
}

/// Whether this process is root, by the real user id in proc_pid_status(5).
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// The first line a program prints.
async fn first_line(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(PROBE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("not installed".to_owned());
        }
        Ok(Err(error)) => return Err(format!("cannot be run: {error}")),
        Err(_) => return Err(format!("did not answer within {PROBE:?}")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => Err(format!("ended with {} without a version", output.status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn control_groups_are_told_by_version() {
        let second = machine(&[(
            "sys/fs/cgroup/cgroup.controllers",
            "cpuset cpu io memory pids\n",
        )]);
        assert!(cgroup(second.path()).found.starts_with("version 2, "));
        let bare = machine(&[("sys/fs/cgroup/cgroup.controllers", "cpu\n")]);
        assert_eq!(
            cgroup(bare.path()).found,
            "version 2 without the controllers memory, pids"
        );
        let first = machine(&[("sys/fs/cgroup/memory/tasks", "")]);
        assert_eq!(cgroup(first.path()).found, "version 1");
        assert!(!cgroup(machine(&[]).path()).is_ok());
    }

    #[test]
    fn user_namespaces_depend_on_settings_and_user() {
        let namespace = ("proc/self/ns/user", "");
        let none = machine(&[namespace, ("proc/sys/user/max_user_namespaces", "0\n")]);
        assert_eq!(user_namespaces(none.path(), true).found, "none are allowed");
        let restricted = machine(&[
            namespace,
            ("proc/sys/user/max_user_namespaces", "100"),
            (
                "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
            ),
        ]);
        assert_eq!(
            user_namespaces(restricted.path(), false).found,
            "AppArmor restricts them"
        );
        assert!(user_namespaces(restricted.path(), true).is_ok());
        let closed = machine(&[
            namespace,
            ("proc/sys/kernel/unprivileged_userns_clone", "0"),
        ]);
        assert_eq!(
            user_namespaces(closed.path(), false).found,
            "only root may make them"
        );
        assert!(user_namespaces(machine(&[namespace]).path(), false).is_ok());
        assert!(!user_namespaces(machine(&[]).path(), true).is_ok());
    }

    #[tokio::test]
    async fn making_a_user_namespace_has_the_last_word() {
        let allowed = || Check::ok("user namespaces", "allowed".to_owned());
        assert_eq!(
            tried_user_namespace(allowed(), "/does/not/exist")
                .await
                .found,
            "allowed"
        );
        // A program that ends well and says something, and one that ends badly.
        assert_eq!(
            tried_user_namespace(allowed(), "echo").await.found,
            "allowed, and one could be made"
        );
        let denied = tried_user_namespace(allowed(), "false").await;
        assert_eq!(
            (denied.is_ok(), denied.found.as_str()),
            (false, "allowed by the settings, but making one is denied")
        );
        let none = Check::missing("user namespaces", "none".to_owned(), "allow them");
        assert_eq!(tried_user_namespace(none, "echo").await.found, "none");
    }

    #[tokio::test]
    async fn a_runtime_tells_its_version_or_is_missing() {
        let found = oci_runtime("/does/not/exist/runc").await;
        assert_eq!(
            (found.is_ok(), found.found.as_str()),
            (false, "not installed")
        );
        assert!(found.advice.unwrap().contains("apt install runc"));
        // Some program with a version that every build machine of this repository has.
        assert!(oci_runtime("cargo").await.found.starts_with("cargo "));
    }
}
