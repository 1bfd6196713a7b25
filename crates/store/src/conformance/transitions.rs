//! The whole table of an instance's life, through the store: every change, wherever an instance may stand.
//!
//! What must come of each is asked of [`runtara_domain::transition()`]; the store must answer so, and afterwards hold that state,
//! those events and that result, or, after a refusal, what it held before.

use bytes::Bytes;
use runtara_domain::{
    Call, Change, Due, EndedBy, ExitCause, Fence, InstanceId, InstanceState, NewEvent, Refusal,
    ResultChange, RunExit, RunNumber, SignalKind, Status, Transition, Word, transition,
};

use super::Harness;
use super::make::{
    checkpoint, exit_code, instance, refusal, save, signal, sleep, tenant, wait_for,
};
use super::world::{Run, World};
use crate::{InstanceValues, StoreResult};

/// Where an instance may stand.
#[derive(Debug, Clone, Copy)]
enum Situation {
    Due,
    DueLater,
    PausedBeforeItsFirstRun,
    Silent,
    SilentAndCancelled,
    Speaking,
    WithProgress,
    CancelWaits,
    CancelShown,
    PauseWaits,
    PauseShown,
    ResumeWaits,
    Stopping,
    HeldAlone,
    HeldBusy,
    Sleeping,
    SleepingAndLeft,
    WaitingForSignal,
    WaitingForSignalAndLeft,
    Paused,
    PausedAndLeft,
    Crashed,
    Interrupted,
    Completed,
    CompletedAndLeft,
    Failed,
    FailedAndLeft,
    TimedOut,
    Cancelled,
    ResumedAndNotLeft,
    ResumedAndLeft,
    Itself,
    ItselfSuspended,
    ItselfFailed,
}

fn cancel() -> Change {
    Change::Cancel { payload: None }
}

fn pause() -> Change {
    let payload = Some(Bytes::from_static(b"for maintenance"));
    Change::Pause { payload }
}

fn stop(grace_ms: u64, reason: &str) -> Change {
    Change::Stop {
        grace_ms,
        reason: reason.to_owned(),
    }
}

fn failed() -> Word {
    let error = "it did not work".to_owned();
    Word::Failed { error }
}

fn ended_by(by: EndedBy) -> RunExit {
    RunExit {
        cause: ExitCause::Signal(9),
        ended_by: Some(by),
        stderr: "out of luck".to_owned(),
        ..RunExit::lost()
    }
}

impl Situation {
    /// Brings an instance there.
    async fn bring<'w>(self, world: &'w World<'w>, id: &InstanceId) -> Option<Run<'w>> {
        use Situation as S;
        match self {
            S::Itself | S::ItselfSuspended | S::ItselfFailed => {
                let run = world.self_registered(id.as_str()).await;
                match self {
                    S::ItselfSuspended => drop(run.say(Word::Suspended).await),
                    S::ItselfFailed => drop(run.say(failed()).await),
                    _ => {}
                }
                return Some(run);
            }
            S::DueLater => {
                let mut new = world.new_instance(id.as_str());
                new.due = Due::After(3_600_000);
                world.start_as(new).await;
                return None;
            }
            S::Due | S::PausedBeforeItsFirstRun => {
                world.start(id.as_str()).await;
                if matches!(self, S::PausedBeforeItsFirstRun) {
                    world.change(id, pause()).await;
                }
                return None;
            }
            _ => {}
        }
        let run = world.launch(id.as_str()).await;
        if !matches!(self, S::Silent | S::SilentAndCancelled) {
            run.register().await;
        }
        self.go_on(world, &run).await;
        Some(run)
    }

