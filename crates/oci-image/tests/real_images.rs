//! Images made by the tools that people make them with, compared with what those tools make of them.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use common::{Ground, is_root, listing, run};
use runtara_oci_image::{
    Archive, ArchiveOptions, Limits, OverlayAttributes, OverlayForm, StoreOptions, UnpackedImage,
    Watch, Whiteouts,
};

/// Makes an image of three layers with umoci: the second changes and removes, the third makes a directory anew.
struct Made {
    directory: tempfile::TempDir,
}

fn umoci(arguments: &[&str]) {
    run("umoci", "umoci", arguments);
}

fn skopeo(arguments: &[&str]) {
    let mut all = vec!["--insecure-policy"];
    all.extend(arguments);
    run("skopeo", "skopeo", &all);
}

impl Made {
    fn new() -> Self {
        let made = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let layout = made.path("layout");
        umoci(&["init", "--layout", &layout]);
        umoci(&["new", "--image", &made.image()]);
        made.layer("first", first_layer);
        made.layer("second", second_layer);
        made.layer("third", third_layer);
        umoci(&[
            "config",
            "--image",
            &made.image(),
            "--config.user",
            "app:staff",
            "--config.entrypoint",
            "/bin/app",
            "--config.cmd",
            "serve",
            "--config.env",
            "MODE=test",
            "--config.workingdir",
            "/srv",
            "--config.label",
            "maker=umoci",
        ]);
        made
    }

    fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn image(&self) -> String {
        format!("{}:latest", self.path("layout"))
    }

    fn unpacked(&self, name: &str) -> PathBuf {
        let bundle = self.path(name);
        let image = self.image();
        let mut arguments = vec!["unpack", "--image", &image];
        if !is_root() {
            arguments.push("--rootless");
        }
        arguments.push(&bundle);
        umoci(&arguments);
        Path::new(&bundle).join("rootfs")
    }

    fn layer(&self, name: &str, change: impl FnOnce(&Path)) {
        change(&self.unpacked(name));
        umoci(&["repack", "--image", &self.image(), &self.path(name)]);
    }

    /// Copies the image with skopeo.
    fn copy(&self, options: &[&str], name: &str, transport: &str) -> PathBuf {
        let source = format!("oci:{}", self.image());
        let path = self.path(name);
        let target = format!("{transport}:{path}:test:latest");
        let mut arguments = vec!["copy"];
        arguments.extend(options);
        arguments.extend([source.as_str(), target.as_str()]);
        skopeo(&arguments);
        path.into()
    }
}

fn first_layer(root: &Path) {
    for directory in ["bin", "etc", "srv", "lib/deep/er", "gone", "anew", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/app")).unwrap_or_else(|error| {
        panic!("cannot copy /bin/busybox ({error}); install the package busybox-static")
    });
    fs::hard_link(root.join("bin/app"), root.join("bin/sh")).unwrap();
    symlink("/bin/app", root.join("bin/ls")).unwrap();
    symlink("../../etc/passwd", root.join("lib/deep/link")).unwrap();
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:app\n").unwrap();
    fs::write(root.join("gone/file"), "lower").unwrap();
    fs::write(root.join("anew/lower"), "lower").unwrap();
    fs::write(root.join("lib/deep/er/file"), "lower").unwrap();
    fs::write(root.join("becomes-directory"), "lower").unwrap();
    fs::create_dir(root.join("becomes-file")).unwrap();
    fs::write(root.join("becomes-file/inner"), "lower").unwrap();
    let owned = root.join("srv/owned");
    fs::write(&owned, "owned").unwrap();
    if is_root() {
        std::os::unix::fs::chown(&owned, Some(1000), Some(50)).unwrap();
    }
}

fn second_layer(root: &Path) {
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_file(root.join("bin/ls")).unwrap();
    fs::write(root.join("lib/deep/er/file"), "changed").unwrap();
    fs::remove_file(root.join("becomes-directory")).unwrap();
    fs::create_dir(root.join("becomes-directory")).unwrap();
    fs::write(root.join("becomes-directory/inner"), "upper").unwrap();
    fs::remove_dir_all(root.join("becomes-file")).unwrap();
    fs::write(root.join("becomes-file"), "upper").unwrap();
    fs::remove_dir_all(root.join("anew")).unwrap();
}

fn third_layer(root: &Path) {
    fs::create_dir(root.join("anew")).unwrap();
    fs::write(root.join("anew/upper"), "upper").unwrap();
    fs::write(root.join("lib/deep/né w"), "name").unwrap();
}

fn open(ground: &Ground, path: &Path) -> Archive {
    Archive::open_path(
        path,
        &ArchiveOptions::new(ground.store.scratch()),
        Watch::none(),
    )
    .unwrap()
}

/// Directories lose their time when umoci repacks a child, and links are copied file by file by some tools.
fn comparable(root: &Path) -> Vec<(String, String)> {
    listing(root).into_iter().collect()
}

