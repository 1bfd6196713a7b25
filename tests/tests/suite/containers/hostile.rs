//! Archives that want out of their place: each refused with its reason, or robbed of what is no good, and nothing written elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use runtara_tests::image::{Layer, Layout, archive, base_layer, sha256};
use runtara_tests::{Server, Store};
use serde_json::json;
use tar::EntryType::{Block, Char, Fifo, Link, Regular, Symlink};

use super::images::{layers, shell};

/// A server, and what lies beside its data, where nothing may change.
struct Ground {
    server: Server,
    before: BTreeMap<String, (u64, u64)>,
}

impl Ground {
    fn new() -> Self {
        let server = Server::start(Store::Sqlite.in_containers());
        fs::write(server.place().join("sentinel"), "untouched").expect("the place is ours");
        let before = beside_the_data(&server);
        Self { server, before }
    }

    /// Checks that an archive is refused for this reason, and leaves nothing.
    fn refuses(&self, content: &[u8], reason: &str) {
        let text = self
            .server
            .try_register_archive(content)
            .refuses(400, "IMAGE_NOT_RUNNABLE");
        assert!(text.contains(reason), "wanted {reason:?}: {text}");
        let data = self.server.data_dir().display().to_string();
        assert!(
            !text.contains(&data),
            "where the server has its files is nobody's business: {text}"
        );
        self.is_untouched();
    }

    fn is_untouched(&self) {
        assert_eq!(beside_the_data(&self.server), self.before);
        let sentinel = fs::read_to_string(self.server.place().join("sentinel"));
        assert_eq!(sentinel.expect("it is there"), "untouched");
        let unfinished = self.server.data_dir().join("cache/oci/temporary");
        let left = fs::read_dir(unfinished).into_iter().flatten().count();
        assert_eq!(left, 0, "something half made was left");
    }
}

/// The names beside the data, each with its inode and how many names that has; and those of the root of the machine.
fn beside_the_data(server: &Server) -> BTreeMap<String, (u64, u64)> {
    let mut found = BTreeMap::new();
    for directory in [server.place(), Path::new("/"), Path::new("/etc")] {
        for entry in fs::read_dir(directory).expect("it can be read").flatten() {
            let name = entry.path().display().to_string();
            if let Ok(facts) = entry.metadata()
                && !facts.is_dir()
                && !name.ends_with("server.log")
            {
                found.insert(name, (facts.ino(), facts.nlink()));
            }
        }
    }
    found
}

fn of(layer: Layer) -> Vec<u8> {
    archive(&[&layer.finish()], &shell("true"))
}

#[test]
fn what_leads_out_of_an_image_is_refused() {
    let ground = Ground::new();
    let sentinel = ground.server.place().join("sentinel");
    let sentinel = sentinel.to_str().expect("it is plain");
    for name in ["../../../sentinel", "a/../../b", "..", "/../etc/x"] {
        let layer = Layer::new().file(name, "written");
        ground.refuses(&of(layer), "`..`");
    }
    for target in ["../../../../../../etc/passwd", "../sentinel"] {
        let layer = Layer::new().entry(Link, "x", 0o644, b"", target);
        ground.refuses(&of(layer), "`..`");
    }
    for layer in [
        Layer::new().entry(Link, "x", 0o644, b"", sentinel),
        Layer::new().entry(Link, "x", 0o644, b"", "/etc/passwd"),
        Layer::new()
            .entry(Symlink, "out", 0o777, b"", "/etc")
            .entry(Link, "x", 0o644, b"", "out/passwd"),
    ] {
        ground.refuses(&of(layer), "which is not in its layer");
    }
    assert_eq!(layers(&ground.server).len(), 0, "no layer of them is kept");
}

#[test]
fn what_goes_through_links_stays_inside() {
    let ground = Ground::new();
    let sentinel = ground.server.place().join("sentinel");
    let layer = Layer::new()
        .link("up", "../../../../..")
        .file("up/sentinel", "through a link upward\n")
        .directory("etc/")
        .link("settings", "/etc")
        .file("settings/sentinel", "through an absolute link\n")
        .link("link", sentinel.to_str().expect("it is plain"))
        .file("link", "in place of a link\n")
        .file("/absolute", "by an absolute path\n");
    let layer = layer.finish();
    let script = "cat /sentinel /etc/sentinel /link /absolute";
    let content = archive(&[base_layer(), &layer], &shell(script));
    let image = ground.server.register_archive(&content);
    ground.is_untouched();
    assert_eq!(
        ground.server.launch(&image, &json!({})).stdout(),
        "through a link upward\nthrough an absolute link\nin place of a link\nby an absolute path\n"
    );
    ground.is_untouched();
}

#[test]
fn what_an_image_must_not_bring_is_left_out() {
    let ground = Ground::new();
    let layer = Layer::new()
        .entry(Char, "memory", 0o666, b"", "")
        .entry(Block, "disk", 0o666, b"", "")
        .entry(Fifo, "pipe", 0o666, b"", "")
        .entry(Regular, "setuid", 0o6755, b"", "")
        .finish();
    let script = "ls -d /memory /disk /pipe 2>/dev/null | wc -l; stat -c %a /setuid";
    let content = archive(&[base_layer(), &layer], &shell(script));
    let image = ground.server.register_archive(&content);
    let about = &ground.server.image(&image)["container"];
    assert_eq!(about["left_out_entries"], 3, "and it is told: {about}");
    let run = ground.server.launch(&image, &json!({}));
    assert_eq!(run.stdout(), "0\n755\n");
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let ground = Ground::new();
    let layer = Layer::new().file("x", "y").finish();
    let spoilt = Layout::default()
        .image(&[&layer], &shell("true"))
        .spoilt()
        .archive();
    ground.refuses(&spoilt, &sha256(&layer));
    let cut = of(Layer::new().file("x", vec![b'y'; 5_000]));
    ground.refuses(&cut[..cut.len() - 4_096], "");
    let text = ground.server.try_register_archive(b"oci-layout").text();
    assert!(text.contains("IMAGE_NOT_RUNNABLE"), "{text}");
}

#[test]
fn a_small_archive_does_not_become_a_full_disk() {
    let ground = Ground::new();
    // A header that promises a file of 20 GiB, of which nothing is there.
    let mut header = tar::Header::new_gnu();
    header.set_path("bomb").expect("it is short");
    header.set_size(20 << 30);
    header.set_cksum();
    let layer = [&header.as_bytes()[..], &[0; 1_024]].concat();
    let bomb = archive(&[&layer], &shell("true"));
    assert!(bomb.len() < 20_000);
    ground.refuses(&bomb, "bytes of one file");
}
