//! Roots that are copies, as on a kernel without overlayfs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use runtara_domain::ExitCause;
use runtara_runner_oci::plan::ContainerPlan;
use runtara_runner_oci::rootfs::RootKind;

use crate::stage::{Stage, tells_peaks};

const MIB: u64 = 1024 * 1024;

fn plan(stage: &Stage, script: &str) -> ContainerPlan {
    ContainerPlan {
        root: RootKind::Copy,
        ..stage.plan(script)
    }
}

pub(crate) async fn a_copy_is_what_the_image_is() {
    let stage = Stage::new().await;
    let layer = stage.path("data/layer");
    fs::write(layer.join("etc/one"), "same").unwrap();
    fs::hard_link(layer.join("etc/one"), layer.join("etc/other")).unwrap();
    symlink("../etc/one", layer.join("home/link")).unwrap();
    // Its user is the image's 1000, as the layer has owners of the image.
    std::os::unix::fs::chown(layer.join("home/app"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(layer.join("home/app"), fs::Permissions::from_mode(0o1770)).unwrap();
    let script = "stat -c '%u %g %a %n' /home/app /secret-of-root /etc /; stat -c '%h' /etc/one; cat /home/link /secret-of-root; \
                  stat -c '%Y' /etc /etc/one";
    let of_image = |name: &str| fs::metadata(layer.join(name)).unwrap().mtime();
    let expected = format!(
        "1000 1000 1770 /home/app\n0 0 600 /secret-of-root\n0 0 755 /etc\n0 0 755 /\n2\nsameof the image{}\n{}\n",
        of_image("etc"),
        of_image("etc/one")
    );
    let ended = stage.launch(plan(&stage, script)).await.end().await;
    assert_eq!(ended.stdout, expected, "{ended:?}");
}

pub(crate) async fn a_copy_is_written_to_within_its_limit() {
    let mut stage = Stage::new().await;
    stage.limits.writable_bytes = Some(4 * MIB);
    let script = "echo mine > /etc/passwd; rm /bin/ls; cat /dev/zero > /big; stat -c %s /big";
    let ended = stage.launch(plan(&stage, script)).await.end().await;
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    assert_eq!(ended.record.limits_met, ["disk"], "{ended:?}");
    let written: u64 = ended.stdout.trim().parse().unwrap();
    // Some pages of it are the run's own.
    assert!((3 * MIB..=4 * MIB).contains(&written), "{written}");
    let layer = stage.path("data/layer");
    let passwd = fs::read_to_string(layer.join("etc/passwd")).unwrap();
    assert!(passwd.starts_with("root:"), "the image stays: {passwd}");
    assert!(layer.join("bin/ls").is_symlink(), "the image stays");
}

pub(crate) async fn a_copy_counts_as_memory() {
    let stage = Stage::new().await;
    let file = fs::File::create(stage.path("data/layer/large")).unwrap();
    file.set_len(40 * MIB).unwrap();
    let ended = stage.launch(plan(&stage, "true")).await.end().await;
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    let peak = ended.record.usage.memory_peak_bytes;
    assert!(peak > 40 * MIB || !tells_peaks(), "{peak}");
}

pub(crate) async fn a_copy_that_is_too_large_is_refused() {
    let mut stage = Stage::new().await;
    stage.limits.memory_bytes = Some(32 * MIB);
    let file = fs::File::create(stage.path("data/layer/large")).unwrap();
    file.set_len(40 * MIB).unwrap();
    let ended = stage.launch(plan(&stage, "true")).await.end().await;
    match &ended.record.cause {
        ExitCause::NotLaunched {
            permanent: true,
            error,
        } => assert!(error.contains("start it with a higher one"), "{error}"),
        other => panic!("{other:?}"),
    }
}
