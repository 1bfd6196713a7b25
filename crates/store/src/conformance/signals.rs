//! Signals: cancel, pause and resume, and custom ones, which are delivered to a run once and to a later run again.

use bytes::Bytes;
use runtara_domain::{Refusal, SaveCheckpoint, SignalKind, Status, Word};

use super::Harness;
use super::make::{exit_code, instance, refusal, save, signal, sleep};
use super::world::{Run, World};

async fn taken(run: &Run<'_>, name: &str) -> Option<String> {
    let payload = run.take(name).await?;
    let payload = payload.unwrap_or_default();
    Some(String::from_utf8(payload.to_vec()).expect("payloads of these cases are text"))
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A signal is shown until it is acknowledged, and a cancel hides a pause.
pub async fn a_signal_is_shown_until_it_is_acknowledged(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    assert_eq!(run.poll().await, None);
    let payload = Bytes::from_static(b"\xffbecause");
    let pause = runtara_domain::Change::Pause {
        payload: Some(payload.clone()),
    };
    world.change(run.id(), pause).await;
    for _ in 0..2 {
        let shown = run.poll().await.expect("the pause is shown");
        assert_eq!(
            (shown.kind, shown.payload),
            (SignalKind::Pause, Some(payload.clone()))
        );
    }
    world.cancel(run.id()).await;
    let shown = run
        .save("step", b"s")
        .await
        .signal
        .expect("the cancel is shown");
    assert_eq!((shown.kind, shown.payload), (SignalKind::Cancel, None));
    run.say(Word::Acknowledged(SignalKind::Pause)).await;
    let state = world.state(run.id()).await;
    assert_eq!(
        state.status,
        Status::Cancelled,
        "a cancel wins over the pause that was seen"
    );
}

/// A pause that nobody has seen is taken back; one that was seen is followed by a launch.
pub async fn a_resume_follows_a_pause(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    world.pause(run.id()).await;
    world.resume(run.id()).await;
    assert_eq!(run.poll().await, None);
    world.pause(run.id()).await;
    assert!(run.poll().await.is_some());
    world.resume(run.id()).await;
    assert_eq!(run.poll().await, None);
    run.say(Word::Acknowledged(SignalKind::Pause)).await;
    run.exit(exit_code(0)).await;
    world.claim_only(run.id()).await;
}

/// A custom signal is delivered once to a run.
pub async fn a_custom_signal_is_delivered_once_to_a_run(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    assert_eq!(run.take("go").await, None);
    world.send(run.id(), "go", b"one").await;
    assert_eq!(run.take("other").await, None);
    assert_eq!(taken(&run, "go").await, text("one"));
    assert_eq!(taken(&run, "go").await, None);
    let id = signal("bare");
    world.store.send_signal(run.id(), &id, None).await.unwrap();
    assert_eq!(
        run.take("bare").await,
        Some(None),
        "no payload is not an empty one"
    );
    world.send(run.id(), "empty", b"").await;
    assert_eq!(run.take("empty").await, Some(Some(Bytes::new())));
}

/// A signal waits for a run that is yet to come.
pub async fn a_custom_signal_waits_for_the_first_run(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let id = world.start("order-1").await.instance_id;
    world.send(&id, "go", b"early").await;
    let run = world.claim_only(&id).await;
    assert_eq!(taken(&run, "go").await, text("early"));
}

/// A later run is shown again what an earlier one has read without saving anything new since.
pub async fn a_later_run_is_shown_a_signal_again(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"one").await;
    assert_eq!(taken(&run, "go").await, text("one"));
    let run = run.lose().await;
    assert_eq!(taken(&run, "go").await, text("one"));
    assert_eq!(taken(&run, "go").await, None);
    run.save("known", b"s").await;
    let run = run.lose().await;
    assert_eq!(
        taken(&run, "go").await,
        None,
        "a run saved what it did with it"
    );
}

/// What a run saved before it read a signal does not confirm it; a mere look neither.
pub async fn only_what_is_saved_after_confirms(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"one").await;
    run.save("before", b"s").await;
    assert_eq!(taken(&run, "go").await, text("one"));
    run.save("before", b"s").await;
    run.save("other", b"").await;
    run.heartbeat().await;
    let run = run.lose().await;
    assert_eq!(taken(&run, "go").await, text("one"));
    run.wait(sleep(Some("nap"), 1_000, b"s")).await;
    let run = run.lose().await;
    assert_eq!(taken(&run, "go").await, None, "a new sleep is progress too");
}

/// A signal that was not read is replaced by the next of its id; one that the run has read is not.
pub async fn a_newer_signal_replaces_what_was_not_read(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"one").await;
    world.send(run.id(), "go", b"two").await;
    assert_eq!(taken(&run, "go").await, text("two"));
    world.send(run.id(), "go", b"three").await;
    assert_eq!(taken(&run, "go").await, text("three"));
    assert_eq!(taken(&run, "go").await, None);
    let run = run.lose().await;
    assert_eq!(
        taken(&run, "go").await,
        text("two"),
        "in the order in which they came"
    );
    assert_eq!(taken(&run, "go").await, text("three"));
    let run = run.lose().await;
    world.send(run.id(), "go", b"four").await;
    assert_eq!(
        taken(&run, "go").await,
        text("four"),
        "what only an earlier run read is replaced"
    );
    assert_eq!(taken(&run, "go").await, None);
}

