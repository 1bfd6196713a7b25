//! What histories are made of.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use runtara_domain::SignalKind;

use super::names::CONTENTS;
use crate::{InstanceOrder, StepStatus};

/// One act. Numbers choose among a few names; see `play`.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Registers an image.
    RegisterImage {
        tenant: u8,
        name: u8,
        content: u8,
        kind: u8,
        /// How many registrations whose content arrived later are done before this one.
        overtaken: u8,
    },
    /// Deletes the n-th image.
    DeleteImage(u8),
    /// Removes images that nobody needs.
    RemoveUnneeded,
    /// Starts an instance.
    Start {
        instance: u8,
        tenant: u8,
        image: u8,
        input: u8,
        delay_ms: Option<u32>,
        attempts: Option<u8>,
        labels: u8,
    },
    /// Claims.
    Claim {
        node: u8,
        most: u8,
        kinds: u8,
        without: u8,
    },
    /// A run of an instance calls: its current run, or an earlier one, or somebody without a token.
    Call {
        instance: u8,
        run: Whose,
        call: Said,
    },
    /// Somebody asks.
    Ask { instance: u8, asked: Asked },
    /// A process is gone.
    Exit {
        instance: u8,
        run: Whose,
        how: u8,
        our_fault: bool,
    },
    /// Sends a custom signal.
    Send {
        instance: u8,
        signal: u8,
        payload: u8,
    },
    /// Removes an ended instance.
    Purge(u8),
    /// Folds events of an instance.
    Fold { instance: u8, limit: u8 },
    /// Removes instances whose time is over: those of one tenant, or of all others.
    RemoveEnded {
        tenant: u8,
        only: bool,
        ended_ms: u32,
    },
    /// Renews a lease.
    Renew { node: u8, lease_ms: u32 },
    /// Takes a node off the list.
    Release(u8),
    /// Takes the runs of dead nodes for lost.
    Expire(u8),
    /// Has a node drained, or go on.
    Drain { node: u8, after_ms: Option<u32> },
    /// Takes a dead node for one that does not come back.
    RemoveNode(u8),
    /// Lists nodes.
    Nodes,
    /// Nothing was heard of a run for so long.
    Silent {
        instance: u8,
        run: Whose,
        unheard_ms: u32,
    },
    /// Ends so many that are over.
    ExpireDue(u8),
    /// Ends so many that registered themselves and are silent.
    Lapse(u8),
    /// Moves the clock.
    Advance(u32),
    /// Brings an instance back to a run, wherever it stands; see [`expand`].
    Again(u8),
    /// Asks a question.
    Look(Question),
}

/// Which run speaks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// The one that was claimed last.
    Last,
    /// The one before it.
    Before,
    /// Nobody: without a token.
    Nobody,
}

/// What a run says.
#[derive(Debug, Clone)]
pub(super) enum Said {
    /// It is there.
    Register { tenant: u8, checkpoint: Option<u8> },
    /// It saves, or looks.
    Save {
        name: u8,
        state: u8,
        request: Option<u8>,
    },
    /// It polls.
    Poll,
    /// It takes a custom signal.
    Take { signal: u8, request: Option<u8> },
    /// It sleeps.
    Sleep {
        name: Option<u8>,
        millis: u32,
        state: u8,
        request: Option<u8>,
        park: bool,
    },
    /// It waits for a signal.
    Wait {
        signal: u8,
        timeout_ms: Option<u32>,
        request: Option<u8>,
        park: bool,
    },
    /// It goes on with a call that was held.
    GoOn { which: u8, park_now: bool },
    /// It records an event.
    Event {
        subtype: u8,
        payload: u8,
        request: Option<u8>,
    },
    /// It lives.
    Heartbeat,
    /// It tries again.
    Retry { name: u8, attempt: u8, error: bool },
    /// It says its last word.
    Word { word: Spoken, our_fault: bool },
}

/// A last word.
#[derive(Debug, Clone)]
pub(super) enum Spoken {
    /// With an output, or without.
    Completed(bool),
    /// Failed.
    Failed,
    /// Suspended.
    Suspended,
    /// Suspended until a time.
    Until { millis: u32, name: u8, state: u8 },
    /// A signal is acknowledged.
    Acknowledged(SignalKind),
}

/// What is asked of an instance.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    /// To end.
    Cancel,
    /// To wait.
    Pause,
    /// To go on.
    Resume,
    /// To end soon.
    Stop(u16),
}

