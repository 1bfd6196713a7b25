//! What is asked of containers, and what is shown of their images.

use serde_json::json;

use crate::fake::{Fake, Reply};
use crate::run;
use crate::shapes::{image, list};

#[tokio::test]
async fn a_push_and_a_start_ask_for_what_was_typed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
    let fake = Fake::start(|asked| match asked.line().as_str() {
        "POST /api/v1/images/upload" => {
            Reply::json(201, &json!({"success": true, "image_id": "4f3c"}))
        }
        "POST /api/v1/instances" => {
            Reply::json(201, &json!({"success": true, "instance_id": "o-1"}))
        }
        _ => list("images", &[image()], 1, None),
    })
    .await;
    let push = "--name orders --base python --memory 256M --cpus 0.5 --network egress --read-only";
    let path = file.path().to_str().unwrap();
    let words: Vec<_> = ["image", "push", path]
        .into_iter()
        .chain(push.split(' '))
        .collect();
    let ran = run(&fake.url(), &words).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let form = String::from_utf8(fake.asked()[0].body.to_vec()).unwrap();
    for part in [
        "name=\"base\"\r\n\r\npython\r\n",
        "name=\"limits\"\r\n\r\n{\"cpu_millicores\":500,\"memory_bytes\":268435456}\r\n",
        "name=\"network\"\r\n\r\negress\r\n",
        "name=\"read_only\"\r\n\r\ntrue\r\n",
    ] {
        assert!(form.contains(part), "{part:?} in {form}");
    }
    let start = "start --image orders --pids 9 --open-files 64 --writable 64M --network none --read-only=false -- --memory 1";
    let ran = run(&fake.url(), &start.split(' ').collect::<Vec<_>>()).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "o-1\n"));
    assert_eq!(
        fake.asked()[2].json(),
        json!({"image_id": "4f3c", "tenant_id": "acme", "instance_id": null, "input": null, "timeout_seconds": null, "env": {},
               "args": ["--memory", "1"], "limits": {"open_files": 64, "pids": 9, "writable_bytes": 67_108_864},
               "network": "isolated", "read_only": false})
    );
}

#[tokio::test]
async fn what_is_not_typed_is_left_to_others() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "POST" => Reply::json(201, &json!({"success": true, "instance_id": "o-1"})),
        _ => list("images", &[image()], 1, None),
    })
    .await;
    run(&fake.url(), &["start", "--image", "orders"]).await;
    let sent = fake.asked()[1].json();
    for field in ["limits", "network", "read_only"] {
        assert_eq!(sent.get(field), None, "{sent}");
    }
}

#[tokio::test]
async fn an_image_shows_its_base_its_settings_and_what_it_says_of_itself() {
    let mut told = image();
    let fields = told.as_object_mut().unwrap();
    let more = json!({"runner_type": "oci", "base": "aa11", "limits": {"memory_bytes": 268_435_456, "pids": 9},
                      "network": "egress", "container": {"entrypoint": ["/app", "a b"], "layers": 2}});
    fields.extend(more.as_object().unwrap().clone());
    let fake = Fake::start(move |_| list("images", &[told.clone()], 1, None)).await;
    let ran = run(&fake.url(), &["image", "show", "orders"]).await;
    let lines: Vec<_> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for line in [
        "kind oci",
        "base aa11",
        "limits 256.0 MiB memory, 9 processes",
        "network egress",
        "container entrypoint /app 'a b'",
        "container layers 2",
        "size_bytes 36",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
    }
    let ran = run(&fake.url(), &["image", "show", "orders", "--json"]).await;
    let shown: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        shown["limits"],
        json!({"memory_bytes": 268_435_456, "pids": 9})
    );
    assert_eq!(shown.get("read_only"), None, "{shown}");
}
