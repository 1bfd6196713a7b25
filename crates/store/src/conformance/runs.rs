//! Runs: who may speak for an instance, and which runs live where.

use bytes::Bytes;
use runtara_domain::{
    Caller, Change, Fence, InstanceId, NewEvent, Origin, Refusal, RunExit, RunNumber, RunToken,
    RunnerKind, Status, Word,
};

use super::Harness;
use super::make::{
    checkpoint, exit_code, instance, refusal, save, signal, sleep, tenant, wait_for,
};
use super::world::{Run, World};
use crate::{HeldWait, LiveRun, StoreResult, TokenOwner, Waiting};

/// Every call there is, and how each was answered.
async fn every_call(world: &World<'_>, caller: &Caller) -> Vec<(&'static str, StoreResult<()>)> {
    let store = &world.store;
    let held = HeldWait {
        key: sleep(Some("nap"), 1, b"s").key,
        n: 1,
        remaining_ms: Some(1),
    };
    let event = NewEvent::custom(Some("x".to_owned()), None, Some(Bytes::from_static(b"{}")));
    let word = Word::Completed {
        output: Some(Bytes::from_static(b"stale")),
    };
    let until = Word::SuspendedUntil {
        wake_at: world.now(),
        checkpoint_id: checkpoint("stale"),
        state: Bytes::from_static(b"stale"),
    };
    let (pay, go) = (checkpoint("pay"), signal("go"));
    vec![
        (
            "register",
            store.register_instance(caller, &world.tenant, None).await,
        ),
        (
            "save",
            store
                .save_checkpoint(caller, save("stale", b"s"))
                .await
                .map(drop),
        ),
        (
            "look",
            store
                .save_checkpoint(caller, save("step", b""))
                .await
                .map(drop),
        ),
        ("poll", store.poll_signal(caller).await.map(drop)),
        ("take", store.take_signal(caller, &go, None).await.map(drop)),
        (
            "sleep",
            store
                .begin_wait(caller, sleep(Some("nap"), 5, b"s"))
                .await
                .map(drop),
        ),
        (
            "far sleep",
            store
                .begin_wait(caller, sleep(None, 99_999, b"s"))
                .await
                .map(drop),
        ),
        (
            "wait",
            store
                .begin_wait(caller, wait_for("go", None))
                .await
                .map(drop),
        ),
        (
            "go on",
            store.continue_wait(caller, &held, false).await.map(drop),
        ),
        (
            "park now",
            store.continue_wait(caller, &held, true).await.map(drop),
        ),
        (
            "event",
            store
                .record_event(caller, event, Some("r".to_owned()))
                .await,
        ),
        ("heartbeat", store.heartbeat(caller).await),
        ("retry", store.record_retry(caller, &pay, 2, None).await),
        ("word", store.say(caller, word, false).await.map(drop)),
        ("until", store.say(caller, until, false).await.map(drop)),
    ]
}

/// Whatever a run does that was superseded is refused and changes nothing that could be seen.
pub async fn a_superseded_run_changes_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let old = world.launch("order-1").await;
    old.save("step", b"s").await;
    let new = old.lose().await;
    new.register().await;
    world.send(new.id(), "go", b"payload").await;
    let seen = |world: &World<'_>| {
        let (store, id) = (world.store.clone(), new.id().clone());
        async move {
            let record = store.instance(&id).await.unwrap();
            (record, store.instance_values(&id).await.unwrap())
        }
    };
    let before = seen(&world).await;
    let lists = (world.events(new.id()).await, world.saved(new.id()).await);
    for (call, answer) in every_call(&world, &old.caller).await {
        assert_eq!(refusal(answer), Some(Refusal::RunSuperseded), "{call}");
    }
    assert_eq!(seen(&world).await, before);
    assert_eq!(
        (world.events(new.id()).await, world.saved(new.id()).await),
        lists
    );
    let exit = Change::Exit {
        run_number: old.run_number,
        exit: exit_code(0),
        our_fault: false,
    };
    assert_eq!(world.refused(new.id(), exit).await, Refusal::RunSuperseded);
    assert_eq!(
        new.take("go").await,
        Some(Some(Bytes::from_static(b"payload")))
    );
}