    async fn go_on(self, world: &World<'_>, run: &Run<'_>) {
        use Situation as S;
        let id = run.id();
        match self {
            S::SilentAndCancelled | S::CancelWaits => drop(world.change(id, cancel()).await),
            S::WithProgress => {
                run.save("step", b"s").await;
                world.send(id, "kept", b"k").await;
                run.take("kept").await;
            }
            S::CancelShown => {
                world.change(id, cancel()).await;
                run.poll().await;
            }
            S::PauseWaits => drop(world.change(id, pause()).await),
            S::PauseShown | S::ResumeWaits => {
                world.change(id, pause()).await;
                run.poll().await;
                if matches!(self, S::ResumeWaits) {
                    world.resume(id).await;
                }
            }
            S::Stopping => drop(world.change(id, stop(9_000, "enough")).await),
            S::HeldAlone => drop(run.wait(sleep(Some("nap"), 5_000, b"s")).await),
            S::HeldBusy => {
                let mut busy = sleep(Some("nap"), 50_000, b"s");
                busy.call.park = false;
                run.wait(busy).await;
            }
            S::Sleeping | S::SleepingAndLeft => {
                run.wait(sleep(Some("nap"), 50_000, b"s")).await;
            }
            S::WaitingForSignal | S::WaitingForSignalAndLeft => {
                run.wait(wait_for("go", None)).await;
            }
            S::Paused | S::PausedAndLeft => drop(run.say(Word::Suspended).await),
            S::Crashed => drop(run.exit(exit_code(1)).await),
            S::Interrupted => drop(run.exit(RunExit::lost()).await),
            S::Completed | S::CompletedAndLeft => drop(run.complete(b"7").await),
            S::Failed | S::FailedAndLeft => drop(run.say(failed()).await),
            S::TimedOut => drop(run.exit(ended_by(EndedBy::Deadline)).await),
            S::Cancelled => drop(run.say(Word::Acknowledged(SignalKind::Cancel)).await),
            S::ResumedAndNotLeft | S::ResumedAndLeft => {
                run.say(failed()).await;
                world.resume(id).await;
            }
            _ => {}
        }
        if matches!(
            self,
            S::SleepingAndLeft
                | S::WaitingForSignalAndLeft
                | S::PausedAndLeft
                | S::CompletedAndLeft
                | S::FailedAndLeft
                | S::ResumedAndLeft
        ) {
            run.exit(exit_code(0)).await;
        }
    }
}

