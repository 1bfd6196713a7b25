//! Group commit: callers that meet share one transaction and one flush of the log.
//!
//! A caller puts its row into a queue and waits. Two committers take what is there, write it as one statement, and answer each
//! caller once the statement is committed. A row that finds both at rest is written at once. While one is at work, the other waits
//! until about as many rows have gathered as the first has: a statement costs the server as much as several rows, so that many
//! small ones would eat up what they gain by being early. With both under way half of the callers are answered while the other half
//! is written; and one that is stalled by the disk does not hold up the rest for long.
//!
//! A caller may be dropped at any time; its row is then written all the same, as if its answer had been lost.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::InstanceId;
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

/// How often others are let go first while few rows are there of those that came at busy times of late.
const YIELDS: usize = 8;
/// How long rows are gathered at most while another statement is under way.
const GATHERING: Duration = Duration::from_millis(2);

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
    told: oneshot::Sender<Answer<Option<B::Told>>>,
    _room: OwnedSemaphorePermit,
}

/// A queue with its committers.
pub(super) struct Lane<B: Batch> {
    sender: mpsc::Sender<Waiting<B>>,
    room: Arc<Semaphore>,
    patience: Duration,
    closing: watch::Sender<bool>,
    committers: Mutex<Vec<JoinHandle<()>>>,
}

impl<B: Batch> Lane<B> {
    /// Starts a queue with so many committers. A row waits for room in it for as long as a connection may be waited for.
    pub(super) fn start(batch: B, committers: usize, patience: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_ROWS);
        let closing = watch::Sender::new(false);
        let under_way = watch::Sender::new(0);
        let intake = Arc::new(Mutex::new(Intake {
            receiver,
            closing: closing.subscribe(),
            under_way: under_way.subscribe(),
            crowd: 0,
            put_back: VecDeque::new(),
            hashes: RandomState::new(),
        }));
        let batch = Arc::new(batch);
        let committers = (0..committers)
            .map(|_| {
                tokio::spawn(serve(
                    Arc::clone(&batch),
                    Arc::clone(&intake),
                    under_way.clone(),
                ))
            })
            .collect();
        Self {
            sender,
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            patience,
            closing,
            committers: Mutex::new(committers),
        }
    }

    /// Has a row written with others. `None` if it is not of the ordinary kind: nothing was written then.
    pub(super) async fn ask(&self, row: B::Row) -> Answer<Option<B::Told>> {
        let kib = u32::try_from(1 + B::bytes(&row) / 1024).unwrap_or(u32::MAX);
        let (told, answer) = oneshot::channel();
        let put = async {
            let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
            let waiting = Waiting {
                row,
                told,
                _room: room.map_err(|_| Fault::Overloaded)?,
            };
            let sent = self.sender.send(waiting).await;
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
        for committer in self.committers.lock().await.drain(..) {
            if let Err(error) = committer.await {
                tracing::error!(%error, "a committer ended before its queue was empty");
            }
        }
    }
}

struct Intake<B: Batch> {
    receiver: mpsc::Receiver<Waiting<B>>,
    closing: watch::Receiver<bool>,
    /// How many rows are being written.
    under_way: watch::Receiver<usize>,
    /// About how many rows are waiting or being written at busy times of late.
    crowd: usize,
    /// Rows that were met while their instance had another row in the batch.
    put_back: VecDeque<Waiting<B>>,
    hashes: RandomState,
}

/// Rows that are to be written as one statement.
struct Gathered<B: Batch> {
    rows: Vec<Waiting<B>>,
    bytes: usize,
    /// Hashes of the instances that have a row here. Two with the same hash are taken for one, which only puts a row off.
    met: Vec<u64>,
}

impl<B: Batch> Gathered<B> {
    /// Takes a row, or gives it back if another of its instance is there.
    fn take(&mut self, waiting: Waiting<B>, hashes: &RandomState) -> Result<(), Waiting<B>> {
        let hash = hashes.hash_one(B::instance(&waiting.row));
        if self.met.contains(&hash) {
            return Err(waiting);
        }
        self.met.push(hash);
        self.bytes += B::bytes(&waiting.row);
        self.rows.push(waiting);
        Ok(())
    }

