//! Group commit: callers that meet share one transaction and one flush of the log.
//!
//! A caller puts its row into a queue and waits. A committer takes what is there, writes it as one statement, and answers each caller
//! once the statement is committed. What comes meanwhile gathers, and is sent off as soon as the statement before it is answered, even
//! before the callers of that one are told: the database works on while they ask for the next. So statements become as large as the
//! load makes them, and a row that finds nothing under way is written at once. A statement that takes long, because a row of it is locked
//! or the disk stalls, does not hold up the rest: another may go beside it, as it may beside one when there are rows enough for two.
//!
//! A caller may be dropped at any time; its row is then written all the same, as if its answer had been lost.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use runtara_domain::InstanceId;
use runtara_failpoints::{Point, pass};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::{Answer, Fault, Kind, kind, may_repeat};

/// Most rows of one statement.
const BATCH_ROWS: usize = 256;
/// Most bytes of one statement.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Larger rows do not go through a queue at all.
pub(super) const ROW_BYTES: usize = 1024 * 1024;
/// Most rows that wait.
const QUEUE_ROWS: usize = 4_096;
/// Most bytes that wait or are being written, in KiB.
const QUEUE_KIB: usize = 64 * 1024;
/// A statement that takes longer than this does not hold up others.
const STALLED: Duration = Duration::from_millis(3);

/// What a queue of rows is written with.
pub(super) trait Batch: Send + Sync + 'static {
    /// What a caller wants written.
    type Row: Send + Sync + 'static;
    /// What it is told.
    type Told: Send + 'static;

    /// The instance of a row. A batch has one row of each at most.
    fn instance(row: &Self::Row) -> &InstanceId;

    /// About how large a row is.
    fn bytes(row: &Self::Row) -> usize;

    /// Writes rows of different instances, in the order of their ids, as one statement. Answers in the same order; `None` for a row
    /// that was not written because it is not of the ordinary kind. Writing a row twice must do no harm.
    fn commit(
        &self,
        rows: &[Self::Row],
    ) -> impl Future<Output = Answer<Vec<Option<Self::Told>>>> + Send;
}

struct Waiting<B: Batch> {
    row: B::Row,
    caller: Caller<B>,
}

/// Who waits for the answer to a row, and the room that the row takes up meanwhile.
struct Caller<B: Batch> {
    told: oneshot::Sender<Answer<Option<B::Told>>>,
    _room: OwnedSemaphorePermit,
}

/// A queue with its committer.
pub(super) struct Lane<B: Batch> {
    sender: mpsc::Sender<Waiting<B>>,
    room: Arc<Semaphore>,
    patience: Duration,
    closing: watch::Sender<bool>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl<B: Batch> Lane<B> {
    /// Starts a queue with at most so many statements at once. A row waits for room in it for as long as a connection may be waited
    /// for.
    pub(super) fn start(batch: B, statements: usize, patience: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_ROWS);
        let closing = watch::Sender::new(false);
        let committer = Committer {
            batch: Arc::new(batch),
            receiver,
            gathered: Gathered::default(),
            under_way: FuturesUnordered::new(),
            most: statements,
            last_began: Instant::now(),
        };
        Self {
            sender,
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            patience,
            committer: Mutex::new(Some(tokio::spawn(committer.serve(closing.subscribe())))),
            closing,
        }
    }

    /// Has a row written with others. `None` if it is not of the ordinary kind: nothing was written then.
    pub(super) async fn ask(&self, row: B::Row) -> Answer<Option<B::Told>> {
        let kib = u32::try_from(1 + B::bytes(&row) / 1024).unwrap_or(u32::MAX);
        let (told, answer) = oneshot::channel();
        let put = async {
            let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
            let caller = Caller {
                told,
                _room: room.map_err(|_| Fault::Overloaded)?,
            };
            let sent = self.sender.send(Waiting { row, caller }).await;
            sent.map_err(|_| Fault::Overloaded)
        };
        timeout(self.patience, put)
            .await
            .map_err(|_| Fault::Overloaded)??;
        answer.await.unwrap_or(Err(Fault::Overloaded))
    }