#[test]
fn every_kind_of_archive_is_the_same_image() {
    let made = Made::new();
    let expected = comparable(&made.unpacked("expected"));
    assert!(expected.iter().any(|(name, _)| name == "anew/upper"));
    let zstd = ["--dest-compress-format", "zstd", "--dest-compress"];
    let plain_docker = made.copy(&[], "docker.tar", "docker-archive");
    let archives = [
        made.copy(&[], "oci.tar", "oci-archive"),
        made.copy(&zstd, "zstd.tar", "oci-archive"),
        made.compressed(&plain_docker, "gzip", "gz"),
        made.compressed(&plain_docker, "zstd", "zst"),
        plain_docker,
    ];
    for path in archives {
        let ground = Ground::new();
        let archive = open(&ground, &path);
        assert_eq!(archive.layers().len(), 3, "{}", path.display());
        let config = archive.config();
        assert_eq!(config.entrypoint, ["/bin/app"]);
        assert_eq!(config.cmd, ["serve"]);
        assert!(
            config.env.contains(&("MODE".into(), "test".into())),
            "{:?}",
            config.env
        );
        assert_eq!(config.working_dir, "/srv");
        assert_eq!(config.labels["maker"], "umoci");

        let image = ground
            .store
            .unpack(&archive, &Limits::default(), Watch::none())
            .unwrap();
        assert_eq!(
            comparable(&ground.flatten(&image)),
            expected,
            "{}",
            path.display()
        );

        let merged = image.merged().unwrap();
        let user = merged.user(&config.user).unwrap();
        assert_eq!(
            (user.uid, user.gid, user.home.as_deref()),
            (1000, 50, Some("/srv"))
        );
        assert!(merged.has_file("/lib/deep/link").unwrap());
        assert!(!merged.has_file("/bin/ls").unwrap());
        assert!(!merged.has_file("/gone/file").unwrap());
        assert!(!merged.has_file("/anew/lower").unwrap());
        assert!(merged.has_file("/becomes-directory/inner").unwrap());
        ground.assert_untouched();
    }
}

impl Made {
    fn compressed(&self, path: &Path, tool: &str, ending: &str) -> PathBuf {
        run(tool, tool, &["-k", "-f", "-1", path.to_str().unwrap()]);
        PathBuf::from(format!("{}.{ending}", path.display()))
    }
}

/// What overlayfs makes of the layers is what the copy is, in each form that this machine can mount. Mounting needs root;
/// without it, the copies are compared with one another.
#[test]
fn overlayfs_shows_what_the_copy_has() {
    let made = Made::new();
    let archive = made.copy(&[], "oci.tar", "oci-archive");
    let mut copies = Vec::new();
    for form in forms() {
        let mut options = StoreOptions::default();
        options.form = Some(form);
        let ground = Ground::with(&options);
        let archive = open(&ground, &archive);
        let image = ground
            .store
            .unpack(&archive, &Limits::default(), Watch::none())
            .unwrap();
        let flat = comparable(&ground.flatten(&image));
        if is_root() && (form.whiteouts == Whiteouts::Device || linux() >= (6, 7)) {
            assert_eq!(comparable(&mount(&ground, &image, form)), flat, "{form:?}");
        }
        copies.push(flat);
    }
    assert!(copies.iter().all(|copy| *copy == copies[0]));
}

fn forms() -> Vec<OverlayForm> {
    let attributes = if is_root() {
        vec![OverlayAttributes::Trusted, OverlayAttributes::User]
    } else {
        vec![OverlayAttributes::User]
    };
    let both = [Whiteouts::Device, Whiteouts::Attribute];
    attributes
        .into_iter()
        .flat_map(|attributes| {
            both.map(|whiteouts| OverlayForm {
                attributes,
                whiteouts,
            })
        })
        .collect()
}

fn linux() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Copies what overlayfs shows, out of a mount namespace of its own, so that nothing is left over.
fn mount(ground: &Ground, image: &UnpackedImage, form: OverlayForm) -> PathBuf {
    let lower: Vec<&str> = image
        .lower_directories()
        .into_iter()
        .map(|path| path.to_str().unwrap())
        .collect();
    let mounted = ground.path("flat-mounted");
    fs::create_dir(&mounted).unwrap();
    let copy = ground.path("flat-copy");
    let script = format!(
        "mount -t overlay overlay -o ro,lowerdir={}{} {m} && cp -a {m} {c}",
        lower.join(":"),
        if form.attributes == OverlayAttributes::User {
            ",userxattr"
        } else {
            ""
        },
        m = mounted.display(),
        c = copy.display()
    );
    run("util-linux", "unshare", &["--mount", "sh", "-c", &script]);
    copy
}

#[test]
fn sparse_files_of_all_forms_keep_their_holes() {
    let directory = tempfile::tempdir().unwrap();
    let sparse = directory.path().join("sparse");
    let file = fs::File::create(&sparse).unwrap();
    for piece in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[b'x'; 4096], piece * 1024 * 1024)
            .unwrap();
    }
    file.set_len(64 * 1024 * 1024 + 5).unwrap();
    drop(file);
    let expected = fs::read(&sparse).unwrap();
    let form = |arguments: &[&str]| {
        let archive = directory.path().join("layer.tar");
        let mut all = vec![
            "--sparse",
            "-C",
            directory.path().to_str().unwrap(),
            "-cf",
            archive.to_str().unwrap(),
        ];
        all.extend(arguments);
        all.push("sparse");
        run("tar", "tar", &all);
        fs::read(archive).unwrap()
    };
    for arguments in [
        vec!["--format=gnu"],
        vec!["--format=pax", "--sparse-version=0.0"],
        vec!["--format=pax", "--sparse-version=0.1"],
        vec!["--format=pax", "--sparse-version=1.0"],
    ] {
        let layer = form(&arguments);
        assert!(
            layer.len() < 1024 * 1024,
            "{arguments:?}: the archive has the holes in it"
        );
        let ground = Ground::new();
        let image = ground.unpack(&common::layout::image(&[&layer])).unwrap();
        for root in [
            image.layers()[0].directory().to_owned(),
            ground.flatten(&image),
        ] {
            let unpacked = root.join("sparse");
            assert!(fs::read(&unpacked).unwrap() == expected, "{arguments:?}");
            let stat = fs::metadata(&unpacked).unwrap();
            assert!(
                stat.blocks() * 512 < 1024 * 1024,
                "{arguments:?}: {} blocks",
                stat.blocks()
            );
        }
    }
}
