//! The server's side of the guard of its node.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, SystemTime};

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::boot_time::BootTime;
use crate::shim::watch::watch;
use crate::shim::{ShimError, ShimProgram, end_helper, guard, spawn_helper};

pub use crate::shim::guard::GuardAct;

/// How long the guard may take to say that it has heard.
const PATIENCE: Duration = Duration::from_secs(2);

/// The guard of a node: ends its runs, and if need be its server, when the node's lease was not renewed in time. It is a process of its
/// own, started when it is first needed, and again when it was lost; see [`crate::shim`].
#[derive(Debug)]
pub struct NodeGuard {
    program: ShimProgram,
    data_dir: PathBuf,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    socket: AsyncFd<OwnedFd>,
}

impl NodeGuard {
    /// The guard of the runs in a data directory. Nothing is started yet.
    #[must_use]
    pub fn new(program: ShimProgram, data_dir: PathBuf) -> Self {
        Self {
            program,
            data_dir,
            process: Mutex::default(),
        }
    }

    /// Takes the word that a guard of this data directory has left of what it did, and when, unless it was taken before. The server that it
    /// acted for could not tell of it itself.
    ///
    /// # Errors
    /// If the file cannot be read or removed.
    pub fn take_last_act(&self) -> io::Result<Option<(GuardAct, SystemTime)>> {
        GuardAct::take(&self.data_dir)
    }

    /// Has the runs guarded: unless this is called again before that moment, they are ended soon after it. The guard has heard when
    /// this has answered.
    ///
    /// # Errors
    /// [`ShimError`] if there is no guard, and none could be started: then the runs are not guarded, or only until the moment before.
    pub async fn hold_until(&self, until: BootTime) -> Result<(), ShimError> {
        let mut held = self.process.lock().await;
        for is_last in [false, true] {
            if held.is_none() {
                *held = Some(self.start().await?);
            }
            let process = held.as_ref().expect("it was just started if it was not");
            match process.say(guard::Word::Until(until.as_millis())).await {
                Ok(()) => return Ok(()),
                Err(error) if is_last => return Err(ShimError::Unknown(error)),
                Err(_) => held.take().into_iter().for_each(Process::end),
            }
        }
        unreachable!("the second turn returns")
    }

    /// Tells the guard that the runs are being ended that could live until that moment, that none is left within this process, and that
    /// none will be launched before it hears of a later one: it leaves this process alone then, and ends what is not ended in time.
    pub async fn ending(&self, until: BootTime) {
        self.tell(guard::Word::Ending(until.as_millis())).await;
    }

    /// Tells the guard that they all have ended: it has nothing to do then.
    pub async fn all_ended(&self, until: BootTime) {
        self.tell(guard::Word::Ended(until.as_millis())).await;
    }

    /// Has nothing guarded any more.
    pub async fn leave(&self) {
        self.tell(guard::Word::Leave).await;
        if let Some(process) = self.process.lock().await.take() {
            process.end();
        }
    }

    /// The number of the guard's process, if there is one.
    pub async fn process_id(&self) -> Option<u32> {
        let held = self.process.lock().await;
        held.as_ref().map(|process| process.child.id())
    }

    async fn tell(&self, word: guard::Word) {
        if let Some(process) = self.process.lock().await.as_ref() {
            // One that does not hear does what it would have done otherwise.
            let _heard = process.say(word).await;
        }
    }

    async fn start(&self) -> Result<Process, ShimError> {
        let server = std::process::id().to_string();
        let variables = vec![
            (guard::DIRECTORY_VARIABLE, self.data_dir.clone().into()),
            (guard::SERVER_VARIABLE, server.into()),
        ];
        let (child, socket) = spawn_helper(&self.program, guard::NAME, variables).await?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let socket = watch(socket, interest).map_err(ShimError::NotForked)?;
        Ok(Process { child, socket })
    }
}

impl Process {
    fn end(mut self) {
        end_helper(&mut self.child);
    }

    /// Says a word, and waits until it was heard.
    async fn say(&self, word: guard::Word) -> io::Result<()> {
        let word = word.pack();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let said = async {
            let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
                Ok(send(socket.as_raw_fd(), &word, flags)?)
            });
            sent.await?;
            loop {
                let mut heard = [0; guard::WORD_BYTES];
                let length = self.socket.async_io(Interest::READABLE, |socket| {
                    Ok(recv(
                        socket.as_raw_fd(),
                        &mut heard,
                        MsgFlags::MSG_DONTWAIT,
                    )?)
                });
                match length.await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    // An earlier word may have been answered too late.
                    _ if heard != word => {}
                    _ => return Ok(()),
                }
            }
        };
        timeout(PATIENCE, said)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
