//! Changes, by name.

use bytes::Bytes;
use runtara_domain::{
    Call, Change, CheckpointId, EndedBy, ExitCause, Fence, Hold, InstanceState, NodeId, Origin,
    Reason, RunExit, SignalId, SignalKind, TenantId, Timestamp, TokenHash, Usage, Word,
};
use uuid::Uuid;

/// All that can happen to an instance, without the values that make no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Happening {
    Claim,
    Register,
    RegisterForAnother,
    Save,
    Look,
    Poll,
    Heartbeat,
    ReadSignal,
    HoldAlone,
    HoldBusy,
    HoldWithoutEnd,
    HoldKnown,
    EndHold,
    Sleep,
    SleepKnown,
    WaitForSignal,
    WaitForSignalWithEnd,
    Complete,
    Fail,
    FailByOurFault,
    Suspend,
    SuspendUntil,
    SuspendUntilWithoutState,
    AckCancel,
    AckPause,
    AckResume,
    Cancel,
    Pause,
    Resume,
    Stop,
    Signal,
    OtherSignal,
    Silence,
    SilenceUnheard,
    SilenceOfAnother,
    Lapse,
    Expire,
    ExitZero,
    ExitOne,
    ExitOneByOurFault,
    ExitKilled,
    ExitOutOfMemory,
    ExitTimeout,
    ExitStopped,
    ExitByHost,
    ExitLost,
    NotLaunched,
    NotLaunchable,
    ExitOfAnother,
}

impl Happening {
    pub(crate) const ALL: [Self; 49] = {
        use Happening as H;
        [
            H::Claim,
            H::Register,
            H::RegisterForAnother,
            H::Save,
            H::Look,
            H::Poll,
            H::Heartbeat,
            H::ReadSignal,
            H::HoldAlone,
            H::HoldBusy,
            H::HoldWithoutEnd,
            H::HoldKnown,
            H::EndHold,
            H::Sleep,
            H::SleepKnown,
            H::WaitForSignal,
            H::WaitForSignalWithEnd,
            H::Complete,
            H::Fail,
            H::FailByOurFault,
            H::Suspend,
            H::SuspendUntil,
            H::SuspendUntilWithoutState,
            H::AckCancel,
            H::AckPause,
            H::AckResume,
            H::Cancel,
            H::Pause,
            H::Resume,
            H::Stop,
            H::Signal,
            H::OtherSignal,
            H::Silence,
            H::SilenceUnheard,
            H::SilenceOfAnother,
            H::Lapse,
            H::Expire,
            H::ExitZero,
            H::ExitOne,
            H::ExitOneByOurFault,
            H::ExitKilled,
            H::ExitOutOfMemory,
            H::ExitTimeout,
            H::ExitStopped,
            H::ExitByHost,
            H::ExitLost,
            H::NotLaunched,
            H::NotLaunchable,
            H::ExitOfAnother,
        ]
    };

    /// When it happens in the table: all of it now, but what comes of long silence or a long life an hour later.
    pub(crate) fn moment(self, now: Timestamp) -> Timestamp {
        use Happening as H;
        match self {
            H::Silence | H::SilenceUnheard | H::SilenceOfAnother | H::Lapse | H::Expire => {
                now.plus_millis(3_600_000)
            }
            _ => now,
        }
    }

    pub(crate) fn is_exit(self) -> bool {
        self >= Self::ExitZero
    }

    /// What a call is, if this is one.
    fn call(self, now: Timestamp) -> Option<Call> {
        use Happening as H;
        let hold = |until: Option<u64>, park, new| Call::Hold {
            hold: Some(Hold {
                until: until.map(|millis| now.plus_millis(millis)),
                park,
            }),
            new,
            checkpoint_id: new.then(|| checkpoint("nap")),
        };
        let park = |reason, until: Option<u64>, waits: bool, new| Call::Park {
            reason,
            until: until.map(|millis| now.plus_millis(millis)),
            waiting_for: waits.then(|| signal("go")),
            new,
            checkpoint_id: new.then(|| checkpoint("nap")),
        };
        let seen = |shows_signal, heartbeat| Call::Seen {
            shows_signal,
            heartbeat,
        };
        Some(match self {
            H::Register => Call::Register {
                tenant_id: tenant("t"),
                checkpoint_id: None,
            },
            H::RegisterForAnother => Call::Register {
                tenant_id: tenant("other"),
                checkpoint_id: None,
            },
            H::Save => Call::Saved {
                checkpoint_id: checkpoint("step"),
            },
            H::Look => seen(false, false),
            H::Poll => seen(true, false),
            H::Heartbeat => seen(false, true),
            H::ReadSignal => seen(false, false),
            H::HoldAlone => hold(Some(5_000), true, true),
            H::HoldBusy => hold(Some(90_000), false, true),
            H::HoldWithoutEnd => hold(None, true, false),
            H::HoldKnown => hold(Some(5_000), true, false),
            H::EndHold => Call::EndHold,
            H::Sleep => park(Reason::Sleeping, Some(60_000), false, true),
            H::SleepKnown => park(Reason::Sleeping, Some(60_000), false, false),
            H::WaitForSignal => park(Reason::WaitingSignal, None, true, false),
            H::WaitForSignalWithEnd => park(Reason::WaitingSignal, Some(60_000), true, false),
            _ => Call::Say {
                word: self.word(now)?,
                our_fault: self == H::FailByOurFault,
            },
        })
    }