/// A run whose exit is recorded speaks no more, even if no other has come.
pub async fn a_run_that_has_left_speaks_no_more(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.exit(RunExit::lost()).await;
    for (call, answer) in every_call(&world, &run.caller).await {
        assert_eq!(refusal(answer), Some(Refusal::RunSuperseded), "{call}");
    }
    assert_eq!(world.store.run_of_token(run.token()).await.unwrap(), None);
}

/// A launched instance is not spoken for without its token.
pub async fn a_launched_instance_needs_its_token(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let anybody = Caller {
        fence: Fence::SelfRegistered,
        ..run.caller.clone()
    };
    for (call, answer) in every_call(&world, &anybody).await {
        assert_eq!(refusal(answer), Some(Refusal::TokenRequired), "{call}");
    }
    let stranger = Caller {
        fence: Fence::Run(RunToken::generate().hash()),
        ..run.caller.clone()
    };
    for (call, answer) in every_call(&world, &stranger).await {
        assert_eq!(refusal(answer), Some(Refusal::RunSuperseded), "{call}");
    }
    assert!(!world.state(run.id()).await.run.spoke);
}

/// The token of one instance does not speak for another.
pub async fn a_token_speaks_for_its_own_instance(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let one = world.launch("one").await;
    let other = world.launch("other").await;
    let crossed = Caller {
        instance_id: other.id().clone(),
        fence: one.caller.fence,
    };
    for (call, answer) in every_call(&world, &crossed).await {
        assert_eq!(refusal(answer), Some(Refusal::RunSuperseded), "{call}");
    }
}

/// Nobody speaks for an instance that does not exist; only a registration without a fence makes one.
pub async fn an_unknown_instance_has_no_run(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let caller = Caller {
        instance_id: instance("nobody"),
        fence: Fence::Run(RunToken::generate().hash()),
    };
    for (call, answer) in every_call(&world, &caller).await {
        assert_eq!(refusal(answer), Some(Refusal::InstanceUnknown), "{call}");
    }
    let caller = Caller {
        fence: Fence::SelfRegistered,
        ..caller
    };
    for (call, answer) in every_call(&world, &caller).await.split_off(1) {
        assert!(
            call == "register" || refusal(answer).is_none(),
            "{call}: it was made before"
        );
    }
    assert_eq!(
        world.state(&caller.instance_id).await.origin,
        Origin::SelfRegistered
    );
}

/// After its end an instance answers no call but further words, which change nothing and record nothing.
pub async fn late_words_change_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.complete(b"7").await;
    let (before, events) = (world.record(run.id()).await, world.events(run.id()).await);
    for (call, answer) in every_call(&world, &run.caller).await {
        match call {
            "word" | "until" => assert!(answer.is_ok(), "{call}"),
            _ => {
                let status = Status::Completed;
                let ended = Refusal::InstanceEnded { status };
                assert_eq!(refusal(answer), Some(ended), "{call}");
            }
        }
    }
    assert_eq!(world.record(run.id()).await, before);
    assert_eq!(world.events(run.id()).await, events);
    assert_eq!(
        world.values(run.id()).await.output,
        Some(Bytes::from_static(b"7"))
    );
    assert!(world.saved(run.id()).await.is_empty());
}

/// The same holds once the run has suspended itself.
pub async fn late_words_do_not_end_a_suspended_instance(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.say(Word::Suspended).await;
    let late = run.complete(b"7").await;
    assert!(!late.applied);
    assert_eq!(late.state.status, Status::Suspended);
    assert_eq!(world.history(run.id()).await, ["started", "suspended"]);
}

