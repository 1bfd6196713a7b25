//! Group commit: callers that meet share one transaction and one flush of the log.
//!
//! A caller puts its row into a queue and waits. A few committers take what is there, write it as one statement, and answer each
//! caller once the statement is committed. There is no pause to collect rows: while a committer waits for the disk, the next
//! rows gather by themselves. There are two or three of them, so that the next statement is prepared while the disk is busy
//! with the last.
//!
//! A caller may be dropped at any time; its row is then written all the same, as if its answer had been lost.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::InstanceId;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

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
        let intake = Arc::new(Mutex::new(Intake {
            receiver,
            closing: closing.subscribe(),
            put_back: VecDeque::new(),
        }));
        let batch = Arc::new(batch);
        let committers = (0..committers)
            .map(|_| tokio::spawn(serve(Arc::clone(&batch), Arc::clone(&intake))))
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
    /// Rows that were met while their instance had another row in the batch.
    put_back: VecDeque<Waiting<B>>,
}

impl<B: Batch> Intake<B> {
    /// Waits for a row and takes with it what else is there. `None` once the queue is closed and empty.
    async fn take(&mut self) -> Option<Vec<Waiting<B>>> {
        let first = match self.put_back.pop_front() {
            Some(waiting) => waiting,
            None => self.next().await?,
        };
        let mut bytes = B::bytes(&first.row);
        let mut met = HashSet::from([B::instance(&first.row).clone()]);
        let mut batch = vec![first];
        let mut candidates = std::mem::take(&mut self.put_back);
        while batch.len() < BATCH_ROWS && self.put_back.len() < BATCH_ROWS {
            let next = candidates
                .pop_front()
                .or_else(|| self.receiver.try_recv().ok());
            let Some(waiting) = next else {
                break;
            };
            let size = B::bytes(&waiting.row);
            if bytes + size > BATCH_BYTES {
                self.put_back.push_back(waiting);
                break;
            }
            if met.insert(B::instance(&waiting.row).clone()) {
                bytes += size;
                batch.push(waiting);
            } else {
                self.put_back.push_back(waiting);
            }
        }
        self.put_back.append(&mut candidates);
        Some(batch)
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

async fn serve<B: Batch>(batch: Arc<B>, intake: Arc<Mutex<Intake<B>>>) {
    loop {
        let taken = intake.lock().await.take().await;
        let Some(mut waiting) = taken else {
            return;
        };
        waiting.sort_by(|one, other| B::instance(&one.row).cmp(B::instance(&other.row)));
        let (mut rows, mut callers) = (Vec::new(), Vec::new());
        for Waiting { row, told, _room } in waiting {
            rows.push(row);
            callers.push((told, _room));
        }
        let answers = write_all(batch.as_ref(), &rows).await;
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