    /// Takes nothing more, and waits until everything that was taken is answered.
    pub(super) async fn close(&self) {
        self.closing.send_replace(true);
        if let Some(committer) = self.committer.lock().await.take()
            && let Err(error) = committer.await
        {
            tracing::error!(%error, "a committer ended before its queue was empty");
        }
    }
}

/// Rows that are to be written as one statement.
struct Gathered<B: Batch> {
    rows: Vec<Waiting<B>>,
    bytes: usize,
    /// Hashes of the instances that have a row here. Two with the same hash are taken for one, which only puts a row off.
    met: Vec<u64>,
    /// Rows for a later statement: their instance has one in this already, or there is no room.
    put_off: VecDeque<Waiting<B>>,
    hashes: RandomState,
}

impl<B: Batch> Default for Gathered<B> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            bytes: 0,
            met: Vec::new(),
            put_off: VecDeque::new(),
            hashes: RandomState::new(),
        }
    }
}

impl<B: Batch> Gathered<B> {
    /// Whether no more rows should be brought.
    fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS
            || self.bytes >= BATCH_BYTES
            || self.put_off.len() >= BATCH_ROWS
    }

    /// Takes a row in, or puts it off.
    fn take_in(&mut self, waiting: Waiting<B>) {
        let bytes = B::bytes(&waiting.row);
        let hash = self.hashes.hash_one(B::instance(&waiting.row));
        let fits = self.rows.is_empty()
            || (self.rows.len() < BATCH_ROWS && self.bytes + bytes <= BATCH_BYTES);
        if !fits || self.met.contains(&hash) {
            self.put_off.push_back(waiting);
            return;
        }
        self.met.push(hash);
        self.bytes += bytes;
        self.rows.push(waiting);
    }

    /// Gives the rows of one statement in the order of their instances, and takes those in that were put off.
    fn take_out(&mut self) -> Vec<Waiting<B>> {
        let mut rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.met.clear();
        for waiting in std::mem::take(&mut self.put_off) {
            self.take_in(waiting);
        }
        rows.sort_by(|one, other| B::instance(&one.row).cmp(B::instance(&other.row)));
        rows
    }
}

/// What the callers of a statement are to be told.
type Answers<B> = Vec<(Caller<B>, Answer<Option<<B as Batch>::Told>>)>;

/// A statement under way.
type Statement<B> = Pin<Box<dyn Future<Output = Answers<B>> + Send>>;

/// Writes what comes out of a queue.
struct Committer<B: Batch> {
    batch: Arc<B>,
    receiver: mpsc::Receiver<Waiting<B>>,
    gathered: Gathered<B>,
    under_way: FuturesUnordered<Statement<B>>,
    /// Most statements at once.
    most: usize,
    /// When the last statement was sent off.
    last_began: Instant,
}

impl<B: Batch> Committer<B> {
    async fn serve(mut self, mut closing: watch::Receiver<bool>) {
        let mut is_open = true;
        loop {
            let mut answers = Answers::<B>::new();
            let takes = is_open && !self.gathered.is_full();
            let may_stall =
                !self.gathered.rows.is_empty() && (1..self.most).contains(&self.under_way.len());
            tokio::select! {
                biased;
                Some(written) = self.under_way.next() => answers = written,
                next = self.receiver.recv(), if takes => match next {
                    Some(waiting) => self.gathered.take_in(waiting),
                    None => is_open = false,
                },
                _ = closing.wait_for(|closing| *closing), if !self.receiver.is_closed() => {
                    self.receiver.close();
                }
                () = sleep_until(self.last_began + STALLED), if may_stall => {}
                else => return,
            }
            while is_open && !self.gathered.is_full() {
                let Ok(waiting) = self.receiver.try_recv() else {
                    break;
                };
                self.gathered.take_in(waiting);
            }
            while let Some(written) = self.begin().await {
                answers.extend(written);
            }
            // Only now: the next statement is on its way.
            for (caller, answer) in answers {
                // A caller that is gone will ask again, or not care.
                let _gone = caller.told.send(answer);
            }
        }
    }

