//! What becomes of registrations that take their time: of clients that leave, of two at once, of others beside a removal.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use runtara_tests::http::{Connection, Request};
use runtara_tests::image::{Layer, archive, sha256};
use runtara_tests::{Hold, Server, Store, TENANT, eventually, on_both_stores};
use serde_json::json;

use super::images::layers;

on_both_stores!(
    who_leaves_before_an_image_is_ready_has_registered_nothing,
    a_name_means_what_was_sent_last_though_it_was_ready_first,
    a_removal_that_takes_long_delays_no_registration,
);

/// A container image of its own.
fn image(word: &str) -> Vec<u8> {
    let layer = Layer::new().file("word", word).finish();
    archive(&[&layer], &json!({ "Entrypoint": ["/word"] }))
}

fn texts(name: &str) -> [(&'static str, &str); 2] {
    [("tenant_id", TENANT), ("name", name)]
}

/// The id of the image that a name means.
fn named(server: &Server, name: &str) -> Option<String> {
    let path = format!("/api/v1/images?tenant_id={TENANT}&name={name}");
    let list = server.ask(&Request::get(&path)).expect(200);
    let images = list["images"].as_array().expect("it is a list");
    assert!(images.len() <= 1, "{list}");
    let id = images.first()?["image_id"].as_str().expect("it is a text");
    Some(id.to_owned())
}

fn cache(server: &Server) -> PathBuf {
    server.data_dir().join("cache/oci")
}

/// Where layers are that are being unpacked or removed.
fn temporary(server: &Server) -> PathBuf {
    cache(server).join("temporary")
}

fn record(server: &Server, content: &[u8]) -> PathBuf {
    cache(server).join(format!("images/{}.json", sha256(content)))
}

fn content(server: &Server, content: &[u8]) -> PathBuf {
    let digest = sha256(content);
    let (shard, rest) = digest.split_at(2);
    server
        .data_dir()
        .join("blobs/sha256")
        .join(shard)
        .join(rest)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || if holds() { Ok(()) } else { Err("not yet") });
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn who_leaves_before_an_image_is_ready_has_registered_nothing(store: Store) {
    let mut server = Server::start(store.in_containers());
    let (older, newer) = (image("older"), image("newer"));
    // What is unpacked already needs nothing that is held below.
    let _ready = server.upload(&texts("ready"), &newer).image();
    let mut hold = Hold::opens_in(&temporary(&server));
    let mut client = Connection::open(&server.environment()).expect("it listens");
    let form = Request::form(
        "/api/v1/images/upload",
        &texts("raced"),
        &[("binary", &older)],
    );
    client.send(&form.bytes()).expect("it is read");
    let _a_layer = hold.wait();
    let meant = server.upload(&texts("raced"), &newer).image();
    client.leave().expect("it closes");
    wait_until("the server's notice that nobody waits", || {
        server.log().contains("went away before it was ready")
    });
    drop(hold);
    // It was made ready nevertheless: nothing of it can be removed before.
    wait_until("the image", || record(&server, &older).exists());
    assert_eq!(named(&server, "raced"), Some(meant.0.clone()));
    let list = server.ask(&Request::get("/api/v1/images")).expect(200);
    assert_eq!(list["total_count"], 2, "{list}");
    // Until here it was kept for a client that asks again.
    server.kill_9_and_restart();
    wait_until("that nothing of it is left", || {
        !content(&server, &older).exists()
            && !record(&server, &older).exists()
            && layers(&server).len() == 1
    });
    assert_eq!(named(&server, "raced"), Some(meant.0));
    assert!(content(&server, &newer).exists() && record(&server, &newer).exists());
    let again = server.upload(&texts("raced"), &older).image();
    assert_eq!(named(&server, "raced"), Some(again.0));
}

fn a_name_means_what_was_sent_last_though_it_was_ready_first(store: Store) {
    let mut server = Server::start(store.in_containers());
    let (older, newer) = (image("older"), image("newer"));
    let _ready = server.upload(&texts("ready"), &newer).image();
    let mut hold = Hold::opens_in(&temporary(&server));
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| server.upload(&texts("raced"), &older).image());
        let _a_layer = hold.wait();
        let second = server.upload(&texts("raced"), &newer).image();
        drop(hold);
        (first.join().expect("it is registered"), second)
    });
    server.kill_9_and_restart();
    assert_eq!(named(&server, "raced"), Some(second.0.clone()));
    assert_eq!(server.image(&second)["current"], true);
    // Nobody needs it, so that it goes in time; until then it is what it would be had it been replaced.
    let found = server.ask(&Request::get(&format!("/api/v1/images/{}", first.0)));
    let found = found.expect(200);
    assert!(
        found["found"] == false || found["image"]["current"] == false,
        "{found}"
    );
    let third = server.upload(&texts("raced"), &older).image();
    assert_eq!(named(&server, "raced"), Some(third.0));
}

/// An image whose content is locked with that of another.
fn image_beside(other: &[u8]) -> Vec<u8> {
    let shard = &sha256(other)[..2];
    let mut images = (0..100_000).map(|number| image(&format!("beside {number}")));
    let beside = images.find(|content| &sha256(content)[..2] == shard);
    beside.expect("one of 256 is")
}

fn a_removal_that_takes_long_delays_no_registration(store: Store) {
    let mut server = Server::start(store.in_containers());
    let gone = image("gone");
    let id = server.upload(&texts("gone"), &gone).image();
    let [layer] = &layers(&server)[..] else {
        panic!("it has one layer: {:?}", layers(&server))
    };
    // Its files are found by opening it.
    let mut hold = Hold::opens_of(layer);
    let delete = Request::delete(&format!("/api/v1/images/{}", id.0));
    assert_eq!(server.ask(&delete).expect(200)["success"], true);
    // What nobody needs is looked for at the start of a server.
    server.kill_9_and_restart();
    let removed = hold.wait();
    assert!(
        removed.starts_with(temporary(&server)),
        "it was taken away first: {removed:?}"
    );
    wait_until("the end of its content", || {
        !content(&server, &gone).exists()
    });
    let beside = server
        .upload(&texts("beside"), &image_beside(&gone))
        .image();
    let again = server.upload(&texts("gone"), &gone).image();
    assert!(removed.exists(), "it is still being removed");
    assert_eq!(layers(&server).len(), 2);
    // Killed in the middle.
    server.kill_9();
    drop(hold);
    assert!(removed.exists(), "for the next server");
    server.start_again();
    assert!(is_empty(&temporary(&server)));
    assert_eq!(layers(&server).len(), 2);
    assert_eq!(named(&server, "beside"), Some(beside.0));
    assert_eq!(named(&server, "gone"), Some(again.0));
}
