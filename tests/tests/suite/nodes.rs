//! Several servers on one PostgreSQL: any of them answers, and each of them may die, hang, or be cut off.

mod leases;
mod orders;
mod outputs;
mod room;

use std::path::Path;
use std::time::Duration;

use runtara_tests::http::Request;
use runtara_tests::{Ground, Server, Setup, Store, eventually_within};
use serde_json::{Value, json};

/// The lease of a node, and some more: until then the others have noticed that it died.
const LEASE: Duration = Duration::from_secs(15);
/// How long it may take until what ran on a dead node runs elsewhere: the lease, the look at it, and a second.
const TAKEN_OVER: Duration = Duration::from_secs(40);

/// A node on a database of its own.
fn first() -> Server {
    alone(Store::Postgres).start()
}

/// The same before its start.
fn alone(ground: impl Into<Ground>) -> Setup {
    let setup = named(Setup::new(ground), "first");
    let images = setup.place().join(IMAGES);
    std::fs::create_dir(&images).expect("the place is ours");
    with_images(setup, &images)
}

/// A further node beside it.
fn second(first: &Server) -> Server {
    beside(first, "second").start()
}

/// The same before its start.
fn beside(first: &Server, name: &str) -> Setup {
    let images = first.place().join(IMAGES);
    with_images(named(Setup::beside(first), name), &images)
}

/// Where in the place of the first node all nodes share their images.
const IMAGES: &str = "images";

fn with_images(setup: Setup, directory: &Path) -> Setup {
    let url = format!("file://{}", directory.display());
    setup.variable("RUNTARA_IMAGE_STORE_URL", &url)
}

fn named(setup: Setup, name: &str) -> Setup {
    setup
        .variable("RUNTARA_NODE_NAME", name)
        .variable("RUNTARA_NODE_ADDR", "127.0.0.1:0")
}

/// Has a node take nothing new.
fn drain(server: &Server, node: &str, hand_over_after_seconds: u64) -> Value {
    let body = json!({ "hand_over_after_seconds": hand_over_after_seconds });
    let path = format!("/api/v1/nodes/{node}/drain");
    let drained = server.ask(&Request::post(&path, &body)).expect(200);
    assert_eq!(drained["state"], "draining", "{drained}");
    drained
}

/// Has a node take work again.
fn undrain(server: &Server, node: &str) {
    let path = format!("/api/v1/nodes/{node}/drain");
    let body = json!({ "drain": false });
    let node = server.ask(&Request::post(&path, &body)).expect(200);
    assert_eq!(node["state"], "alive", "{node}");
}

/// What is known of a node.
fn node(server: &Server, name: &str) -> Value {
    let nodes = server.ask(&Request::get("/api/v1/nodes")).expect(200);
    let nodes = nodes["nodes"].as_array().expect("a list").clone();
    nodes
        .into_iter()
        .find(|node| node["name"] == name)
        .unwrap_or_else(|| panic!("there is no node {name}"))
}

/// Waits until a node's own runs are ended if it falls silent: it has learned that it is not alone.
fn wait_until_guarded(server: &Server, name: &str) {
    let question = format!("select guarded from runtara_nodes where name = '{name}'");
    eventually_within(Duration::from_secs(20), "a guard", || {
        match server.psql(&question).trim() {
            "t" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}