    /// Sends the next statement off, if there is one and its time has come. Gives the answers of one that is answered already; then
    /// there may be another to send.
    async fn begin(&mut self) -> Option<Answers<B>> {
        let is_time = match self.under_way.len() {
            0 => true,
            some if some < self.most => {
                self.gathered.is_full() || self.last_began.elapsed() >= STALLED
            }
            _ => false,
        };
        if self.gathered.rows.is_empty() || !is_time {
            return None;
        }
        self.last_began = Instant::now();
        let rows = self.gathered.take_out();
        let written = write(Arc::clone(&self.batch), rows);
        self.under_way.push(Box::pin(written));
        let sent = poll_fn(|context| Poll::Ready(self.under_way.poll_next_unpin(context)));
        match sent.await {
            Poll::Ready(answers) => answers,
            Poll::Pending => None,
        }
    }
}

async fn write<B: Batch>(batch: Arc<B>, waiting: Vec<Waiting<B>>) -> Answers<B> {
    let (rows, callers): (Vec<_>, Vec<_>) = waiting
        .into_iter()
        .map(|waiting| (waiting.row, waiting.caller))
        .unzip();
    let answers = write_all(batch.as_ref(), &rows).await;
    callers.into_iter().zip(answers).collect()
}

/// Writes a batch; once more if its connection was lost or another transaction stood in its way; row by row if it cannot be written
/// as a whole, so that one bad row harms no other.
async fn write_all<B: Batch>(batch: &B, rows: &[B::Row]) -> Vec<Answer<Option<B::Told>>> {
    let fault = match write_twice(batch, rows).await {
        Ok(told) => return told.into_iter().map(Ok).collect(),
        Err(fault) => fault,
    };
    let error = match fault {
        Fault::Database(error) => Arc::new(error),
        other if rows.len() == 1 => return vec![Err(other)],
        other => {
            tracing::error!(fault = ?other, "a batch was answered with something that cannot be");
            return rows.iter().map(|_| Err(Fault::Overloaded)).collect();
        }
    };
    if rows.len() == 1 || kind(&error) != Kind::Broken {
        return rows
            .iter()
            .map(|_| Err(Fault::Batch(Arc::clone(&error))))
            .collect();
    }
    tracing::warn!(%error, rows = rows.len(), "wrote a batch row by row");
    let mut answers = Vec::with_capacity(rows.len());
    for row in rows {
        let one = write_twice(batch, std::slice::from_ref(row)).await;
        answers.push(one.map(|mut told| told.pop().flatten()));
    }
    answers
}