/// A question, and from where its pages are walked by how many rows.
#[derive(Debug, Clone)]
pub(super) enum Question {
    /// Instances.
    Instances {
        filter: u16,
        order: InstanceOrder,
        size: u8,
        offset: Option<u8>,
    },
    /// Images.
    Images {
        filter: u8,
        size: u8,
        offset: Option<u8>,
    },
    /// Events of an instance.
    Events {
        instance: u8,
        filter: u16,
        ascending: bool,
        size: u8,
        offset: Option<u8>,
    },
    /// Checkpoints of an instance.
    Checkpoints {
        instance: u8,
        filter: u8,
        size: u8,
        offset: Option<u8>,
    },
    /// Steps of an instance.
    Steps {
        instance: u8,
        filter: u8,
        status: Option<StepStatus>,
        ascending: bool,
        size: u8,
        offset: Option<u8>,
    },
    /// A scope and those around it.
    Scopes { instance: u8, scope: u8 },
    /// Metrics.
    Metrics { tenant: u8, by_day: bool },
    /// Live runs of a node.
    Live(u8),
    /// When the next is due.
    NextDue(u8),
}

/// How many instances there are names for; the last two register themselves.
pub(super) const INSTANCES: u8 = 6;
/// Those that are started.
pub(super) const STARTED: u8 = 4;

/// What every history begins with: images, nodes, and instances that run.
pub(super) fn beginning() -> Vec<Act> {
    let image = |name, content| Act::RegisterImage {
        tenant: 0,
        name,
        content,
        kind: 0,
        overtaken: 0,
    };
    let node = |node| Act::Renew {
        node,
        lease_ms: 100_000,
    };
    let start = |instance| Act::Start {
        instance,
        tenant: 0,
        image: 0,
        input: 0,
        delay_ms: None,
        attempts: None,
        labels: instance,
    };
    let call = |instance, run, call| Act::Call {
        instance,
        run,
        call,
    };
    let register = || Said::Register {
        tenant: 0,
        checkpoint: None,
    };
    let mut acts = vec![image(0, 0), image(1, 1), node(0), node(1)];
    acts.extend((0..STARTED).map(start));
    acts.push(Act::Claim {
        node: 0,
        most: 3,
        kinds: 7,
        without: 0,
    });
    acts.extend((0..2).map(|instance| call(instance, Whose::Last, register())));
    acts.push(call(STARTED, Whose::Nobody, register()));
    acts
}

/// What an act consists of. An instance that ended, or whose run is over, would answer nothing but refusals from then on; so it is
/// brought back by all means there are, of which those that do not apply are refused.
pub(super) fn expand(act: Act) -> Vec<Act> {
    let Act::Again(instance) = act else {
        return vec![act];
    };
    let whose = Whose::Last;
    let mut acts = vec![
        Act::Exit {
            instance,
            run: whose,
            how: 9,
            our_fault: true,
        },
        Act::Ask {
            instance,
            asked: Asked::Resume,
        },
        Act::Purge(instance),
    ];
    if instance < STARTED {
        acts.push(Act::Start {
            instance,
            tenant: 0,
            image: 0,
            input: 0,
            delay_ms: None,
            attempts: Some(100),
            labels: 1,
        });
    } else {
        let call = Said::Register {
            tenant: 0,
            checkpoint: None,
        };
        acts.push(Act::Call {
            instance,
            run: whose,
            call,
        });
    }
    acts.push(Act::Advance(70_000));
    acts.push(Act::Claim {
        node: 0,
        most: 9,
        kinds: 7,
        without: 0,
    });
    acts
}

/// What every history ends with: whoever may run does, and meets what was kept for it.
pub(super) fn ending() -> Vec<Act> {
    let mut acts = vec![
        Act::Advance(1_000_000),
        Act::Nodes,
        Act::RemoveNode(1),
        Act::Expire(2),
        Act::Expire(0),
        Act::Expire(1),
    ];
    acts.push(Act::Claim {
        node: 1,
        most: 9,
        kinds: 7,
        without: 0,
    });
    for instance in 0..INSTANCES {
        let run = if instance < STARTED {
            Whose::Last
        } else {
            Whose::Nobody
        };
        let mut call = |call| {
            acts.push(Act::Call {
                instance,
                run,
                call,
            });
        };
        for signal in 0..3 {
            for request in [None, None, Some(0), Some(0)] {
                call(Said::Take { signal, request });
            }
        }
        for name in [None, Some(0), Some(1)] {
            call(Said::Sleep {
                name,
                millis: 5_000,
                state: 1,
                request: None,
                park: true,
            });
        }
        call(Said::Wait {
            signal: 0,
            timeout_ms: Some(5_000),
            request: None,
            park: true,
        });
        call(Said::Save {
            name: 0,
            state: 0,
            request: None,
        });
    }
    acts.push(Act::RemoveUnneeded);
    acts
}

