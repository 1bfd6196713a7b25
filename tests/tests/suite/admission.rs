//! How much one tenant may have, and that it keeps nobody else out.

use std::time::Duration;

use runtara_tests::http::{Connection, Request};
use runtara_tests::{Image, Server, Setup, Store, TENANT, eventually, holds_for, on_both_stores};
use serde_json::{Value, json};

const MIB: usize = 1024 * 1024;

on_both_stores!(
    a_tenant_has_so_many_runs_and_the_rest_waits,
    a_start_beyond_what_may_be_pending_is_refused,
    images_beyond_what_a_tenant_may_keep_are_refused,
);

fn with(store: Store, name: &str, value: &str) -> Server {
    Setup::new(store).variable(name, value).start()
}

fn standing(server: &Server, ids: &[String], status: &str) -> usize {
    let stands = |id: &&String| server.instance(id).status()["status"] == status;
    ids.iter().filter(stands).count()
}

fn a_tenant_has_so_many_runs_and_the_rest_waits(store: Store) {
    let server = with(store, "RUNTARA_MAX_RUNS_PER_TENANT", "2");
    let image = server.program("ignores_sigterm");
    let ids: Vec<_> = (0..4)
        .map(|_| server.launch(&image, &json!({})).id)
        .collect();
    let run_two = || {
        let running = standing(&server, &ids, "running");
        if running == 2 { Ok(()) } else { Err(running) }
    };
    eventually("two runs", run_two);
    let other = server.program_for("other", "ignores_sigterm");
    let body = json!({ "image_id": other.0, "tenant_id": "other" });
    let started = server
        .ask(&Request::post("/api/v1/instances", &body))
        .expect(201);
    let other = started["instance_id"].as_str().expect("an id is a text");
    eventually("a run of another tenant", || {
        match server.instance(other).status()["status"] == "running" {
            true => Ok(()),
            false => Err(()),
        }
    });
    holds_for(Duration::from_secs(1), "two runs", run_two);
    for id in &ids {
        if server.instance(id).status()["status"] == "running" {
            let _stopped = server.instance(id).stop(0);
            break;
        }
    }
    eventually("the run of another one", || {
        let counts = (
            standing(&server, &ids, "cancelled"),
            standing(&server, &ids, "running"),
        );
        if counts == (1, 2) {
            Ok(())
        } else {
            Err(counts)
        }
    });
}

fn a_start_beyond_what_may_be_pending_is_refused(store: Store) {
    let server = with(store, "RUNTARA_MAX_PENDING_PER_TENANT", "2");
    let image = server.program("exits_with");
    let later = |id: &str| json!({ "instance_id": id, "delay_ms": 3_600_000 });
    for id in ["a", "b"] {
        let _pending = server.launch(&image, &later(id));
    }
    let full = server.try_launch(&image, &later("c"));
    full.refuses(429, "TOO_MANY_PENDING");
    assert!(full.header("Retry-After").is_some(), "{:?}", full.headers);
    let text = full.text();
    for told in ["2 instances", "2 may be", "RUNTARA_MAX_PENDING_PER_TENANT"] {
        assert!(text.contains(told), "{text}");
    }
    let again = server.try_launch(&image, &later("a")).expect(200);
    assert_eq!(again["deduplicated"], true, "{again}");
    assert_eq!(server.instance("b").stop(0)["status"], "cancelled");
    let _pending = server.launch(&image, &later("c"));
}

fn images_beyond_what_a_tenant_may_keep_are_refused(store: Store) {
    let most = (20 * MIB).to_string();
    let server = with(store, "RUNTARA_MAX_IMAGE_BYTES_PER_TENANT", &most);
    let content = |fill: char| {
        let comment = "# ".to_owned() + &fill.to_string().repeat(15 * MIB);
        format!("#!/bin/sh\n{comment}\n").into_bytes()
    };
    let upload = |name: &str, content: &[u8]| {
        let texts = [
            ("tenant_id", TENANT),
            ("name", name),
            ("runner_type", "native"),
        ];
        server.upload(&texts, content)
    };
    let first: Image = upload("a", &content('a')).image();
    let over = upload("b", &content('b'));
    over.refuses(413, "TOO_MANY_IMAGE_BYTES");
    assert!(over.text().contains(&most), "{over}");
    let _same = upload("c", &content('a')).image();

    // Where its size is said before, it is not read.
    let path = "/api/v1/images/upload";
    let mut connection = Connection::open(&server.environment()).expect("the port is served");
    let head = "--x\r\nContent-Disposition: form-data; name=\"tenant_id\"\r\n\r\nacme\r\n\
                --x\r\nContent-Disposition: form-data; name=\"binary\"\r\n\r\n#!/bin/sh\n";
    let request = Request::new("POST", path)
        .header("Content-Type", "multipart/form-data; boundary=x")
        .header("Content-Length", "1000000000")
        .body(head);
    connection.send(&request.bytes()).expect("the head is read");
    let refused = connection.read().expect("it is answered at once");
    refused.refuses(413, "TOO_MANY_IMAGE_BYTES");

    let listed: Value = server
        .ask(&Request::get("/api/v1/images?tenant_id=acme"))
        .expect(200);
    assert_eq!(listed["total_count"], 2, "{listed}");
    assert_eq!(server.image(&first)["name"], "a");
}
