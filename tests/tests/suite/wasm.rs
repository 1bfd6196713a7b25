//! WebAssembly in the server's own process: what is registered, what it is given and may take, how it ends, and that none of its steps is
//! lost or done twice.

mod contract;
mod ends;
mod hostile;
mod outside;
mod registrations;
mod restarts;
mod room;
mod rust;
mod signals;
mod workflows;

use runtara_tests::http::Answer;
use runtara_tests::{Image, Run, Server, Setup, Store, TENANT, guest};
use serde_json::{Value, json};

/// Asks for the registration of a module or component: its content tells what it is.
fn try_register(server: &Server, name: &str, content: &[u8]) -> Answer {
    server.upload(&[("tenant_id", TENANT), ("name", name)], content)
}

/// Registers a command: a module of WASI preview 1.
fn command(server: &Server, name: &str) -> Image {
    try_register(server, name, &guest::command(name)).image()
}

/// Registers a durable program: a component.
fn component(server: &Server, name: &str) -> Image {
    try_register(server, name, &guest::component(name)).image()
}

/// Registers WebAssembly text.
fn text(server: &Server, name: &str) -> Image {
    try_register(server, name, &guest::text(name)).image()
}

/// Starts the program that does what its input says.
fn follow<'a>(server: &'a Server, script: &[&str]) -> Run<'a> {
    let image = component(server, "scripted");
    server.launch(&image, &json!({ "input": script }))
}

/// A server that lets a guest go when more than 100 ms are left of its sleep or wait.
fn server_that_parks(store: Store) -> Server {
    Setup::new(store)
        .variable("RUNTARA_SLEEP_HOLD_MS", "100")
        .start()
}

fn error_of(found: &Value) -> &str {
    found["error"].as_str().unwrap_or_default()
}

/// The runs in which the body of each step was begun, by its name, as the guests tell it.
fn bodies(run: &Run<'_>) -> Vec<(String, u64)> {
    let events = run.events();
    let bodies = events.iter().filter(|event| event["subtype"] == "body");
    let bodies = bodies.map(|event| {
        let name = runtara_tests::from_base64(&event["payload"]);
        let run = event["run_number"].as_u64().expect("every event has a run");
        (name.trim_matches('"').to_owned(), run)
    });
    bodies.collect()
}
