//! What a program writes is kept, bounded and clean.

use runtara_domain::ExitCause;
use runtara_runner::Runner as _;
use runtara_runner::shim::{LogReader, LogStream};

use crate::stage::Stage;

async fn output_of(script: &str) -> Option<String> {
    let exit = Stage::new().await.run(script).await;
    let output = exit.output.map(|output| output.to_vec());
    output.map(|output| String::from_utf8(output).unwrap())
}

pub(crate) async fn standard_output_is_the_result_of_a_program_without_another() {
    assert_eq!(
        output_of("echo '{\"a\": [1]}'").await.unwrap(),
        "{\"a\": [1]}"
    );
    assert_eq!(output_of("echo hello").await.unwrap(), "\"hello\"");
    assert_eq!(output_of("true").await, None);
}

pub(crate) async fn the_output_file_wins_over_standard_output() {
    let script = "echo noise; echo '{\"b\":2}' > \"$RUNTARA_OUTPUT_FILE\"";
    assert_eq!(output_of(script).await.unwrap(), "{\"b\":2}");
}

pub(crate) async fn a_failed_program_has_no_result() {
    assert_eq!(
        output_of("echo 1; echo 2 > \"$RUNTARA_OUTPUT_FILE\"; exit 1").await,
        None
    );
}

pub(crate) async fn an_output_file_that_is_a_link_is_not_followed() {
    let stage = Stage::new().await;
    let secret = stage.root.path().join("secret");
    std::fs::write(&secret, "\"the server's\"").unwrap();
    let script = format!("ln -s '{}' \"$RUNTARA_OUTPUT_FILE\"", secret.display());
    assert_eq!(stage.run(&script).await.output, None);
    let exit = stage.run("mkfifo \"$RUNTARA_OUTPUT_FILE\"").await;
    assert_eq!((exit.cause, exit.output), (ExitCause::Code(0), None));
}

pub(crate) async fn too_much_output_is_no_result() {
    let stage = Stage::new().await;
    let exit = stage.run("head -c 1048577 /dev/zero").await;
    assert_eq!(
        (exit.output, exit.limits_met),
        (None, vec!["output".to_owned()])
    );
    let exit = stage.run("truncate -s 49M \"$RUNTARA_OUTPUT_FILE\"").await;
    assert_eq!(
        (exit.output, exit.limits_met),
        (None, vec!["output".to_owned()])
    );
}

pub(crate) async fn logs_are_capped_and_keep_their_offsets() {
    let stage = Stage::with(|config| config.log_cap_bytes = 10_000).await;
    // 100,000 lines of nine bytes.
    let run = stage
        .launch("i=100000; while [ $i -lt 200000 ]; do echo \"n $i\"; i=$((i+1)); done")
        .await;
    run.wait().await.unwrap();
    let reader = LogReader::new(&stage.directory(run.key()), LogStream::Stdout);
    let extent = reader.extent().unwrap();
    assert_eq!(extent.end, 900_000);
    assert!(
        (5_000..=10_000).contains(&(extent.end - extent.oldest)),
        "{extent:?}"
    );
    let line = reader.read(900_000 - 9 * 10, 9).unwrap();
    assert_eq!(String::from_utf8(line.bytes).unwrap(), "n 199990\n");
    let from_start = reader.read(0, 4).unwrap();
    assert_eq!(from_start.offset, extent.oldest);
    assert!(reader.read(900_000, 100).unwrap().bytes.is_empty());
}

pub(crate) async fn the_end_of_standard_error_is_kept() {
    let stage = Stage::new().await;
    // An odd number of bytes first, so that the cut falls into a letter of two bytes.
    let exit = stage
        .run(
            "i=0; while [ $i -lt 9000 ]; do printf 'ä'; i=$((i+1)); done >&2; printf x >&2; exit 1",
        )
        .await;
    assert!(exit.stderr.len() <= 16 * 1024 && exit.stderr.len() > 16 * 1000);
    assert!(exit.stderr.ends_with("äx") && !exit.stderr.contains('\u{fffd}'));
}

pub(crate) async fn tokens_are_hidden_also_when_written_in_pieces() {
    let stage = Stage::new().await;
    let script = "echo \"could not reach $RUNTARA_HTTP_URL/health\" >&2\n\
        t=\"$RUNTARA_HTTP_URL\"; while [ -n \"$t\" ]; do rest=\"${t#?}\"; printf '%s' \"${t%\"$rest\"}\"; t=\"$rest\"; done\n\
        exit 1";
    let spec = stage.spec(script).await;
    let (key, token) = (spec.key.clone(), spec.token.clone());
    let exit = stage
        .runner
        .launch(spec)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(
        exit.stderr,
        "could not reach http://127.0.0.1:1/r/<redacted>/health\n"
    );
    assert_eq!(
        stage.log(&key, LogStream::Stdout),
        "http://127.0.0.1:1/r/<redacted>"
    );
    for stream in ["stdout.0", "stderr.0"] {
        let stored = std::fs::read_to_string(stage.directory(&key).path().join(stream)).unwrap();
        assert!(!stored.contains(token.expose()));
    }
}

pub(crate) async fn output_survives_a_directory_that_is_removed() {
    let stage = Stage::new().await;
    let run = stage
        .launch("echo here > here; while [ -e here ]; do :; done; seq 100000; exit 3")
        .await;
    stage.written(run.key(), "here").await;
    std::fs::remove_dir_all(stage.directory(run.key()).path()).unwrap();
    // Where the record should be there is nothing, and the run is over nevertheless.
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Lost);
}

/// A small file system over a directory, gone with this value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// Only root can mount, and not in every container.
    fn mount(path: &std::path::Path) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "none"])
            .arg(path);
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever is left there when a test fails must not keep it.
        let _unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

pub(crate) async fn a_full_disk_loses_output_and_not_the_exit() {
    let stage = Stage::new().await;
    let Some(_disk) = SmallDisk::mount(&stage.config.data_dir) else {
        return;
    };
    let exit = stage
        .run("echo before; cat /dev/zero > full 2>/dev/null; seq 100000; echo lost >&2; exit 3")
        .await;
    assert_eq!(
        (exit.cause, exit.limits_met),
        (ExitCause::Code(3), vec!["disk".to_owned()])
    );
}

pub(crate) async fn a_program_whose_output_was_lost_has_not_completed() {
    let stage = Stage::new().await;
    let Some(_disk) = SmallDisk::mount(&stage.config.data_dir) else {
        return;
    };
    let exit = stage
        .run("cat /dev/zero > full 2>/dev/null; echo 42; exit 0")
        .await;
    assert_eq!(
        (exit.cause, exit.output, exit.limits_met),
        (ExitCause::OutputLost, None, vec!["disk".to_owned()])
    );
}

pub(crate) async fn a_result_in_its_file_outlives_what_could_not_be_printed() {
    let stage = Stage::new().await;
    let Some(_disk) = SmallDisk::mount(&stage.config.data_dir) else {
        return;
    };
    let exit = stage
        .run("echo 42 > $RUNTARA_OUTPUT_FILE; cat /dev/zero > full 2>/dev/null; echo 7; exit 0")
        .await;
    assert_eq!(exit.cause, ExitCause::Code(0));
    assert_eq!(exit.output.as_deref(), Some(&b"42"[..]));
}
