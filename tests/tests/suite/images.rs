//! Images: what can be registered, what is kept, what is refused and why.

mod content;
mod settings;

use runtara_tests::http::{Answer, Request};
use runtara_tests::{Image, Server, Store, TENANT, base64, eventually, on_both_stores};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use content::content_files;

on_both_stores!(
    an_image_is_registered_shown_and_listed,
    both_ways_of_registration_take_the_same,
    a_registration_by_json_says_what_is_wrong,
    a_registration_by_form_says_what_is_wrong,
    a_form_with_unreadable_parts_is_refused_and_not_guessed,
    what_cannot_run_here_is_refused_with_the_reason,
    a_native_image_can_be_started,
    the_total_counts_all_images_and_not_the_page,
    labels_find_images,
);

const SCRIPT: &[u8] = b"#!/bin/sh\nexit 0\n";

fn upload(server: &Server, texts: &[(&str, &str)], content: &[u8]) -> Answer {
    server.ask(&Request::form(
        "/api/v1/images/upload",
        texts,
        &[("binary", content)],
    ))
}

fn usual<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut texts = vec![
        ("tenant_id", TENANT),
        ("name", "program"),
        ("runner_type", "native"),
    ];
    for (name, value) in more {
        texts.retain(|(known, _)| known != name);
        texts.push((name, value));
    }
    texts
}

fn as_json(more: &Value) -> Value {
    let mut body = json!({
        "tenant_id": TENANT, "name": "program", "description": null, "binary": base64(SCRIPT),
        "runner_type": "native", "metadata": null,
    });
    let fields = body.as_object_mut().expect("it is one");
    fields.extend(more.as_object().cloned().unwrap_or_default());
    body
}

fn register_json(server: &Server, body: &Value) -> Answer {
    server.ask(&Request::post("/api/v1/images", body))
}

