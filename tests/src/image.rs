//! Container images, made byte by byte: also such as no tool would make.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::programs::program;

/// The commands of busybox that scripts of the tests call.
const COMMANDS: &str = "sh [ cat chmod chown cp date dd df dmesg echo env expr false grep head hostname id kill ln ls mkdir mknod mount mv nc \
     nslookup ping printf ps pwd readlink rm sed seq sleep sort stat tail test touch tr true umount uname unshare wc wget which";

/// A layer in the making: an uncompressed tar archive. Everything in it belongs to root.
pub struct Layer(Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// An empty layer.
    #[must_use]
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds a directory that everybody may enter.
    #[must_use]
    pub fn directory(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, 0o755, b"", "")
    }

    /// Adds a file that everybody may read.
    #[must_use]
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, 0o644, content.as_ref(), "")
    }

    /// Adds a file that everybody may execute.
    #[must_use]
    pub fn program(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, 0o755, content.as_ref(), "")
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, 0o777, b"", target)
    }

    /// Adds any entry, with path and target as they are: an archive is free to say what no proper tool would.
    ///
    /// # Panics
    /// If path or target are longer than the 100 bytes that a plain header has room for.
    #[must_use]
    pub fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        content: &[u8],
        target: &str,
    ) -> Self {
        let mut header = Header::new_gnu();
        let fields = header.as_gnu_mut().expect("it was made so");
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            // The memory of the machine, or its first disk.
            header.set_device_major(1).expect("the form has the field");
            header.set_device_minor(1).expect("the form has the field");
        }
        header.set_cksum();
        let appended = self.0.append(&header, content);
        appended.expect("a vector takes everything");
        self
    }

    /// The archive.
    ///
    /// # Panics
    /// Never: a vector takes everything.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("a vector takes everything")
    }
}

/// An OCI layout in the making (OCI image specification): an archive with one image, or with several for different machines.
#[derive(Default)]
pub struct Layout {
    blobs: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

impl Layout {
    /// Adds an image for this machine.
    #[must_use]
    pub fn image(self, layers: &[&[u8]], config: &Value) -> Self {
        self.image_for(architecture(), layers, config)
    }

    /// Adds an image for another kind of machine, as `amd64` or `arm64`.
    #[must_use]
    pub fn image_for(mut self, architecture: &str, layers: &[&[u8]], config: &Value) -> Self {
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|layer| format!("sha256:{}", sha256(layer)))
            .collect();
        let document = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob("config.v1+json", document.to_string().into_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.blob("layer.v1.tar", layer.to_vec()))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest = self.blob("manifest.v1+json", manifest.to_string().into_bytes());
        manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        self.manifests.push(manifest);
        self
    }

    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let descriptor = json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"), "size": bytes.len(),
        });
        self.blobs.push((digest, bytes));
        descriptor
    }

    /// Changes a byte of the last layer, but not its digest.
    ///
    /// # Panics
    /// If there is no image.
    #[must_use]
    pub fn spoilt(mut self) -> Self {
        let mut blobs = self.blobs.iter_mut().rev();
        // After it comes the manifest of its image.
        let (_, layer) = blobs.nth(1).expect("there is an image");
        layer[0] ^= 1;
        self
    }

    /// The archive.
    #[must_use]
    pub fn archive(self) -> Vec<u8> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut archive = Layer::new()
            .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", index.to_string())
            .directory("blobs/")
            .directory("blobs/sha256/");
        for (digest, bytes) in self.blobs {
            archive = archive.file(&format!("blobs/sha256/{digest}"), bytes);
        }
        archive.finish()
    }
}

/// An archive with one image for this machine.
#[must_use]
pub fn archive(layers: &[&[u8]], config: &Value) -> Vec<u8> {
    Layout::default().image(layers, config).archive()
}

/// This kind of machine, as images name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The digest of bytes, in hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A layer with a shell and all the small commands, two users, and the libraries of this machine that the programs of the tests need.
/// The same for all tests of a process.
///
/// # Panics
/// If the machine has no busybox, with the package that brings it.
#[must_use]
pub fn base_layer() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut layer = Layer::new()
            .directory("bin/")
            .directory("etc/")
            .directory("home/")
            .directory("home/app/")
            .file(
                "etc/passwd",
                "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
            )
            .file("etc/group", "root:x:0:\napp:x:1000:\n")
            .program("bin/busybox", busybox());
        for command in COMMANDS.split(' ') {
            layer = layer.link(&format!("bin/{command}"), "busybox");
        }
        for library in libraries() {
            let content =
                fs::read(&library).unwrap_or_else(|error| panic!("the library {library}: {error}"));
            layer = layer.program(library.trim_start_matches('/'), content);
        }
        layer.finish()
    })
}

/// Compiles a program of one C file that needs nothing at run time.
///
/// # Panics
/// If that cannot be done, with what the compiler says, or the packages that bring it.
#[must_use]
pub fn compile(source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (from, to) = (
        directory.path().join("source.c"),
        directory.path().join("program"),
    );
    fs::write(&from, source).expect("the directory is ours");
    let compiled = Command::new("cc")
        .args(["-static", "-O1", "-Wall", "-Werror", "-o"])
        .args([&to, &from])
        .output()
        .expect("cc is missing; Debian: apt install gcc libc6-dev");
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{said}");
    fs::read(to).expect("it was made")
}

/// The busybox of this machine, linked statically: a shell and all the small commands in one program.
///
/// # Panics
/// If there is none, with the package that brings it.
#[must_use]
pub fn busybox() -> Vec<u8> {
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find_map(|path| fs::read(path).ok());
    found.expect("busybox is missing; Debian: apt install busybox-static")
}

/// The libraries of this machine, and its loader, that the programs of the tests need: they all need the same ones.
fn libraries() -> Vec<String> {
    let listed = Command::new("ldd").arg(program("uses_the_sdk")).output();
    let listed = listed.expect("ldd comes with the C library").stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    // `name => /path (address)`, or for the loader `/path (address)`.
    let paths = listed.lines().filter_map(|line| {
        let path = line.rsplit_once(" (")?.0;
        let path = path.rsplit_once(" => ").map_or(path, |(_, path)| path);
        path.trim().starts_with('/').then(|| path.trim().to_owned())
    });
    paths.collect()
}
