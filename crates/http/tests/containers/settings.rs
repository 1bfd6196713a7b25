//! Limits, network and a read-only root: kept, shown, handed on, or refused with the reason.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use runtara_domain::{NetworkMode, ResourceLimits, RunSettings};
use serde_json::{Value, json};

use crate::world::{ABOUT, TENANT, World, container_image, refused};

const SCRIPT: &[u8] = b"#!/bin/sh\n";

#[tokio::test]
async fn what_an_image_asks_for_is_shown_and_what_it_does_not_is_absent() {
    let world = World::new().await;
    let limits = r#"{"memory_bytes":268435456,"cpu_millicores":500,"pids":32,"open_files":64,"writable_bytes":1048576}"#;
    let content = container_image("asks");
    let asks = [
        ("name", "asks"),
        ("limits", limits),
        ("network", "pasta"),
        ("read_only", "true"),
    ];
    let image = world.image(&content, &asks).await;
    assert_eq!(
        image["limits"],
        serde_json::from_str::<Value>(limits).unwrap()
    );
    assert_eq!(
        (&image["network"], &image["read_only"]),
        (&json!("egress"), &json!(true))
    );
    assert_eq!(
        image["container"],
        serde_json::from_str::<Value>(ABOUT).unwrap()
    );
    assert_eq!(image["runner_type"], "oci");
    let plain = world.image(&container_image("plain"), &[]).await;
    for absent in ["limits", "network", "read_only", "base"] {
        assert_eq!(plain.get(absent), None, "{plain}");
    }
    let list = world.get("/api/v1/images?name=asks").await;
    assert_eq!(list["images"][0], image);
    let native = world.image(SCRIPT, &[("name", "native")]).await;
    assert_eq!(
        (&native["runner_type"], native.get("container")),
        (&json!("native"), None)
    );
}

#[tokio::test]
async fn an_image_asks_by_json_as_well() {
    let world = World::new().await;
    let content = container_image("json");
    let body = json!({
        "tenant_id": TENANT, "name": "program", "binary": STANDARD.encode(&content), "runner_type": "oci",
        "limits": { "pids": 7 }, "network": "host", "read_only": false,
    });
    let (status, answer) = world.post("/api/v1/images", &body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let list = world.get("/api/v1/images").await;
    let image = &list["images"][0];
    assert_eq!(image["limits"], json!({ "pids": 7 }));
    assert_eq!(
        (&image["network"], &image["read_only"]),
        (&json!("host"), &json!(false))
    );
    let mut unknown = body;
    unknown["limits"] = json!({ "memory": 7 });
    let text = refused(
        world.post("/api/v1/images", &unknown).await,
        400,
        "INVALID_SETTINGS",
    );
    assert!(text.contains("unknown field `memory`"), "{text}");
}

#[tokio::test]
async fn what_a_start_asks_for_is_handed_to_its_run() {
    let world = World::new().await;
    let image = world
        .image(&container_image("app"), &[("limits", r#"{"pids":32}"#)])
        .await;
    let asked =
        json!({ "limits": { "memory_bytes": 1 << 20 }, "network": "none", "read_only": true });
    let (status, body) = world.start(&image, &asked).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let claimed = world.claim().await;
    let limits = |memory_bytes, pids| ResourceLimits {
        memory_bytes,
        pids,
        ..ResourceLimits::default()
    };
    assert_eq!(
        claimed[0].settings,
        RunSettings {
            limits: limits(Some(1 << 20), None),
            network: Some(NetworkMode::Isolated),
            allowed_hosts: None,
            read_only: Some(true),
        }
    );
    assert_eq!(claimed[0].image.settings.limits, limits(None, Some(32)));
    let (status, body) = world
        .start(&image, &json!({ "limits": null, "network": null }))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert!(world.claim().await[0].settings.is_empty());
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_with_what_is_wrong() {
    let world = World::new().await;
    let image = world.image(&container_image("app"), &[]).await;
    let content = container_image("other");
    for (part, value, word) in [
        ("limits", r#"{"memory":5}"#, "unknown field `memory`"),
        ("limits", r#"{"pids":-1}"#, "-1"),
        ("limits", r#"{"pids":"many"}"#, "many"),
        ("limits", "[]", "limits"),
        ("limits", "{", "JSON"),
        ("network", "bridge", "use isolated, egress or host"),
        (
            "limits",
            r#"{"memory_bytes":1073741825}"#,
            "the operator allows",
        ),
    ] {
        let text = world
            .refuses(&content, &[(part, value)], 400, "INVALID_SETTINGS")
            .await;
        assert!(text.contains(word), "{value}: {text}");
        let Ok(value) = serde_json::from_str(value).or_else(|_| match part {
            "network" => Ok(json!(value)),
            _ => Err(()),
        }) else {
            continue;
        };
        let value: Value = value;
        let answer = world.start(&image, &json!({ part: value })).await;
        let text = refused(answer, 400, "INVALID_SETTINGS");
        assert!(text.contains(word), "{value}: {text}");
    }
    let text = world
        .refuses(&content, &[("read_only", "yes")], 400, "INVALID_SETTINGS")
        .await;
    assert!(text.contains("true and false"), "{text}");
    assert!(world.claim().await.is_empty(), "nothing was started");
    assert_eq!(world.get("/api/v1/images").await["total_count"], 1);
}

#[tokio::test]
async fn a_native_program_is_given_nothing_that_only_a_container_has() {
    let world = World::new().await;
    let asked = [("runner_type", "native"), ("network", "isolated")];
    let text = world.refuses(SCRIPT, &asked, 400, "INVALID_SETTINGS").await;
    assert_eq!(text, "native programs are given nothing");
    let image = world.image(SCRIPT, &[("runner_type", "native")]).await;
    let answer = world.start(&image, &json!({ "read_only": true })).await;
    refused(answer, 400, "INVALID_SETTINGS");
}

#[tokio::test]
async fn the_same_start_again_is_answered_whatever_the_operator_allows_by_now() {
    let world = World::new().await;
    let image = world.image(&container_image("app"), &[]).await;
    let (status, _) = world
        .start(&image, &json!({ "instance_id": "order-1" }))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let again = json!({ "instance_id": "order-1", "limits": { "memory_bytes": 2_u64 << 30 } });
    let (status, body) = world.start(&image, &again).await;
    assert_eq!(
        (status, &body["deduplicated"]),
        (StatusCode::OK, &json!(true)),
        "{body}"
    );
}
