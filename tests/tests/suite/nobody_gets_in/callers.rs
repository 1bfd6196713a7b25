//! Who calls, by what it names: its run, its tenant, our host.

use runtara_tests::http::{Address, Request, exchange};
use runtara_tests::{Ground, Server, Setup, Store, TENANT, base64, in_both_kinds};
use serde_json::json;

in_both_kinds!(
    a_token_that_nobody_has_is_told_so_everywhere,
    a_run_that_names_another_tenant_is_refused,
);

fn a_token_that_nobody_has_is_told_so_everywhere(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    let get = |path: String| server.ask_core(&Request::get(&path));
    assert_eq!(get(format!("{token}/health")).status, 200);
    get(format!("{token}/ready")).refuses(404, "UNKNOWN_ROUTE");
    let unknown = get(format!("{token}/api/v1/instances/nowhere/status")).expect(200);
    assert_eq!(unknown["found"], false, "{unknown}");
    let mut invented: String = token.clone();
    let last = invented.pop();
    invented.push(if last == Some('a') { 'b' } else { 'a' });
    for path in [
        "/health".to_owned(),
        "/api/v1/instances/nowhere/status".to_owned(),
        format!("/api/v1/instances/{}/status", run.id),
    ] {
        get(format!("{invented}{path}")).refuses(409, "RUN_SUPERSEDED");
    }
    assert_eq!(run.stop(0)["success"], true);
    get(format!("{token}/health")).refuses(409, "RUN_SUPERSEDED");
}

fn a_run_that_names_another_tenant_is_refused(ground: Ground) {
    const HEADER: &str = "X-Runtara-Tenant-Id";
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    server.self_register("own-1");
    let checkpoint = json!({ "checkpoint_id": "a", "state": base64("1") });
    for base in [
        format!("{}/api/v1/instances/{}", run.token_path(), run.id),
        "/api/v1/instances/own-1".to_owned(),
    ] {
        let save = Request::post(&format!("{base}/checkpoint"), &checkpoint);
        let look = Request::get(&format!("{base}/status"));
        for request in [&save, &look] {
            // Again, when the tenant is known, and after a call that named the right one.
            for _ in 0..2 {
                let foreign = request.clone().header(HEADER, "stranger");
                server.ask_core(&foreign).refuses(403, "TENANT_FORBIDDEN");
                let own = request.clone().header(HEADER, TENANT);
                assert_eq!(server.ask_core(&own).status, 200);
            }
        }
    }
    let register = Request::post(
        "/api/v1/instances/own-2/register",
        &json!({ "tenant_id": TENANT }),
    );
    server
        .ask_core(&register.clone().header(HEADER, "stranger"))
        .refuses(403, "TENANT_FORBIDDEN");
    let answer = server
        .ask_core(&register.header(HEADER, TENANT))
        .expect(200);
    assert_eq!(answer["success"], true, "{answer}");
}

#[test]
fn each_port_is_known_by_its_own_names() {
    let server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_ENV_HTTP_BIND", "0.0.0.0")
        .variable("RUNTARA_ALLOW_UNAUTHENTICATED", "true")
        .variable("RUNTARA_ALLOWED_HOSTS", "runtara.example, 192.0.2.1")
        .start();
    let ask = |address: &Address, header: &str, value: &str| {
        let request = Request::get("/health").header(header, value);
        exchange(address, &request).expect("the port is served")
    };
    let (exposed, loopback) = (server.environment(), server.core());
    for host in [
        "runtara.example:8002",
        "192.0.2.1",
        "127.0.0.1:8002",
        "localhost",
    ] {
        assert_eq!(ask(&exposed, "Host", host).status, 200, "{host}");
    }
    for host in ["evil.example", "192.0.2.2:8002", "10.0.0.1"] {
        ask(&exposed, "Host", host).refuses(403, "FOREIGN_HOST");
    }
    for host in ["runtara.example", "192.0.2.1", "evil.example", "10.0.0.1"] {
        ask(&loopback, "Host", host).refuses(403, "FOREIGN_HOST");
    }
    assert_eq!(ask(&loopback, "Host", "127.0.0.1:8001").status, 200);
    ask(&exposed, "Origin", "http://runtara.example").refuses(403, "FOREIGN_ORIGIN");
}