/// Few of them have most of what happens, so that histories grow long.
fn instance() -> impl Strategy<Value = u8> {
    select(vec![0, 0, 0, 0, 1, 1, 2, 3, STARTED, STARTED, STARTED + 1])
}

/// A word of bits that choose what a list is filtered by: often none, seldom many.
fn filter() -> impl Strategy<Value = u16> {
    let few = (any::<u16>(), any::<u16>()).prop_map(|(one, other)| one & other);
    prop_oneof![2 => Just(0), 2 => few, 1 => any::<u16>()]
}

fn whose() -> impl Strategy<Value = Whose> {
    prop_oneof![20 => Just(Whose::Last), 2 => Just(Whose::Before), 1 => Just(Whose::Nobody)]
}

fn millis() -> impl Strategy<Value = u32> {
    select(vec![0, 1, 2_000, 5_000, 10_000, 10_001, 60_000, 3_700_000])
}

fn request() -> impl Strategy<Value = Option<u8>> {
    option::weighted(0.3, 0..3_u8)
}

fn spoken() -> impl Strategy<Value = Spoken> {
    prop_oneof![
        any::<bool>().prop_map(Spoken::Completed),
        Just(Spoken::Failed),
        Just(Spoken::Suspended),
        (millis(), 0..3_u8, 0..3_u8).prop_map(|(millis, name, state)| Spoken::Until {
            millis,
            name,
            state
        }),
        select(SignalKind::ALL.to_vec()).prop_map(Spoken::Acknowledged),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    // Steps that begin and end again and again, beside whatever else may be recorded.
    let steps = select(vec![(0, 0), (1, 0), (1, 0), (0, 1), (1, 1)]);
    let any_event = (0..5_u8, 0..10_u8);
    prop_oneof![
        3 => (0..2_u8, option::weighted(0.2, 0..3_u8))
            .prop_map(|(tenant, checkpoint)| Said::Register { tenant, checkpoint }),
        6 => (0..3_u8, 0..4_u8, request())
            .prop_map(|(name, state, request)| Said::Save { name, state, request }),
        2 => Just(Said::Poll),
        3 => (0..3_u8, request()).prop_map(|(signal, request)| Said::Take { signal, request }),
        4 => (option::of(0..2_u8), millis(), 0..3_u8, request(), any::<bool>())
            .prop_map(|(name, millis, state, request, park)| Said::Sleep { name, millis, state, request, park }),
        3 => (0..2_u8, option::of(millis()), request(), any::<bool>())
            .prop_map(|(signal, timeout_ms, request, park)| Said::Wait { signal, timeout_ms, request, park }),
        4 => (0..3_u8, any::<bool>()).prop_map(|(which, park_now)| Said::GoOn { which, park_now }),
        8 => (prop_oneof![steps, any_event], request())
            .prop_map(|((subtype, payload), request)| Said::Event { subtype, payload, request }),
        1 => Just(Said::Heartbeat),
        1 => (0..2_u8, 1..4_u8, any::<bool>())
            .prop_map(|(name, attempt, error)| Said::Retry { name, attempt, error }),
        3 => (spoken(), prop::bool::weighted(0.2)).prop_map(|(word, our_fault)| Said::Word { word, our_fault }),
    ]
}

fn question() -> impl Strategy<Value = Question> {
    use InstanceOrder as O;
    let orders = vec![
        O::CreatedDescending,
        O::CreatedAscending,
        O::FinishedDescending,
        O::FinishedAscending,
    ];
    let status = select(vec![
        StepStatus::Running,
        StepStatus::Completed,
        StepStatus::Failed,
    ]);
    let size = || (1..4_u8, option::weighted(0.3, 0..5_u8));
    prop_oneof![
        4 => (filter(), select(orders), size())
            .prop_map(|(filter, order, (size, offset))| Question::Instances { filter, order, size, offset }),
        1 => (any::<u8>(), size())
            .prop_map(|(filter, (size, offset))| Question::Images { filter, size, offset }),
        4 => (instance(), filter(), any::<bool>(), size()).prop_map(
            |(instance, filter, ascending, (size, offset))| Question::Events { instance, filter, ascending, size, offset }
        ),
        2 => (instance(), any::<u8>(), size()).prop_map(
            |(instance, filter, (size, offset))| Question::Checkpoints { instance, filter, size, offset }
        ),
        3 => (instance(), any::<u8>(), option::of(status), any::<bool>(), size()).prop_map(
            |(instance, filter, status, ascending, (size, offset))| Question::Steps {
                instance, filter, status, ascending, size, offset,
            }
        ),
        1 => (instance(), 0..3_u8).prop_map(|(instance, scope)| Question::Scopes { instance, scope }),
        1 => (0..2_u8, any::<bool>()).prop_map(|(tenant, by_day)| Question::Metrics { tenant, by_day }),
        1 => (0..2_u8).prop_map(Question::Live),
        1 => (0..8_u8).prop_map(Question::NextDue),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let asked = prop_oneof![
        1 => Just(Asked::Cancel),
        2 => Just(Asked::Pause),
        4 => Just(Asked::Resume),
        1 => (0..5_000_u16).prop_map(Asked::Stop),
    ];
    let started = || prop_oneof![9 => 0..STARTED, 1 => STARTED..INSTANCES];
    prop_oneof![
        1 => (0..2_u8, 0..3_u8, 0..CONTENTS, 0..3_u8, prop_oneof![2 => Just(0_u8), 1 => 1..4_u8])
            .prop_map(|(tenant, name, content, kind, overtaken)| Act::RegisterImage {
                tenant, name, content, kind, overtaken,
            }),
        1 => (0..6_u8).prop_map(Act::DeleteImage),
        1 => Just(Act::RemoveUnneeded),
        2 => (started(), 0..2_u8, 0..4_u8, 0..2_u8, option::of(millis()), option::of(1..4_u8), 0..4_u8).prop_map(
            |(instance, tenant, image, input, delay_ms, attempts, labels)| Act::Start {
                instance, tenant, image, input, delay_ms, attempts, labels,
            }
        ),
        5 => (0..2_u8, prop_oneof![1 => 0..3_u8, 3 => Just(4_u8)], prop_oneof![3 => Just(7_u8), 1 => 0..8_u8], prop_oneof![4 => Just(0_u8), 1 => 0..4_u8])
            .prop_map(|(node, most, kinds, without)| Act::Claim { node, most, kinds, without }),
        30 => (instance(), whose(), said()).prop_map(|(instance, run, call)| Act::Call { instance, run, call }),
        6 => (instance(), asked).prop_map(|(instance, asked)| Act::Ask { instance, asked }),
        7 => (started(), whose(), 0..10_u8, prop::bool::weighted(0.2))
            .prop_map(|(instance, run, how, our_fault)| Act::Exit { instance, run, how, our_fault }),
        4 => (instance(), 0..3_u8, 0..3_u8).prop_map(|(instance, signal, payload)| Act::Send { instance, signal, payload }),
        1 => (0..INSTANCES).prop_map(Act::Purge),
        2 => (instance(), 2..6_u8).prop_map(|(instance, limit)| Act::Fold { instance, limit }),
        1 => (0..2_u8, any::<bool>(), select(vec![0, 1_000, 60_000]))
            .prop_map(|(tenant, only, ended_ms)| Act::RemoveEnded { tenant, only, ended_ms }),
        1 => (0..2_u8, select(vec![0, 15_000, 1_000_000])).prop_map(|(node, lease_ms)| Act::Renew { node, lease_ms }),
        1 => (0..2_u8).prop_map(Act::Release),
        1 => (0..3_u8).prop_map(Act::Expire),
        1 => (0..2_u8, prop_oneof![3 => Just(None), 1 => millis().prop_map(Some)]).prop_map(|(node, after_ms)| Act::Drain { node, after_ms }),
        1 => prop_oneof![Just(Act::Nodes), (0..3_u8).prop_map(Act::RemoveNode)],
        2 => (instance(), whose(), select(vec![14_999, 15_000, u32::MAX]))
            .prop_map(|(instance, run, unheard_ms)| Act::Silent { instance, run, unheard_ms }),
        1 => (0..4_u8).prop_map(Act::ExpireDue),
        1 => (0..3_u8).prop_map(Act::Lapse),
        9 => instance().prop_map(Act::Again),
        5 => millis().prop_map(Act::Advance),
        5 => question().prop_map(Act::Look),
    ]
}

/// A random history. Opaque but for its words.
#[derive(Clone)]
pub struct History(pub(super) Vec<Act>);

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|act| writeln!(f, "  {act:?}"))
    }
}

/// Random histories.
pub fn histories() -> impl Strategy<Value = History> {
    vec(act(), 1..240).prop_map(History)
}