/// A registration is recorded once for each run, whatever is repeated.
pub async fn a_registration_is_recorded_once_for_each_run(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.register().await;
    let run = run.lose().await;
    run.register().await;
    let history = world.history(run.id()).await;
    assert_eq!(history, ["started", "runtara.interrupted", "started"]);
    let runs: Vec<_> = world
        .events(run.id())
        .await
        .iter()
        .map(|event| event.run_number)
        .collect();
    assert_eq!(runs, [RunNumber(1), RunNumber(1), RunNumber(2)]);
}

/// A registration names its own tenant, and only a checkpoint that was saved.
pub async fn a_registration_is_checked(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let register = |owner: &str, name: Option<&str>| {
        let (store, caller, owner) = (world.store.clone(), run.caller.clone(), tenant(owner));
        let name = name.map(checkpoint);
        async move { store.register_instance(&caller, &owner, name).await }
    };
    let own = world.tenant.as_str();
    assert_eq!(
        refusal(register("else", None).await),
        Some(Refusal::TenantMismatch)
    );
    let unknown = Refusal::CheckpointUnknown {
        id: checkpoint("step"),
    };
    assert_eq!(refusal(register(own, Some("step")).await), Some(unknown));
    assert!(!world.state(run.id()).await.run.spoke);
    assert!(world.events(run.id()).await.is_empty());
    run.save("step", b"s").await;
    let run = run.lose().await;
    let again = world
        .store
        .register_instance(&run.caller, &world.tenant, Some(checkpoint("step")));
    again.await.unwrap();
    let events = world.events(run.id()).await;
    let started = events.last().expect("a registration is recorded");
    assert_eq!(started.checkpoint_id, Some(checkpoint("step")));
}

/// Instances that we did not launch make themselves; each registration is a run of its own.
pub async fn an_instance_may_register_itself(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.self_registered("outside").await;
    let state = world.state(run.id()).await;
    assert_eq!(
        (state.origin, state.status),
        (Origin::SelfRegistered, Status::Running)
    );
    assert_eq!((state.run_number, state.image_id), (RunNumber(1), None));
    assert_eq!(state.started_at, Some(world.now()));
    run.save("step", b"s").await;
    run.register().await;
    let state = world.state(run.id()).await;
    assert_eq!(state.run_number, RunNumber(2));
    assert!(!state.run.stored_new);
    assert_eq!(
        run.save("step", b"").await.found.as_deref(),
        Some(&b"s"[..])
    );
    let record = world.record(run.id()).await;
    assert_eq!(record.image_name, None);
    assert_eq!(
        world.store.instance_input(run.id()).await.unwrap(),
        Some(None)
    );
    run.complete(b"1").await;
    let again = refusal(run.try_register().await);
    let status = Status::Completed;
    assert_eq!(again, Some(Refusal::InstanceEnded { status }));
}

/// A first registration that is refused makes nothing.
pub async fn a_refused_first_registration_makes_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let caller = Caller {
        instance_id: instance("outside"),
        fence: Fence::SelfRegistered,
    };
    let name = Some(checkpoint("step"));
    let answer = world
        .store
        .register_instance(&caller, &world.tenant, name)
        .await;
    assert!(matches!(
        refusal(answer),
        Some(Refusal::CheckpointUnknown { .. })
    ));
    assert_eq!(
        world.store.instance(&caller.instance_id).await.unwrap(),
        None
    );
}

/// An instance that registered itself has no image, so nobody can launch it again.
pub async fn a_self_registered_instance_cannot_be_resumed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.self_registered("outside").await;
    run.say(Word::Suspended).await;
    assert_eq!(
        world.refused(run.id(), Change::Resume).await,
        Refusal::NoImage
    );
    let cancelled = world.cancel(run.id()).await;
    assert_eq!(cancelled.state.status, Status::Cancelled);
    assert_eq!(
        world.refused(run.id(), Change::Resume).await,
        Refusal::NoImage
    );
}