    fn word(self, now: Timestamp) -> Option<Word> {
        use Happening as H;
        let until = |state| Word::SuspendedUntil {
            wake_at: now.plus_millis(60_000),
            checkpoint_id: checkpoint("until"),
            state: Bytes::from_static(state),
        };
        Some(match self {
            H::Complete => Word::Completed {
                output: Some(Bytes::from_static(b"7")),
            },
            H::Fail | H::FailByOurFault => Word::Failed {
                error: "it did not work".to_owned(),
            },
            H::Suspend => Word::Suspended,
            H::SuspendUntil => until(b"s"),
            H::SuspendUntilWithoutState => until(b""),
            H::AckCancel => Word::Acknowledged(SignalKind::Cancel),
            H::AckPause => Word::Acknowledged(SignalKind::Pause),
            H::AckResume => Word::Acknowledged(SignalKind::Resume),
            _ => return None,
        })
    }

    fn exit(self) -> Option<(RunExit, bool)> {
        use Happening as H;
        let with = |cause, ended_by| RunExit {
            cause,
            ended_by,
            usage: Usage {
                cpu_usec: 1,
                memory_peak_bytes: 2,
                running_ms: 3,
            },
            ..RunExit::lost()
        };
        let killed = |by| with(ExitCause::Signal(9), by);
        let exit = match self {
            H::ExitZero | H::ExitOfAnother => with(ExitCause::Code(0), None),
            H::ExitOne | H::ExitOneByOurFault => with(ExitCause::Code(1), None),
            H::ExitKilled => killed(None),
            H::ExitOutOfMemory => killed(Some(EndedBy::OutOfMemory)),
            H::ExitTimeout => killed(Some(EndedBy::Deadline)),
            H::ExitStopped => killed(Some(EndedBy::Stop)),
            H::ExitByHost => killed(Some(EndedBy::Host)),
            H::ExitLost => RunExit::lost(),
            H::NotLaunched => RunExit::not_launched(false, "no space"),
            H::NotLaunchable => RunExit::not_launched(true, "no such file"),
            _ => return None,
        };
        Some((exit, matches!(self, H::ExitOneByOurFault | H::ExitLost)))
    }

    /// The change itself, for an instance in this state.
    pub(crate) fn change(self, state: &InstanceState, now: Timestamp) -> Change {
        use Happening as H;
        if let Some(call) = self.call(now) {
            let fence = match state.origin {
                // Whoever calls after its exit shows a token that is not known any more.
                Origin::Launched => Fence::Run(state.run.token.unwrap_or(TokenHash([9; 32]))),
                Origin::SelfRegistered => Fence::SelfRegistered,
            };
            return Change::Call(fence, call);
        }
        if let Some((exit, our_fault)) = self.exit() {
            let run_number = match self {
                H::ExitOfAnother => state.run_number.next(),
                _ => state.run_number,
            };
            return Change::Exit {
                run_number,
                exit,
                our_fault,
            };
        }
        match self {
            H::Claim => Change::Claim {
                node: NodeId(Uuid::from_u128(1)),
                token: TokenHash([1; 32]),
            },
            H::Cancel => Change::Cancel { payload: None },
            H::Pause => Change::Pause { payload: None },
            H::Resume => Change::Resume,
            H::Stop => Change::Stop {
                grace_ms: 3_000,
                reason: "enough".to_owned(),
            },
            H::Signal => Change::SignalArrived {
                signal_id: signal("go"),
            },
            H::OtherSignal => Change::SignalArrived {
                signal_id: signal("other"),
            },
            H::Silence => Change::Silent {
                run_number: state.run_number,
                unheard_ms: u64::MAX,
            },
            H::SilenceUnheard => Change::Silent {
                run_number: state.run_number,
                unheard_ms: 14_999,
            },
            H::SilenceOfAnother => Change::Silent {
                run_number: state.run_number.next(),
                unheard_ms: u64::MAX,
            },
            H::Lapse => Change::Lapse { timeout_ms: 10_000 },
            H::Expire => Change::Expire,
            _ => unreachable!("calls and exits were made above"),
        }
    }
}

pub(crate) fn tenant(text: &str) -> TenantId {
    TenantId::new(text).unwrap()
}

fn checkpoint(text: &str) -> CheckpointId {
    CheckpointId::new(text).unwrap()
}

fn signal(text: &str) -> SignalId {
    SignalId::new(text).unwrap()
}