fn images(server: &Server, query: &str) -> Value {
    server
        .ask(&Request::get(&format!("/api/v1/images?{query}")))
        .expect(200)
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn an_image_is_registered_shown_and_listed(store: Store) {
    let server = Server::start(store);
    let digest = hex(SCRIPT);
    let texts = usual(&[
        ("description", "does nothing"),
        ("sha256", &digest),
        ("metadata", r#"{"a":1}"#),
        ("more", "ignored"),
    ]);
    let body = upload(&server, &texts, SCRIPT).expect(201);
    assert_eq!(body["success"], true, "{body}");
    let id = body["image_id"]
        .as_str()
        .expect("an id is a text")
        .to_owned();
    let found = server
        .ask(&Request::get(&format!(
            "/api/v1/images/{id}?tenant_id={TENANT}"
        )))
        .expect(200);
    assert_eq!(found["found"], true, "{found}");
    let image = &found["image"];
    assert_eq!(image["image_id"], json!(id));
    assert_eq!(
        (&image["tenant_id"], &image["name"]),
        (&json!(TENANT), &json!("program"))
    );
    assert_eq!(
        (&image["description"], &image["runner_type"]),
        (&json!("does nothing"), &json!("native"))
    );
    assert!(image["created_at_ms"].is_i64(), "{image}");
    let list = images(&server, &format!("tenant_id={TENANT}"));
    assert_eq!(
        (&list["images"][0]["image_id"], &list["total_count"]),
        (&json!(id), &json!(1)),
        "{list}"
    );
    assert_eq!(images(&server, "tenant_id=stranger")["total_count"], 0);
    for hidden in [
        format!("/api/v1/images/{id}?tenant_id=stranger"),
        "/api/v1/images/nothing".to_owned(),
    ] {
        assert_eq!(
            server.ask(&Request::get(&hidden)).expect(200),
            json!({ "found": false })
        );
    }
}

fn both_ways_of_registration_take_the_same(store: Store) {
    let server = Server::start(store);
    let body = register_json(
        &server,
        &as_json(&json!({ "name": "by-json", "metadata": { "a": [1] } })),
    )
    .expect(201);
    assert_eq!(body["success"], true, "{body}");
    // The content may stand anywhere in the body, and large ones are decoded as they come.
    let large = [SCRIPT, &vec![b'#'; 3_000_001][..]].concat();
    let text = format!(
        r#"{{ "binary" : "{}", "name":"by-json-2", "runner_type":"1", "tenant_id":"{TENANT}" }}"#,
        base64(&large)
    );
    let request = Request::new("POST", "/api/v1/images")
        .header("Content-Type", "application/json")
        .body(text);
    let large_id = server.ask(&request).expect(201)["image_id"].clone();
    let found = server
        .ask(&Request::get(&format!(
            "/api/v1/images/{}",
            large_id.as_str().expect("a text")
        )))
        .expect(200);
    assert_eq!(found["image"]["size_bytes"], large.len(), "{found}");
    assert_eq!(found["image"]["sha256"], hex(&large), "{found}");
    assert_eq!(
        found["image"]["runner_type"], "native",
        "1 means native: {found}"
    );
    let run = server.launch(
        &Image(body["image_id"].as_str().expect("a text").to_owned()),
        &json!({}),
    );
    run.wait_for("completed");
}

fn a_registration_by_json_says_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let refuse = |more: Value, code: &str| {
        let text = register_json(&server, &as_json(&more)).refuses(400, code);
        assert!(!text.contains("not found"), "{text}");
    };
    refuse(json!({ "tenant_id": "" }), "INVALID_ID");
    refuse(json!({ "tenant_id": "a/b" }), "INVALID_ID");
    refuse(json!({ "name": "" }), "INVALID_NAME");
    refuse(json!({ "name": " work" }), "INVALID_NAME");
    refuse(json!({ "binary": "" }), "EMPTY_BINARY");
    refuse(json!({ "binary": "no base64!" }), "INVALID_BINARY");
    refuse(json!({ "binary": "QUJD=QUJD" }), "INVALID_BINARY");
    refuse(json!({ "runner_type": "docker" }), "INVALID_RUNNER_TYPE");
    refuse(
        json!({ "binary": base64("just text") }),
        "IMAGE_NOT_RUNNABLE",
    );
    refuse(json!({ "labels": { "a b": "c" } }), "INVALID_LABEL");
    for broken in ["", "{", "[]", r#"{"tenant_id":1}"#, "{\"binary\":\"QUJD"] {
        let request = Request::new("POST", "/api/v1/images")
            .header("Content-Type", "application/json")
            .body(broken);
        let answer = server.ask(&request);
        assert!(matches!(answer.status, 400 | 422), "{broken:?}: {answer}");
        assert_eq!(answer.json()["success"], false, "{answer}");
    }
    assert_eq!(images(&server, "")["total_count"], 0);
    eventually("that nothing is left", || {
        let files = content_files(&server);
        if files.is_empty() { Ok(()) } else { Err(files) }
    });
}

fn a_registration_by_form_says_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let refuse = |texts: &[(&str, &str)], content: &[u8], code: &str| {
        upload(&server, texts, content).refuses(400, code);
    };
    refuse(&usual(&[("tenant_id", "")]), SCRIPT, "MISSING_TENANT_ID");
    refuse(&usual(&[("name", "")]), SCRIPT, "MISSING_NAME");
    refuse(&usual(&[]), b"", "MISSING_BINARY");
    refuse(
        &usual(&[("sha256", &hex(b"other"))]),
        SCRIPT,
        "CHECKSUM_MISMATCH",
    );
    refuse(&usual(&[("sha256", "abc")]), SCRIPT, "INVALID_SHA256");
    refuse(
        &usual(&[("metadata", "{broken")]),
        SCRIPT,
        "INVALID_METADATA",
    );
    refuse(
        &usual(&[("runner_type", "docker")]),
        SCRIPT,
        "INVALID_RUNNER_TYPE",
    );
    refuse(&usual(&[("labels", "[]")]), SCRIPT, "INVALID_LABEL");
    refuse(&usual(&[("tenant_id", "a#b")]), SCRIPT, "INVALID_ID");
    let twice = Request::form(
        "/api/v1/images/upload",
        &[("name", "a"), ("name", "b")],
        &[("binary", SCRIPT)],
    );
    server.ask(&twice).refuses(400, "UPLOAD_ERROR");
    let without = Request::form("/api/v1/images/upload", &usual(&[]), &[]);
    server.ask(&without).refuses(400, "MISSING_BINARY");
    let no_form = Request::new("POST", "/api/v1/images/upload").body("x");
    server.ask(&no_form).refuses(400, "UPLOAD_ERROR");
    let upper = hex(SCRIPT).to_uppercase();
    assert_eq!(
        upload(&server, &usual(&[("sha256", &upper)]), SCRIPT).status,
        201,
        "digests come in both cases"
    );
    assert_eq!(images(&server, "")["total_count"], 1);
}

