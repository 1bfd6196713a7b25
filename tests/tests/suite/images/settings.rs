//! What images and starts may ask for, and what is refused.

use runtara_tests::http::Request;
use runtara_tests::{Server, Store, TENANT, on_both_stores};
use serde_json::json;

use super::{SCRIPT, as_json, images, register_json, upload, usual};

on_both_stores!(
    what_only_containers_can_be_given_is_refused_for_native_programs,
    a_base_must_be_a_container_image,
);

fn what_only_containers_can_be_given_is_refused_for_native_programs(store: Store) {
    let server = Server::start(store);
    let limits = json!({ "memory_bytes": 268_435_456 });
    let cases = [
        ("limits", limits.to_string(), limits, "limits of its own"),
        ("network", "egress".into(), json!("egress"), "'egress'"),
        ("network", "none".into(), json!("none"), "'isolated'"),
        ("read_only", "true".into(), json!(true), "read-only"),
        (
            "limits",
            r#"{"memory":1}"#.into(),
            json!({ "memory": 1 }),
            "unknown field `memory`",
        ),
        ("limits", "[1]".into(), json!([1]), "limits"),
        (
            "network",
            "bridge".into(),
            json!("bridge"),
            "isolated, egress or host",
        ),
    ];
    let image = upload(&server, &usual(&[]), SCRIPT).expect(201)["image_id"].clone();
    for (field, text, value, word) in cases {
        let form = usual(&[("name", "other"), (field, text.as_str())]);
        let json = as_json(&json!({ "name": "other", field: value }));
        let start = json!({ "tenant_id": TENANT, "image_id": image, field: value });
        for answer in [
            upload(&server, &form, SCRIPT),
            register_json(&server, &json),
            server.ask(&Request::post("/api/v1/instances", &start)),
        ] {
            let text = answer.refuses(400, "INVALID_SETTINGS");
            assert!(text.contains(word), "{field}: {text}");
        }
    }
    assert_eq!(images(&server, "")["total_count"], 1);
    let list = server.ask(&Request::get("/api/v1/instances")).expect(200);
    assert_eq!(list["total_count"], 0, "{list}");
    // What a process of the host has anyway may be asked for, and is shown.
    let plain = usual(&[("network", "host"), ("read_only", "false")]);
    let id = upload(&server, &plain, SCRIPT).expect(201)["image_id"].clone();
    let shown = &images(&server, "")["images"][0];
    assert_eq!(shown["image_id"], id, "{shown}");
    assert_eq!(
        (&shown["network"], &shown["read_only"], shown.get("limits")),
        (&json!("host"), &json!(false), None),
        "{shown}"
    );
}

fn a_base_must_be_a_container_image(store: Store) {
    let server = Server::start(store);
    let native = upload(&server, &usual(&[("name", "native")]), SCRIPT).expect(201);
    assert_eq!(native["runner_type"], "native", "{native}");
    // Where there are no containers, that is what is told first.
    for base in ["native", "nothing"] {
        let form = [("tenant_id", TENANT), ("name", "laid"), ("base", base)];
        let answer = upload(&server, &form, SCRIPT);
        let code = answer.json()["code"].clone();
        let codes = ["INVALID_BASE", "IMAGE_NOT_RUNNABLE"];
        assert_eq!(answer.status, 400, "{answer}");
        assert!(codes.iter().any(|known| code == *known), "{answer}");
    }
    let declared = usual(&[("base", "native")]);
    let text = upload(&server, &declared, SCRIPT).refuses(400, "IMAGE_NOT_RUNNABLE");
    assert!(text.contains("'native' knows no base"), "{text}");
    assert_eq!(images(&server, "")["total_count"], 1);
}
