//! The order survives being killed in the middle of a step, and does nothing twice.

use runtara_test_programs::fake_core::{FakeCore, State};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_order-workflow");

#[test]
fn an_order_that_is_killed_goes_on_and_says_which_run_did_what() {
    let input = json!({
        "order": "A-7", "items": ["teapot", "cups"], "step_ms": 300, "sleep_ms": 400,
    });
    let core = FakeCore::start(input).unwrap();
    let kill_when = |run, what: &str, there: &dyn Fn(&State) -> bool| {
        let mut child = core.command(PROGRAM, run).spawn().unwrap();
        core.until(what, there);
        child.kill().unwrap();
        child.wait().unwrap();
    };
    kill_when(1, "the first step", &|state| {
        state.checkpoints.contains_key("reserve_stock")
    });
    kill_when(2, "the sleep", &|state| !state.called("sleep").is_empty());
    core.pass_time();
    kill_when(3, "the wait for the delivery", &|state| {
        !state.called("signals/wait").is_empty()
    });
    core.change(|state| {
        let payload = r#"{"signed_by": "Ann"}"#.to_owned();
        state.custom.insert("delivered".to_owned(), payload);
    });
    let ended = core.command(PROGRAM, 4).output().unwrap();
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let step = |step, run| json!({"step": step, "run": run});
    let expected = json!({
        "order": "A-7",
        "total_cents": 1_100,
        "delivered": true,
        "signed_by": "Ann",
        "steps": [
            step("reserve_stock", 1), step("charge_card", 2), step("pack_parcel", 2),
            step("send_receipt", 4),
        ],
    });
    assert_eq!(core.state().output(), Some(expected));
}