async fn write_twice<B: Batch>(batch: &B, rows: &[B::Row]) -> Answer<Vec<Option<B::Told>>> {
    pass(Point::StoreWriting);
    let answer = match batch.commit(rows).await {
        Err(Fault::Database(error)) if may_repeat(&error) => {
            tracing::debug!(%error, "repeated a batch");
            batch.commit(rows).await
        }
        answer => answer,
    };
    pass(Point::StoreCommitted);
    answer
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use tokio::sync::Notify;
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    /// A row that is told how many it was written with.
    struct Row(InstanceId);

    /// Notes the sizes of its statements. Each waits to be let go, but for those of a generous one.
    #[derive(Clone, Default)]
    struct Noted {
        sizes: Arc<StdMutex<Vec<usize>>>,
        is_generous: bool,
        lets_go: Arc<Notify>,
    }

    impl Noted {
        fn sizes(&self) -> Vec<usize> {
            self.sizes.lock().expect("no test panics with it").clone()
        }
    }

    impl Batch for Noted {
        type Row = Row;
        type Told = usize;

        fn instance(row: &Row) -> &InstanceId {
            &row.0
        }

        fn bytes(_row: &Row) -> usize {
            1
        }

        async fn commit(&self, rows: &[Row]) -> Answer<Vec<Option<usize>>> {
            self.sizes
                .lock()
                .expect("no test panics with it")
                .push(rows.len());
            if !self.is_generous {
                self.lets_go.notified().await;
            }
            Ok(vec![Some(rows.len()); rows.len()])
        }
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    // Where it matters what is on its way within the few milliseconds that a statement may take, the clock stands while anybody can run.
    fn lane(batch: &Noted) -> Arc<Lane<Noted>> {
        Arc::new(Lane::start(batch.clone(), 2, PATIENCE))
    }

    /// Asks for a row of this instance. It has come to the committer when this returns.
    async fn ask(lane: &Arc<Lane<Noted>>, instance: &str) -> JoinHandle<usize> {
        let row = Row(InstanceId::new(instance).expect("it is an id"));
        let lane = Arc::clone(lane);
        let asked = tokio::spawn(async move {
            let told = lane.ask(row).await.expect("it is written");
            told.expect("it is ordinary")
        });
        // On the one thread of a test everybody who can has had a turn by then.
        for _ in 0..10 {
            yield_now().await;
        }
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_a_statement_is_under_way_is_written_as_one() {
        let batch = Noted::default();
        let lane = lane(&batch);
        let first = ask(&lane, "first").await;
        let mut others = Vec::new();
        for name in ["a", "b", "c"] {
            others.push(ask(&lane, name).await);
        }
        batch.lets_go.notify_one();
        assert_eq!(first.await.unwrap(), 1);
        batch.lets_go.notify_one();
        for other in others {
            assert_eq!(other.await.unwrap(), 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_statement_that_stalls_does_not_hold_up_the_rest() {
        let batch = Noted::default();
        let lane = lane(&batch);
        let _stalled = ask(&lane, "stalled").await;
        let _other = ask(&lane, "other").await;
        assert_eq!(batch.sizes(), [1], "its time has not come");
        timeout(PATIENCE, async {
            while batch.sizes().len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the other is sent off");
    }

    #[tokio::test]
    async fn rows_of_one_instance_are_written_one_after_the_other() {
        let batch = Noted {
            is_generous: true,
            ..Noted::default()
        };
        let lane = lane(&batch);
        let rows: Vec<_> = (0..4)
            .map(|_| {
                let lane = Arc::clone(&lane);
                tokio::spawn(async move {
                    let row = Row(InstanceId::new("one").expect("it is an id"));
                    lane.ask(row).await.expect("it is written")
                })
            })
            .collect();
        for row in rows {
            // Statements that are answered the moment they are sent leave nobody waiting for an event.
            let told = timeout(PATIENCE, row).await.expect("it is answered");
            assert_eq!(told.unwrap(), Some(1));
        }
    }

    #[tokio::test]
    async fn a_queue_that_is_closed_answers_what_it_has_taken() {
        let batch = Noted::default();
        let lane = lane(&batch);
        let first = ask(&lane, "first").await;
        let second = ask(&lane, "second").await;
        let closing = {
            let lane = Arc::clone(&lane);
            tokio::spawn(async move { lane.close().await })
        };
        for _ in 0..2 {
            batch.lets_go.notify_one();
            yield_now().await;
        }
        assert_eq!(first.await.unwrap(), 1);
        batch.lets_go.notify_one();
        assert_eq!(second.await.unwrap(), 1);
        closing.await.unwrap();
        let late = lane.ask(Row(InstanceId::new("late").expect("it is an id")));
        assert!(matches!(late.await, Err(Fault::Overloaded)));
    }
}
