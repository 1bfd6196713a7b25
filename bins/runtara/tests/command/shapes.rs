//! Answers in the shapes in which the server of this repository gives them.

use serde_json::{Value, json};

use crate::fake::Reply;

/// Everything that is told of one instance, with further keys.
pub(crate) fn status(word: &str, more: &Value) -> Value {
    let mut told = json!({
        "found": true, "instance_id": "o-1", "tenant_id": "acme", "status": word, "status_reason": null, "image_id": "4f3c",
        "image_name": "orders", "created_at_ms": 0, "input": "e30=", "retry_count": 0, "max_retries": 2, "run_number": 1,
        "labels": {}
    });
    let fields = told.as_object_mut().expect("an object");
    fields.extend(more.as_object().cloned().unwrap_or_default());
    told
}

/// A row of a list of instances.
pub(crate) fn summary(id: &str, status: &str) -> Value {
    json!({"instance_id": id, "tenant_id": "acme", "status": status, "status_reason": null, "created_at_ms": 0,
           "has_error": false, "image_id": "4f3c", "image_name": "orders", "labels": {}})
}

/// A row of a list of images.
pub(crate) fn image() -> Value {
    json!({"image_id": "4f3c", "tenant_id": "acme", "name": "orders", "runner_type": "native", "created_at_ms": 0,
           "sha256": "6f52", "size_bytes": 36, "labels": {}, "current": true})
}

/// A list under its name, with what stands beside every list.
pub(crate) fn list(name: &str, rows: &[Value], total: u64, next_cursor: Option<&str>) -> Reply {
    let mut answer = json!({"total_count": total, "total_is_exact": true, "next_cursor": next_cursor, "limit": 100, "offset": 0});
    answer[name] = rows.into();
    Reply::json(200, &answer)
}

/// Whether the server can work, and which runners were built into it.
pub(crate) fn readiness(is_ready: bool) -> Value {
    let not_built = "this build has no runner of this kind";
    json!({
        "active_instances": 0, "database": is_ready, "ready": is_ready, "version": "0.1.0",
        "runners": {"native": true, "oci": not_built, "wasm": not_built}
    })
}

/// What the server found out about its machine when it started.
pub(crate) fn machine() -> Value {
    let check = |about: &str, result: &str, text: &str| json!({"about": about, "result": result, "text": text});
    json!({"checks": [
        check("processes", "fine", "programs of all kinds can be watched"),
        check("OCI runtime", "unfit", "'runc' was not found; install it (Debian: apt install runc), or name another"),
        check("network mode isolated", "fine", "needs nothing"),
        check("network mode egress", "warning", "no slirp4netns; Debian: apt install slirp4netns"),
    ]})
}
