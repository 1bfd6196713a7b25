//! A registry as people run it: the program `docker-registry`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::content::Content;

/// How long it may take to listen.
const DEADLINE: Duration = Duration::from_secs(20);

/// How often it is started where it ends at once.
const ATTEMPTS: usize = 3;

/// The registry; it ends with the value.
pub(crate) struct Registry {
    process: Child,
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Starts one that is empty. `http` and `auth` are lines of its configuration: further ones of the section `http`, and a
    /// section.
    pub(crate) fn start(http: &str, auth: &str) -> Self {
        for _ in 1..ATTEMPTS {
            // Somebody may have taken the address between the look for it and the start.
            if let Ok(registry) = Self::start_once(http, auth) {
                return registry;
            }
        }
        Self::start_once(http, auth).unwrap_or_else(|log| panic!("docker-registry ended: {log}"))
    }

    /// The error is what it wrote before it ended.
    fn start_once(http: &str, auth: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        let root = directory.path().join("content");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{http}\n{auth}\n",
            root.display()
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot run docker-registry ({error}); install the package docker-registry")
            });
        let mut registry = Self {
            process,
            address,
            directory,
        };
        registry.wait_until_it_listens()?;
        Ok(registry)
    }

    fn wait_until_it_listens(&mut self) -> Result<(), String> {
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            if self.process.try_wait().unwrap().is_some() {
                return Err(log());
            }
            assert!(
                began.elapsed() < DEADLINE,
                "docker-registry does not listen: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Puts all images of a tag there, under `team/app` and the same tag.
    pub(crate) fn fill(&self, content: &Content, tag: &str, more: &[&str]) {
        let layout = self.directory.path().join("layout");
        content.write_layout(&layout);
        let from = format!("oci:{}:{tag}", layout.display());
        self.skopeo(&from, tag, more);
    }

    fn skopeo(&self, from: &str, tag: &str, more: &[&str]) {
        let to = format!("docker://{}/team/app:{tag}", self.address);
        let output = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--all",
                "--preserve-digests",
                "--dest-tls-verify=false",
            ])
            .args(more)
            .args([from, &to])
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot run skopeo ({error}); install the package skopeo")
            });
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo copy {from} {to}: {told}");
    }

    /// A directory for the test, gone with the registry.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

fn free_address() -> SocketAddr {
    // Free when it was asked for: whoever takes it meanwhile fails the test, and is seen in the log.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}