fn a_form_with_unreadable_parts_is_refused_and_not_guessed(store: Store) {
    let server = Server::start(store);
    let form = |head: &str, end: &str| {
        let mut body = head.as_bytes().to_vec();
        body.extend_from_slice(b"\xff\xfe");
        body.extend_from_slice(end.as_bytes());
        Request::new("POST", "/api/v1/images/upload")
            .header("Content-Type", "multipart/form-data; boundary=XX")
            .body(body)
    };
    let name = "--XX\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n";
    server
        .ask(&form(name, "\r\n--XX--\r\n"))
        .refuses(400, "UPLOAD_ERROR");
    // The form ends in the middle of a part.
    server.ask(&form(name, "")).refuses(400, "UPLOAD_ERROR");
    let binary = "--XX\r\nContent-Disposition: form-data; name=\"binary\"\r\n\r\n#!/bin/sh\n";
    server
        .ask(&form(binary, "\r\n--X"))
        .refuses(400, "UPLOAD_ERROR");
    assert_eq!(images(&server, "")["total_count"], 0);
}

fn what_cannot_run_here_is_refused_with_the_reason(store: Store) {
    let server = Server::start(store);
    let wasm = b"\0asm\x01\0\0\0";
    let cases: [(&str, &[u8], &str); 5] = [
        ("wasm", wasm, "wasm"),
        ("native", wasm, "WebAssembly"),
        ("native", b"GIF89a and so on", "which no runner can run"),
        ("wasm", SCRIPT, "script"),
        ("oci", SCRIPT, "oci"),
    ];
    for (kind, content, word) in cases {
        let answer = upload(&server, &usual(&[("runner_type", kind)]), content);
        let text = answer.refuses(400, "IMAGE_NOT_RUNNABLE");
        assert!(text.contains(word), "{kind}: {text}");
    }
    // A program for another kind of machine: the ELF header of a 64-bit program for SPARC.
    let mut elf = b"\x7fELF\x02\x02\x01".to_vec();
    elf.resize(64, 0);
    elf[16..20].copy_from_slice(&[0, 2, 0, 43]);
    upload(&server, &usual(&[]), &elf).refuses(400, "IMAGE_NOT_RUNNABLE");
    assert_eq!(images(&server, "")["total_count"], 0);
}

fn a_native_image_can_be_started(store: Store) {
    let server = Server::start(store);
    for kind in ["native", "NATIVE", "1"] {
        let id = upload(&server, &usual(&[("runner_type", kind)]), SCRIPT).expect(201)["image_id"]
            .clone();
        let image = Image(id.as_str().expect("an id is a text").to_owned());
        server.launch(&image, &json!({})).wait_for("completed");
    }
}

fn the_total_counts_all_images_and_not_the_page(store: Store) {
    let server = Server::start(store);
    for number in 1..=5 {
        let name = format!("program-{number}");
        assert_eq!(
            upload(&server, &usual(&[("name", &name)]), SCRIPT).status,
            201
        );
    }
    let page = images(&server, "limit=2&offset=1");
    assert_eq!(page["total_count"], 5, "{page}");
    let names: Vec<_> = page["images"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|image| image["name"].clone())
        .collect();
    assert_eq!(names, ["program-4", "program-3"], "the newest come first");
    assert_eq!(images(&server, "name=program-2")["total_count"], 1);
    let first = images(&server, "limit=4");
    let rest = images(
        &server,
        &format!(
            "limit=4&cursor={}",
            first["next_cursor"].as_str().expect("there is more")
        ),
    );
    assert_eq!(rest["images"][0]["name"], "program-1", "{rest}");
}

fn labels_find_images(store: Store) {
    let server = Server::start(store);
    assert_eq!(
        upload(
            &server,
            &usual(&[("name", "a"), ("labels", r#"{"team":"x"}"#)]),
            SCRIPT
        )
        .status,
        201
    );
    assert_eq!(
        upload(&server, &usual(&[("name", "b")]), SCRIPT).status,
        201
    );
    assert_eq!(images(&server, "label=team=x")["images"][0]["name"], "a");
    assert_eq!(images(&server, "label=team=y")["total_count"], 0);
}