/// A token names its instance and run, for as long as that run is the current one.
pub async fn a_token_names_its_run(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let owner = |run: &Run<'_>| TokenOwner {
        instance_id: run.id().clone(),
        tenant_id: world.tenant.clone(),
        run_number: run.run_number,
    };
    let found = world.store.run_of_token(run.token()).await.unwrap();
    assert_eq!(found, Some(owner(&run)));
    let unknown = world.store.run_of_token(RunToken::generate().hash()).await;
    assert_eq!(unknown.unwrap(), None);
    let next = run.lose().await;
    assert_eq!(world.store.run_of_token(run.token()).await.unwrap(), None);
    let found = world.store.run_of_token(next.token()).await.unwrap();
    assert_eq!(found, Some(owner(&next)));
}

/// A live run says what is wanted of it; the list of a node's live runs is cut by id.
pub async fn live_runs_say_what_is_wanted_of_them(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("b").await;
    run.register().await;
    let live = LiveRun {
        instance_id: run.id().clone(),
        run_number: RunNumber(1),
        token: run.token(),
        kind: RunnerKind::Native,
        node: world.node,
        status: Status::Running,
        leave_in_ms: None,
        asked_to_leave: false,
        slept_ms: 0,
        heartbeat_timeout_ms: None,
        silent_in_ms: None,
    };
    assert_eq!(
        world.store.live_run(run.id()).await.unwrap(),
        Some(live.clone())
    );
    let stop = Change::Stop {
        grace_ms: 5_000,
        reason: "enough".to_owned(),
    };
    world.change(run.id(), stop).await;
    world.advance(2_000).await;
    let leaving = LiveRun {
        leave_in_ms: Some(3_000),
        asked_to_leave: true,
        ..live
    };
    assert_eq!(world.store.live_run(run.id()).await.unwrap(), Some(leaving));
    world.advance(9_000).await;
    let over = world.store.live_run(run.id()).await.unwrap();
    assert_eq!(over.map(|live| live.leave_in_ms), Some(Some(0)));
    for id in ["c", "A", "ä", "a"] {
        world.launch(id).await;
    }
    let list = |after: Option<&str>, limit| {
        let (store, node, after) = (world.store.clone(), world.node, after.map(instance));
        async move {
            let live = store.live_runs(node, after.as_ref(), limit).await.unwrap();
            let ids = live.iter().map(|live| live.instance_id.as_str().to_owned());
            ids.collect::<Vec<_>>().join(" ")
        }
    };
    assert_eq!(list(None, 9).await, "A a b c ä");
    assert_eq!(list(None, 2).await, "A a");
    assert_eq!(list(Some("a"), 2).await, "b c");
    assert_eq!(list(Some("ä"), 2).await, "");
    run.exit(exit_code(0)).await;
    assert_eq!(list(None, 9).await, "A a c ä");
    assert_eq!(world.store.live_run(run.id()).await.unwrap(), None);
    let elsewhere = world
        .store
        .live_runs(runtara_domain::NodeId::generate(), None, 9)
        .await;
    assert!(elsewhere.unwrap().is_empty());
}

/// What all runs used is summed, and what the last of them wrote to its standard error is kept.
pub async fn usage_is_summed_over_runs(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut run = world.launch("order-1").await;
    for (memory, stderr) in [(700, "first"), (900, ""), (800, "third")] {
        let exit = RunExit {
            usage: runtara_domain::Usage {
                cpu_usec: 10,
                memory_peak_bytes: memory,
                running_ms: 5,
            },
            stderr: stderr.to_owned(),
            ..RunExit::lost()
        };
        run.exit(exit).await;
        let kept = world.values(run.id()).await.stderr;
        let expected = if stderr.is_empty() { "first" } else { stderr };
        assert_eq!(kept.as_deref(), Some(expected));
        run = world.claim_only(&run.id().clone()).await;
    }
    let usage = world.state(run.id()).await.usage;
    assert_eq!(
        (usage.cpu_usec, usage.memory_peak_bytes, usage.running_ms),
        (30, 900, 15)
    );
}

