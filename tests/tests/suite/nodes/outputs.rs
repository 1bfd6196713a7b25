//! What a run wrote lies where it ran, and is read from everywhere.

use runtara_tests::eventually;
use runtara_tests::http::{self, Address, Request};
use serde_json::json;

use super::{drain, first, node, second, undrain, wait_until_guarded};

#[test]
fn the_output_of_a_run_is_fetched_from_its_node() {
    let one = first();
    let mut two = second(&one);
    wait_until_guarded(&two, "first");
    drain(&two, "second", 0);
    let go = two.shared().path("go");
    let script = format!(
        "echo first line; echo an error >&2; while [ ! -e {go} ]; do sleep 0.05; done; echo last line"
    );
    let id = two.launch(&two.shell(&script), &json!({})).id;
    let run = two.instance(&id);
    run.wait_for_line("first line");
    assert_eq!(run.logs("stream=stderr").text(), "an error\n");
    let answer = run.logs("stream=stdout&offset=6");
    assert_eq!(answer.text(), "line\n");
    assert_eq!(answer.header("x-runtara-log-offset"), Some("6"));
    assert_eq!(answer.header("x-runtara-run"), Some("1"));

    // Followed to its end, from elsewhere.
    two.shared().touch("go");
    let followed = run.logs("stream=stdout&follow=true");
    assert_eq!(followed.text(), "first line\nlast line\n");
    run.wait_for("completed");
    assert_eq!(run.logs("stream=stdout").text(), "first line\nlast line\n");
    assert_eq!(run.logs("run=2").status, 404);

    // The other way round, and of an earlier run.
    undrain(&two, "second");
    drain(&two, "first", 0);
    let id = one.launch(&one.shell("echo on the second"), &json!({})).id;
    one.instance(&id).wait_for("completed");
    let read = |text: String| match text {
        text if text == "on the second\n" => Ok(()),
        text => Err(text),
    };
    eventually("its output", || read(one.instance(&id).logs("").text()));

    // What lies on a node that has left, with nothing that tells of it, was nothing or is gone; what lies on one that is dead too.
    two.sigterm();
    assert_eq!(one.instance(&id).logs("").status, 200);
}

#[test]
fn only_nodes_may_ask_nodes() {
    let one = first();
    // While it is alone, nobody else can run it.
    let id = one.launch(&one.shell("echo secret"), &json!({})).id;
    one.instance(&id).wait_for("completed");
    let two = second(&one);
    let address = node(&two, "first")["address"].as_str().unwrap().to_owned();
    let (_, port) = address.rsplit_once(':').unwrap();
    let place = Address::Port(port.parse().unwrap());
    let path = format!("/node/v1/instances/{id}/logs?stream=stdout");
    for key in [
        None,
        Some("Bearer "),
        Some("Bearer aaaa"),
        Some("Basic eA=="),
    ] {
        let mut request = Request::get(&path);
        if let Some(key) = key {
            request = request.header("Authorization", key);
        }
        let refused = http::exchange(&place, &request).expect("it is answered");
        assert_eq!(refused.status, 401, "{key:?}");
        assert!(!refused.text().contains("secret"), "{key:?}");
    }
    let nodes = two.ask(&Request::get("/api/v1/nodes"));
    let key = one.psql("select key from runtara_nodes where name = 'first'");
    assert_eq!(key.trim().len(), 52);
    assert!(
        !nodes.text().contains(key.trim()),
        "the key is told to nobody"
    );
    assert!(!one.log().contains(key.trim()));
    let with_key = Request::get(&path).header("Authorization", &format!("Bearer {}", key.trim()));
    let answer = http::exchange(&place, &with_key).expect("it is answered");
    assert_eq!((answer.status, answer.text().as_str()), (200, "secret\n"));
}