/// A save takes the custom signal of its name, and a mere look at a free name leaves it.
pub async fn a_save_takes_the_signal_of_its_name(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "step", b"one").await;
    assert_eq!(
        run.save("step", b"").await.custom_signal,
        None,
        "a look at a free name"
    );
    let one = Some(Some(Bytes::from_static(b"one")));
    assert_eq!(run.save("step", b"s").await.custom_signal, one, "the save");
    assert_eq!(
        run.save("step", b"s").await.custom_signal,
        None,
        "it was delivered"
    );
    world.send(run.id(), "step", b"two").await;
    let two = Some(Some(Bytes::from_static(b"two")));
    assert_eq!(
        run.save("step", b"").await.custom_signal,
        two,
        "a look at what is saved"
    );
    let run = run.lose().await;
    let replayed = run.save("step", b"s").await.custom_signal;
    assert_eq!(replayed, one, "read with a save, and nothing saved since");
    assert_eq!(run.save("step", b"s").await.custom_signal, two);
    run.save("next", b"s").await;
    let run = run.lose().await;
    assert_eq!(run.save("step", b"s").await.custom_signal, None);
}

/// A save whose answer was lost is given its signal again.
pub async fn a_repeated_save_is_given_its_signal_again(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "step", b"one").await;
    let request = |id: &str| SaveCheckpoint {
        request_id: Some(id.to_owned()),
        ..save("step", b"s")
    };
    let one = Some(Some(Bytes::from_static(b"one")));
    for _ in 0..3 {
        let answer = run.save_as(request("r-1")).await;
        assert_eq!((answer.found, answer.custom_signal), (None, one.clone()));
    }
    world.send(run.id(), "step", b"two").await;
    assert_eq!(
        run.save_as(request("r-1")).await.custom_signal,
        one,
        "its own, not the next"
    );
    let two = Some(Some(Bytes::from_static(b"two")));
    let other = run.save_as(request("r-2")).await;
    assert_eq!(
        (other.found.as_deref(), other.custom_signal),
        (Some(&b"s"[..]), two)
    );
    assert_eq!(run.save_as(request("r-3")).await.custom_signal, None);
}

/// A call that takes a signal and whose answer was lost is given it again, and no other call is.
pub async fn a_repeated_take_is_given_its_signal_again(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"one").await;
    let one = Some(Some(Bytes::from_static(b"one")));
    for _ in 0..3 {
        assert_eq!(run.take_as("go", Some("r-1")).await, one);
    }
    assert_eq!(run.take_as("go", Some("r-2")).await, None);
    assert_eq!(run.take("go").await, None);
    world.send(run.id(), "go", b"two").await;
    assert_eq!(
        run.take_as("go", Some("r-1")).await,
        one,
        "its own, not the next"
    );
    let two = Some(Some(Bytes::from_static(b"two")));
    assert_eq!(run.take_as("go", Some("r-2")).await, two);
    let run = run.lose().await;
    assert_eq!(
        run.take_as("go", Some("r-2")).await,
        one,
        "a later run begins anew"
    );
}

/// Nothing is kept for an instance that has ended, and its end removes what was kept.
pub async fn an_ended_instance_has_no_signals(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"one").await;
    world.send(run.id(), "read", b"two").await;
    run.take("read").await;
    run.say(Word::Failed { error: "no".into() }).await;
    run.exit(exit_code(1)).await;
    let late = world.store.send_signal(run.id(), &signal("go"), None).await;
    let expected = Refusal::WrongState {
        operation: "send a custom signal to",
        status: Status::Failed,
    };
    assert_eq!(refusal(late), Some(expected));
    world.resume(run.id()).await;
    let run = world.claim_only(run.id()).await;
    assert_eq!((run.take("go").await, run.take("read").await), (None, None));
}

/// Signals of one instance are not seen by another.
pub async fn signals_are_kept_apart(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let one = world.launch("one").await;
    let other = world.launch("other").await;
    world.send(one.id(), "go", b"for one").await;
    assert_eq!(other.take("go").await, None);
    assert_eq!(taken(&one, "go").await, text("for one"));
    let nobody = world
        .store
        .send_signal(&instance("nobody"), &signal("go"), None)
        .await;
    assert_eq!(refusal(nobody), Some(Refusal::InstanceUnknown));
}

/// Of many that ask for one signal at once, one is given it.
pub async fn a_signal_is_taken_once_by_many(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for round in 0..20 {
        world
            .send(run.id(), "go", format!("{round}").as_bytes())
            .await;
        let takers: Vec<_> = (0..6)
            .map(|_| {
                let (store, caller) = (world.store.clone(), run.caller.clone());
                tokio::spawn(async move { store.take_signal(&caller, &signal("go"), None).await })
            })
            .collect();
        let mut payloads = Vec::new();
        for taker in takers {
            let taken = taker
                .await
                .expect("no taker panics")
                .expect("it is answered");
            payloads.extend(taken.flatten());
        }
        assert_eq!(payloads, [Bytes::from(round.to_string())]);
    }
}