/// Milliseconds that an instance has been pending, running and suspended by now.
async fn stood(world: &World<'_>, id: &InstanceId) -> [u64; 3] {
    let record = world.record(id).await;
    let time = record.time_in_states;
    assert_eq!(time, record.state.time_in_states_by(world.now()), "{id}");
    [time.pending_ms, time.running_ms, time.suspended_ms]
}

/// The time in each status is counted to the millisecond, the current one included; what leaves the status leaves its time running.
pub async fn time_is_counted_where_it_is_spent(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let id = world.start("order-1").await.instance_id;
    assert_eq!(stood(&world, &id).await, [0, 0, 0]);
    world.advance(1_000).await;
    assert_eq!(stood(&world, &id).await, [1_000, 0, 0]);
    let run = world.claim_only(&id).await;
    assert_eq!(world.state(&id).await.status_since, world.now());
    world.advance(20).await;
    run.register().await;
    world.advance(300).await;
    run.save("step", b"s").await;
    run.event("progress", b"{}").await;
    assert_eq!(stood(&world, &id).await, [1_000, 320, 0]);
    world.advance(4_000).await;
    run.save("other step", b"s").await;
    assert_eq!(
        run.wait(sleep(Some("nap"), 60_000, b"s")).await,
        Waiting::Parked
    );
    world.advance(50_000).await;
    run.exit(exit_code(0)).await;
    assert_eq!(stood(&world, &id).await, [1_000, 4_320, 50_000]);
    // A sleeper that is paused is suspended all along.
    world.pause(&id).await;
    world.advance(600_000).await;
    world.resume(&id).await;
    world.advance(7).await;
    assert_eq!(stood(&world, &id).await, [1_000, 4_320, 650_007]);
    let run = world.claim_only(&id).await;
    world.advance(70).await;
    let run = run.lose().await;
    world.advance(7).await;
    run.complete(b"{}").await;
    let sums = [1_000, 4_397, 650_007];
    assert_eq!(stood(&world, &id).await, sums);
    let state = world.state(&id).await;
    assert_eq!(Some(state.status_since), state.finished_at);
    let whole_life = world.now().millis_since(state.created_at);
    assert_eq!(sums.iter().sum::<u64>(), whole_life);
    world.advance(80_000_000).await;
    run.exit(exit_code(0)).await;
    assert_eq!(stood(&world, &id).await, sums);
}

/// What had ended and is resumed goes on where it stood: for how long it had ended counts nowhere.
pub async fn the_time_after_an_end_is_not_counted(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.advance(5).await;
    let error = "no stock".to_owned();
    run.say(Word::Failed { error }).await;
    world.advance(40).await;
    run.exit(exit_code(1)).await;
    world.advance(1_000_000).await;
    assert_eq!(stood(&world, run.id()).await, [0, 5, 0]);
    world.resume(run.id()).await;
    world.advance(300).await;
    assert_eq!(stood(&world, run.id()).await, [0, 5, 300]);
    let run = world.claim_only(run.id()).await;
    world.advance(2_000).await;
    let stop = Change::Stop {
        grace_ms: 0,
        reason: String::new(),
    };
    world.change(run.id(), stop).await;
    run.exit(exit_code(1)).await;
    assert_eq!(world.state(run.id()).await.status, Status::Cancelled);
    world.advance(1_000_000).await;
    assert_eq!(stood(&world, run.id()).await, [0, 2_005, 300]);
}

/// An instance that registers itself is never pending for any time, and runs until it says otherwise.
pub async fn the_time_of_a_self_registered_instance_is_counted(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.self_registered("itself").await;
    world.advance(12).await;
    // Its process came anew: it runs all the same.
    run.register().await;
    world.advance(30).await;
    run.say(Word::Suspended).await;
    world.advance(500).await;
    run.register().await;
    world.advance(1).await;
    assert_eq!(stood(&world, run.id()).await, [0, 43, 500]);
}
