//! Programs in containers of their own, or on a base.

use runtara_tests::image::{Layer, archive, base_layer, compile};
use runtara_tests::{Server, Setup, Store, TENANT, on_both_stores, program};
use serde_json::json;

on_both_stores!(
    a_program_that_needs_nothing_runs_alone,
    what_a_program_needs_comes_from_its_base_or_it_is_refused,
);

const SAYS_HELLO: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char place[64];
    printf("{\"arguments\": %d, \"second\": \"%s\", \"place\": \"%s\", \"user\": %d}\n", count - 1,
           count > 2 ? arguments[2] : "", getcwd(place, sizeof place), (int)getuid());
    return 0;
}
"#;

fn a_program_that_needs_nothing_runs_alone(store: Store) {
    let server = Server::start(store);
    let hello = compile(SAYS_HELLO);
    // As published clients do that say nothing of the kind, and as they do that say it.
    for texts in [
        &[("tenant_id", TENANT), ("name", "hello")][..],
        &[
            ("tenant_id", TENANT),
            ("name", "hello"),
            ("runner_type", "oci"),
        ],
    ] {
        let image = server.upload(texts, &hello).image();
        assert_eq!(server.image(&image)["runner_type"], "oci");
        let run = server.launch(&image, &json!({ "args": ["a", "b c"] }));
        assert_eq!(
            run.output(),
            json!({ "arguments": 2, "second": "b c", "place": "/data", "user": 0 })
        );
    }
}

fn what_a_program_needs_comes_from_its_base_or_it_is_refused(store: Store) {
    let server = Server::start(store);
    let dynamic = std::fs::read(program("echoes_input")).expect("it was built");
    let script = b"#!/bin/sh\ncat /motto; cat\n";
    let register = |content: &[u8], more: &[(&str, &str)]| {
        let texts = [&[("tenant_id", TENANT), ("name", "program")], more].concat();
        server.upload(&texts, content)
    };
    let oci = [("runner_type", "oci")];
    for (content, needed) in [(&dynamic[..], "/ld-linux"), (script, "/bin/sh")] {
        let text = register(content, &oci).refuses(400, "IMAGE_NOT_RUNNABLE");
        assert!(text.contains(needed) && text.contains("base"), "{text}");
    }
    let texts = [("tenant_id", TENANT), ("name", "empty")];
    let empty = Layer::new().directory("etc/").finish();
    let _empty = server
        .upload(&texts, &archive(&[&empty], &json!({})))
        .image();
    for (content, needed) in [(&dynamic[..], "/ld-linux"), (script, "/bin/sh")] {
        let text = register(content, &[("base", "empty")]).refuses(400, "IMAGE_NOT_RUNNABLE");
        assert!(text.contains(needed), "the base lacks it: {text}");
    }
    let motto = Layer::new().file("motto", "of the base\n").finish();
    let config = json!({ "Cmd": ["/bin/never"], "Env": ["MODE=base"] });
    let texts = [("tenant_id", TENANT), ("name", "full")];
    let full = archive(&[base_layer(), &motto], &config);
    let full = server.upload(&texts, &full).image();
    for named in ["full", &full.0] {
        let image = register(&dynamic, &[("base", named)]).image();
        let run = server.launch(&image, &json!({ "input": { "n": 1 } }));
        assert_eq!(run.output(), json!({ "n": 1 }));
        let image = register(script, &[("base", named)]).image();
        let run = server.launch(&image, &json!({ "input": 7 }));
        assert_eq!(run.stdout(), "of the base\n7");
    }
    register(script, &[("base", "nowhere")]).refuses(400, "INVALID_BASE");
    let base_of_another = [
        ("tenant_id", "stranger"),
        ("name", "theirs"),
        ("base", "full"),
    ];
    server
        .upload(&base_of_another, script)
        .refuses(400, "INVALID_BASE");
}

#[test]
fn a_server_without_a_runtime_says_so_and_runs_native_programs() {
    let server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_OCI_RUNTIME", "/no/such/runtime")
        .start();
    let content = archive(&[base_layer()], &json!({ "Cmd": ["/bin/true"] }));
    let text = server
        .try_register_archive(&content)
        .refuses(400, "IMAGE_NOT_RUNNABLE");
    assert!(text.contains("/no/such/runtime"), "{text}");
    let native = server.launch(&server.shell("echo 1"), &json!({}));
    assert_eq!(native.output(), 1);
}
