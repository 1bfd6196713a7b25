//! What a server has: a runner over a fresh data directory, and images.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use runtara_domain::{
    ImageContent, ImageDigest, InstanceId, RunExit, RunNumber, RunToken, TenantId,
};
use runtara_runner::shim::{Launcher, ShimProgram};
use runtara_runner::{
    AskedSettings, ImageFiles, Input, LaunchSpec, PrepareError, PreparedImage, Run, RunDirectories,
    RunDirectory, RunKey, Runner as _,
};
use runtara_runner_oci::{IdRanges, OciConfig, OciRunner, USUAL_BASE};
use serde_json::json;

use crate::image;
use crate::stage::PATIENCE;

/// A server's runner and its directories.
pub(crate) struct Server {
    pub(crate) root: tempfile::TempDir,
    pub(crate) config: OciConfig,
    pub(crate) runner: OciRunner,
    runs: AtomicU32,
}

impl Server {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(configure: impl FnOnce(&mut OciConfig)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let data = root.path().join("data");
        fs::create_dir(&data).unwrap();
        let node = format!("test-{}-{number}", std::process::id());
        let mut config = OciConfig::new(&data, &node);
        config.run_root = root.path().join("run");
        config.runtime = image::runtime().display().to_string();
        // Other tests run beside this one.
        let own = (std::process::id() * 16 + number) % 1_000 * 4;
        config.ids = IdRanges::new(USUAL_BASE + own * 65_536, 4).unwrap();
        configure(&mut config);
        Self {
            runner: start(&config).await,
            root,
            config,
            runs: AtomicU32::new(0),
        }
    }

    /// Whether this machine shifts owners of files, so that containers have ids of their own.
    pub(crate) fn shifts_owners(&self) -> bool {
        image::look(&self.config.data_dir).shifts_owners
    }

    /// Has another server take the place of this one, which knows nothing of it.
    pub(crate) async fn restart(&mut self) {
        // The one before must have let go of the layers.
        let gone = OciConfig::new(&self.root.path().join("nowhere"), "nobody");
        self.runner = start(&gone).await;
        self.runner = start(&self.config).await;
    }

    /// Writes content as a file of this machine.
    pub(crate) fn files(&self, content: &[u8], base: Option<&ImageFiles>) -> ImageFiles {
        let digest = ImageDigest::of(content);
        let path = self.root.path().join(digest.to_string());
        fs::write(&path, content).unwrap();
        ImageFiles {
            content: ImageContent {
                digest,
                base: base.map(|base| base.content.digest),
            },
            path,
            base: base.map(|base| base.path.clone()),
        }
    }

    /// A docker archive of an image in which busybox is all commands; the same each time.
    pub(crate) fn busybox(&self) -> ImageFiles {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        self.files(ARCHIVE.get_or_init(|| archive(|_| {})), None)
    }

    pub(crate) async fn prepare(&self, files: ImageFiles) -> Result<PreparedImage, PrepareError> {
        self.runner.prepare(files).await
    }

    /// A launch of a shell script as the first run of a new instance.
    pub(crate) async fn spec(&self, script: &str) -> LaunchSpec {
        let image = self.prepare(self.busybox()).await.unwrap();
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        LaunchSpec {
            key: RunKey {
                instance_id: InstanceId::new(format!("order {number}")).unwrap(),
                run_number: RunNumber(1),
            },
            tenant_id: TenantId::new("acme").unwrap(),
            image,
            settings: AskedSettings::default(),
            args: vec!["-c".to_owned(), script.to_owned()],
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

    /// What there is of containers on this machine because of this server.
    pub(crate) fn left(&self) -> Vec<PathBuf> {
        let cgroups = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let own = format!("runtara-{}", self.config.node);
        let mut places: Vec<_> = cgroups.map(|entry| entry.path().join(&own)).collect();
        places.push(PathBuf::from("/sys/fs/cgroup").join(own));
        places.push(self.config.run_root.join("containers"));
        let inside = |place: PathBuf| fs::read_dir(place).into_iter().flatten().flatten();
        let found = places
            .into_iter()
            .flat_map(inside)
            .map(|entry| entry.path());
        found
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(b"rt-"))
            })
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let own = format!("runtara-{}", self.config.node);
        let root = PathBuf::from("/sys/fs/cgroup");
        // Of version 2, and of each hierarchy of version 1.
        let _not_there = fs::remove_dir(root.join(&own));
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let _not_there = fs::remove_dir(entry.path().join(&own));
        }
    }
}

async fn start(config: &OciConfig) -> OciRunner {
    let launcher = Launcher::start(ShimProgram::ThisProgram).await.unwrap();
    let config = config.clone();
    let made = tokio::task::spawn_blocking(move || {
        let directories = RunDirectories::open(&config.data_dir).unwrap();
        OciRunner::new(config, Arc::new(launcher), Arc::new(directories))
    });
    made.await.unwrap()
}

/// A docker archive of an image in which a shell of busybox runs; more may be put into its one layer.
pub(crate) fn archive(more: impl FnOnce(&std::path::Path)) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    image::make_layer(tree.path());
    more(tree.path());
    let mut layer = tar::Builder::new(Vec::new());
    layer.follow_symlinks(false);
    layer.append_dir_all(".", tree.path()).unwrap();
    let layer = layer.into_inner().unwrap();
    let configuration = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"colour": "blue"}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", ImageDigest::of(&layer))]},
    });
    let manifest = json!([{"Config": "config.json", "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in [
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", configuration.to_string().as_bytes()),
        ("layer.tar", &layer),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content).unwrap();
    }
    archive.into_inner().unwrap()
}