/// Something that is done to an instance.
#[derive(Debug, Clone)]
enum Act {
    Change(Change),
    Send(&'static str),
    Register(&'static str),
    Save(&'static str),
    Poll,
    Heartbeat,
    Say(Word, bool),
}

fn changes_from_outside() -> Vec<Act> {
    let told = Change::Cancel {
        payload: Some(Bytes::from_static(b"\xff\x00")),
    };
    let changes = [
        cancel(),
        told,
        pause(),
        Change::Resume,
        stop(2_000, "why"),
        stop(0, ""),
    ];
    let sent = [Act::Send("go"), Act::Send("other")];
    changes.into_iter().map(Act::Change).chain(sent).collect()
}

fn exits(run_number: RunNumber) -> Vec<Act> {
    let limits = RunExit {
        output: Some(Bytes::from_static(b"{}")),
        stderr: "x".repeat(20_000),
        usage: runtara_domain::Usage {
            cpu_usec: 7,
            memory_peak_bytes: 8,
            running_ms: 9,
        },
        ..exit_code(0)
    };
    let exits = [
        (limits, false),
        (exit_code(1), false),
        (exit_code(1), true),
        (ended_by(EndedBy::OutOfMemory), false),
        (ended_by(EndedBy::Deadline), false),
        (ended_by(EndedBy::Stop), false),
        (ended_by(EndedBy::Host), false),
        (RunExit::lost(), true),
        (RunExit::not_launched(true, "no such file"), false),
        (RunExit::not_launched(false, "no space"), false),
    ];
    let exit = |run_number, exit, our_fault| {
        Act::Change(Change::Exit {
            run_number,
            exit,
            our_fault,
        })
    };
    let mut acts: Vec<_> = exits
        .into_iter()
        .map(|(of, our_fault)| exit(run_number, of, our_fault))
        .collect();
    acts.push(exit(run_number.next(), exit_code(0), false));
    acts
}

fn calls(world: &World<'_>) -> Vec<Act> {
    let until = Word::SuspendedUntil {
        wake_at: world.now().plus_millis(70_000),
        checkpoint_id: checkpoint("until"),
        state: Bytes::from_static(b"u"),
    };
    let output = Some(Bytes::from_static(b"[1]"));
    let mut acts = vec![
        Act::Register("Tenant-ä"),
        Act::Register("else"),
        Act::Save("new"),
        Act::Poll,
        Act::Heartbeat,
        Act::Say(Word::Completed { output }, false),
        Act::Say(Word::Completed { output: None }, true),
        Act::Say(failed(), false),
        Act::Say(failed(), true),
        Act::Say(Word::Suspended, false),
        Act::Say(until, false),
    ];
    let kinds = SignalKind::ALL.iter();
    acts.extend(kinds.map(|kind| Act::Say(Word::Acknowledged(*kind), false)));
    acts
}

impl Act {
    /// What the domain says must come of it.
    fn expected(
        &self,
        world: &World<'_>,
        state: &InstanceState,
        fence: Option<Fence>,
    ) -> Result<Transition, Refusal> {
        let call = |call| Change::Call(fence.expect("who has no run does not call"), call);
        let change = match self.clone() {
            Self::Change(change) => change,
            Self::Send(name) => Change::SignalArrived {
                signal_id: signal(name),
            },
            Self::Register(owner) => call(Call::Register {
                tenant_id: tenant(owner),
                checkpoint_id: None,
            }),
            Self::Save(name) => call(Call::Saved {
                checkpoint_id: checkpoint(name),
            }),
            Self::Poll => call(Call::Seen {
                shows_signal: true,
                heartbeat: false,
            }),
            Self::Heartbeat => call(Call::Seen {
                shows_signal: false,
                heartbeat: true,
            }),
            Self::Say(word, our_fault) => call(Call::Say { word, our_fault }),
        };
        transition(state, &change, world.now())
    }

    /// Does it.
    async fn act(
        &self,
        world: &World<'_>,
        id: &InstanceId,
        run: Option<&Run<'_>>,
    ) -> StoreResult<Option<crate::Changed>> {
        let store = &world.store;
        let caller = run.map(|run| &run.caller);
        let caller = || caller.expect("who has no run does not call");
        match self.clone() {
            Self::Change(change) => store.change(id, change).await.map(Some),
            Self::Send(name) => store
                .send_signal(id, &signal(name), None)
                .await
                .map(|()| None),
            Self::Register(owner) => {
                let owner = tenant(owner);
                let answer = store.register_instance(caller(), &owner, None).await;
                answer.map(|()| None)
            }
            Self::Save(name) => {
                let answer = store.save_checkpoint(caller(), save(name, b"n"));
                answer.await.map(|_| None)
            }
            Self::Poll => store.poll_signal(caller()).await.map(|_| None),
            Self::Heartbeat => store.heartbeat(caller()).await.map(|()| None),
            Self::Say(word, our_fault) => store.say(caller(), word, our_fault).await.map(Some),
        }
    }
}

fn expected_values(before: InstanceValues, decided: &Transition) -> InstanceValues {
    let (output, error) = match decided.result.clone() {
        ResultChange::Keep => (before.output, before.error),
        ResultChange::Clear => (None, None),
        ResultChange::Set { output, error } => (output, error),
    };
    InstanceValues {
        output,
        error,
        stderr: decided.stderr.clone().or(before.stderr),
        ..before
    }
}

async fn check(world: &World<'_>, situation: Situation, act: &Act, id: &InstanceId) {
    let run = situation.bring(world, id).await;
    // So that the time in the status before is not nothing.
    world.advance(11).await;
    let what = format!("{situation:?}, {act:?}");
    let fence = run.as_ref().map(|run| run.caller.fence);
    let before = world.state(id).await;
    let values = world.values(id).await;
    let events = world.events(id).await;
    let expected = act.expected(world, &before, fence);
    let answer = act.act(world, id, run.as_ref()).await;
    let after = world.state(id).await;
    let added = world.events(id).await.split_off(events.len());
    match expected {
        Err(expected) => {
            assert_eq!(refusal(answer), Some(expected), "{what}");
            assert_eq!(after, before, "{what}");
            assert_eq!(world.values(id).await, values, "{what}");
            assert_eq!(added, [], "{what}");
        }
        Ok(decided) => {
            let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(after, decided.state, "{what}");
            if let Some(changed) = answer {
                assert_eq!(changed.state, decided.state, "{what}");
                assert_eq!(changed.applied, decided.applied, "{what}");
            }
            assert_eq!(
                world.values(id).await,
                expected_values(values, &decided),
                "{what}"
            );
            let added: Vec<_> = added.into_iter().map(as_new).collect();
            let expected: Vec<_> = decided.events.into_iter().map(without_keys).collect();
            assert_eq!(added, expected, "{what}");
        }
    }
    bury(world, id).await;
}

fn as_new(event: crate::StoredEvent) -> NewEvent {
    NewEvent {
        kind: event.kind,
        subtype: event.subtype,
        checkpoint_id: event.checkpoint_id,
        payload: event.payload,
        keys: runtara_domain::ScopeKeys::default(),
    }
}

fn without_keys(event: NewEvent) -> NewEvent {
    NewEvent {
        keys: runtara_domain::ScopeKeys::default(),
        ..event
    }
}

/// Ends an instance and removes it, so that it is never due again.
async fn bury(world: &World<'_>, id: &InstanceId) {
    if !world.state(id).await.status.is_end() {
        world.change(id, stop(0, "")).await;
    }
    if let Some(live) = world.store.live_run(id).await.unwrap() {
        let gone = Change::Exit {
            run_number: live.run_number,
            exit: RunExit::lost(),
            our_fault: true,
        };
        world.change(id, gone).await;
    }
    let purged = world.store.purge_instance(id).await.unwrap();
    assert_eq!(purged, crate::Purge::Purged, "{id}");
}

async fn check_all(harness: &dyn Harness, situations: &[Situation]) {
    let world = World::new(harness).await;
    let mut n = 0;
    for situation in situations {
        let has_run = !matches!(
            situation,
            Situation::Due | Situation::DueLater | Situation::PausedBeforeItsFirstRun
        );
        let mut acts = changes_from_outside();
        acts.extend(exits(RunNumber(1)));
        if has_run {
            acts.extend(calls(&world));
        }
        for act in &acts {
            n += 1;
            check(&world, *situation, act, &instance(&format!("i-{n}"))).await;
        }
    }
}

/// Before the first run.
pub async fn every_change_before_the_first_run(harness: &dyn Harness) {
    use Situation as S;
    check_all(harness, &[S::Due, S::DueLater, S::PausedBeforeItsFirstRun]).await;
}

/// While a run is at work.
pub async fn every_change_while_running(harness: &dyn Harness) {
    use Situation as S;
    check_all(
        harness,
        &[
            S::Silent,
            S::Speaking,
            S::WithProgress,
            S::HeldAlone,
            S::HeldBusy,
        ],
    )
    .await;
}

/// While a run is at work and a signal waits for it.
pub async fn every_change_while_a_signal_waits(harness: &dyn Harness) {
    use Situation as S;
    let waits = [
        S::SilentAndCancelled,
        S::CancelWaits,
        S::CancelShown,
        S::PauseWaits,
        S::PauseShown,
        S::ResumeWaits,
        S::Stopping,
    ];
    check_all(harness, &waits).await;
}

/// While suspended with a due time, or for a signal.
pub async fn every_change_while_asleep(harness: &dyn Harness) {
    use Situation as S;
    let asleep = [S::Sleeping, S::SleepingAndLeft, S::WaitingForSignal];
    check_all(harness, &asleep).await;
}

/// While suspended for other reasons.
pub async fn every_change_while_suspended(harness: &dyn Harness) {
    use Situation as S;
    let suspended = [
        S::WaitingForSignalAndLeft,
        S::Paused,
        S::PausedAndLeft,
        S::Crashed,
        S::Interrupted,
    ];
    check_all(harness, &suspended).await;
}

/// After the end.
pub async fn every_change_after_the_end(harness: &dyn Harness) {
    use Situation as S;
    let ended = [
        S::Completed,
        S::CompletedAndLeft,
        S::Failed,
        S::FailedAndLeft,
        S::TimedOut,
        S::Cancelled,
    ];
    check_all(harness, &ended).await;
}

/// After an end that was taken back.
pub async fn every_change_after_a_resume(harness: &dyn Harness) {
    check_all(
        harness,
        &[Situation::ResumedAndNotLeft, Situation::ResumedAndLeft],
    )
    .await;
}

/// Of an instance that registered itself.
pub async fn every_change_of_a_self_registered_instance(harness: &dyn Harness) {
    use Situation as S;
    check_all(harness, &[S::Itself, S::ItselfSuspended, S::ItselfFailed]).await;
}

/// An end stays what it is, whatever is asked, until an explicit resume of one that did not complete.
pub async fn an_end_is_final(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for (n, status) in [Status::Completed, Status::Failed, Status::Cancelled]
        .into_iter()
        .enumerate()
    {
        let run = world.launch(&format!("i-{n}")).await;
        run.register().await;
        match status {
            Status::Completed => run.complete(b"1").await,
            Status::Failed => run.say(failed()).await,
            _ => run.say(Word::Acknowledged(SignalKind::Cancel)).await,
        };
        let (before, events) = (world.record(run.id()).await, world.events(run.id()).await);
        assert_eq!(before.state.status, status);
        for change in [cancel(), pause(), stop(0, "")] {
            let refused = world.refused(run.id(), change).await;
            assert!(matches!(refused, Refusal::WrongState { status: at, .. } if at == status));
        }
        for word in [Word::Completed { output: None }, failed(), Word::Suspended] {
            assert!(!run.say(word).await.applied);
        }
        let call = world.store.heartbeat(&run.caller).await;
        assert_eq!(refusal(call), Some(Refusal::InstanceEnded { status }));
        let sent = world.store.send_signal(run.id(), &signal("s"), None).await;
        assert!(matches!(refusal(sent), Some(Refusal::WrongState { .. })));
        assert_eq!(world.record(run.id()).await, before);
        assert_eq!(world.events(run.id()).await, events);
        run.exit(exit_code(1)).await;
        assert_eq!(world.state(run.id()).await.status, status);
    }
}

/// Changes that calls and claims bring along have methods of their own.
pub async fn a_call_is_no_change_from_outside(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let before = world.record(run.id()).await;
    let heartbeat = Call::Seen {
        shows_signal: false,
        heartbeat: true,
    };
    for change in [
        Change::Call(run.caller.fence, heartbeat),
        Change::SignalArrived {
            signal_id: signal("s"),
        },
        Change::Claim {
            node: world.node,
            token: run.token(),
        },
    ] {
        assert!(world.store.change(run.id(), change).await.is_err());
    }
    assert_eq!(world.record(run.id()).await, before);
    assert!(world.events(run.id()).await.is_empty());
}