    fn has_room_for(&self, waiting: &Waiting<B>) -> bool {
        self.rows.is_empty() || self.bytes + B::bytes(&waiting.row) <= BATCH_BYTES
    }
}

impl<B: Batch> Intake<B> {
    /// Waits for a row and takes with it what else is there, or comes while other rows are being written. `None` once the queue is
    /// closed and empty.
    async fn take(&mut self) -> Option<Vec<Waiting<B>>> {
        let first = match self.put_back.pop_front() {
            Some(waiting) => waiting,
            None => self.next().await?,
        };
        let mut gathered = Gathered {
            rows: Vec::new(),
            bytes: 0,
            met: Vec::new(),
        };
        let mut full = self.gather(&mut gathered, Some(first));
        // Whoever is about to ask may do so: their requests are read meanwhile.
        for _ in 0..YIELDS {
            if full || gathered.rows.len() >= self.crowd / 2 {
                break;
            }
            tokio::task::yield_now().await;
            full = self.gather(&mut gathered, None);
        }
        let deadline = Instant::now() + GATHERING;
        while !full
            && *self.under_way.borrow_and_update() > 0
            && gathered.rows.len() < self.crowd / 2
        {
            tokio::select! {
                biased;
                next = self.receiver.recv() => match next {
                    Some(waiting) => full = self.gather(&mut gathered, Some(waiting)),
                    None => break,
                },
                // The senders live as long as the committers.
                _ = self.under_way.changed() => {}
                () = sleep_until(deadline) => break,
            }
        }
        let crowd = *self.under_way.borrow() + gathered.rows.len();
        self.crowd = crowd.max(self.crowd - self.crowd.div_ceil(8));
        Some(gathered.rows)
    }

    /// Takes a row, those that were put back before, and all that wait. Says whether there is no room for more.
    fn gather(&mut self, gathered: &mut Gathered<B>, first: Option<Waiting<B>>) -> bool {
        let mut again: VecDeque<_> = first.into_iter().collect();
        again.append(&mut self.put_back);
        loop {
            if gathered.rows.len() >= BATCH_ROWS || self.put_back.len() >= BATCH_ROWS {
                self.put_back.append(&mut again);
                return true;
            }
            let next = again.pop_front().or_else(|| self.receiver.try_recv().ok());
            let Some(waiting) = next else {
                return false;
            };
            if !gathered.has_room_for(&waiting) {
                self.put_back.push_back(waiting);
                self.put_back.append(&mut again);
                return true;
            }
            if let Err(waiting) = gathered.take(waiting, &self.hashes) {
                self.put_back.push_back(waiting);
            }
        }
    }

    async fn next(&mut self) -> Option<Waiting<B>> {
        tokio::select! {
            biased;
            waiting = self.receiver.recv() => return waiting,
            _ = self.closing.wait_for(|closing| *closing) => {}
        }
        self.receiver.close();
        self.receiver.recv().await
    }
}

async fn serve<B: Batch>(
    batch: Arc<B>,
    intake: Arc<Mutex<Intake<B>>>,
    under_way: watch::Sender<usize>,
) {
    loop {
        let mut waiting = {
            let mut intake = intake.lock().await;
            let Some(taken) = intake.take().await else {
                return;
            };
            // Counted before the next committer begins to gather.
            under_way.send_modify(|rows| *rows += taken.len());
            taken
        };
        waiting.sort_by(|one, other| B::instance(&one.row).cmp(B::instance(&other.row)));
        let (mut rows, mut callers) = (Vec::new(), Vec::new());
        for Waiting { row, told, _room } in waiting {
            rows.push(row);
            callers.push((told, _room));
        }
        let answers = write_all(batch.as_ref(), &rows).await;
        under_way.send_modify(|under_way| *under_way -= rows.len());
        for ((told, _room), answer) in callers.into_iter().zip(answers) {
            // A caller that is gone will ask again, or not care.
            let _gone = told.send(answer);
        }
    }
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
    match batch.commit(rows).await {
        Err(Fault::Database(error)) if may_repeat(&error) => {
            tracing::debug!(%error, "repeated a batch");
            batch.commit(rows).await
        }
        answer => answer,
    }
}
