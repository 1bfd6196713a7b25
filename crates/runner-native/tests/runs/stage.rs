//! What the tests share: a runner over a fresh data directory, and ways to wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use runtara_domain::{
    ImageContent, ImageDigest, InstanceId, RunExit, RunNumber, RunToken, TenantId,
};
use runtara_runner::shim::{Launcher, LogReader, LogStream, ShimProgram};
use runtara_runner::{
    AskedSettings, ImageFiles, Input, LaunchSpec, PreparedImage, Run, RunDirectories, RunDirectory,
    RunKey, Runner as _,
};
use runtara_runner_native::{NativeConfig, NativeRunner};

/// Longer than anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Plays one test to its end.
pub(crate) fn play(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        tokio::time::timeout(2 * PATIENCE, test)
            .await
            .expect("the test ends");
    });
}

/// A server's runner and its directories.
pub(crate) struct Stage {
    pub(crate) root: tempfile::TempDir,
    pub(crate) config: NativeConfig,
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) runner: NativeRunner,
    runs: AtomicU32,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(configure: impl FnOnce(&mut NativeConfig)) -> Self {
        let root = tempfile::tempdir().unwrap();
        // Other users may pass, as through /var/lib; the data directory itself is closed.
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(root.path(), mode(0o711)).unwrap();
        let data = root.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, mode(0o700)).unwrap();
        let mut config = NativeConfig::new(&data);
        configure(&mut config);
        let (launcher, runner) = serve(&config).await;
        Self {
            root,
            config,
            launcher,
            runner,
            runs: AtomicU32::new(0),
        }
    }

    /// What a restarted server has: a runner and a launcher that know nothing.
    pub(crate) async fn restarted(&self) -> NativeRunner {
        serve(&self.config).await.1
    }

    pub(crate) async fn image(&self, content: &[u8]) -> PreparedImage {
        let digest = ImageDigest::of(content);
        let path = self.root.path().join(digest.to_string());
        std::fs::write(&path, content).unwrap();
        let content = ImageContent { digest, base: None };
        let files = ImageFiles {
            content,
            path,
            base: None,
        };
        self.runner.prepare(files).await.unwrap()
    }

    /// A launch of a shell script as the first run of a new instance.
    pub(crate) async fn spec(&self, script: &str) -> LaunchSpec {
        let image = self
            .image(format!("#!/bin/sh\n{script}\n").as_bytes())
            .await;
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        LaunchSpec {
            key: RunKey {
                instance_id: InstanceId::new(format!("order {number}")).unwrap(),
                run_number: RunNumber(1),
            },
            tenant_id: TenantId::new("acme").unwrap(),
            image,
            settings: AskedSettings::default(),
            args: Vec::new(),
            env: BTreeMap::new(),
            passed_env: BTreeMap::new(),
            input: Input::Inline("{\"n\":1}".into()),
            checkpoint_id: None,
            token: RunToken::generate(),
            core_addr: "127.0.0.1:1".to_owned(),
            timeout: PATIENCE,
            expires_in: None,
        }
    }

    pub(crate) async fn launch(&self, script: &str) -> Arc<dyn Run> {
        let spec = self.spec(script).await;
        self.runner.launch(spec).await.unwrap()
    }

    /// Runs a script to its end.
    pub(crate) async fn run(&self, script: &str) -> RunExit {
        self.launch(script).await.wait().await.unwrap()
    }

    pub(crate) fn directory(&self, key: &RunKey) -> RunDirectory {
        RunDirectory::of(&self.config.data_dir, key)
    }

    pub(crate) fn work(&self, key: &RunKey) -> PathBuf {
        match self.config.user {
            None => self.directory(key).work(),
            Some(_) => self
                .config
                .work_root
                .join(key.instance_id.letters())
                .join(key.run_number.to_string())
                .join("work"),
        }
    }

    pub(crate) fn log(&self, key: &RunKey, stream: LogStream) -> String {
        let chunk = LogReader::new(&self.directory(key), stream).read(0, 1 << 24);
        String::from_utf8(chunk.unwrap().bytes).unwrap()
    }

    /// Waits until a run has written a file into its directory.
    pub(crate) async fn written(&self, key: &RunKey, name: &str) -> String {
        let path = self.work(key).join(name);
        let mut text = String::new();
        until(&format!("{name} is written"), || {
            text = std::fs::read_to_string(&path).unwrap_or_default();
            text.ends_with('\n')
        })
        .await;
        text.trim_end().to_owned()
    }
}

async fn serve(config: &NativeConfig) -> (Arc<Launcher>, NativeRunner) {
    let launcher = Launcher::start(ShimProgram::ThisProgram).await.unwrap();
    let launcher = Arc::new(launcher);
    let directories = Arc::new(RunDirectories::open(&config.data_dir).unwrap());
    let runner = NativeRunner::new(config.clone(), Arc::clone(&launcher), directories);
    (launcher, runner)
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < late, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process runs any code: one that is a zombie does not.
pub(crate) fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// A field of the lock file of a run: `pid` of its shim, `child_pid` of its program.
pub(crate) fn in_lock(stage: &Stage, key: &RunKey, field: &str) -> Option<String> {
    let text = std::fs::read(stage.directory(key).lock_file()).ok()?;
    let lock: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(lock[field].to_string())
}

pub(crate) fn kill(pid: &str, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}
