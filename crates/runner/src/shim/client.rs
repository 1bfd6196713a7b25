//! The server's side of the launcher.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::launcher::{ANSWER_BYTES, ANSWER_DESCRIPTORS, NAME, REQUEST_BYTES, SOCKET_VARIABLE};
use super::look::Shim;
use super::open_files;
use super::orphans;
use super::watch::watch;
use crate::RunDirectory;

/// How long the launcher may take to fork. It takes microseconds, unless the machine has no memory left.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which program is executed as launcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimProgram {
    /// This one: its `main` begins with [`init`](super::init).
    ThisProgram,
    /// The program `runtara-shim` at this path.
    At(PathBuf),
}

/// Says why a run could not be launched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShimError {
    /// This program cannot be executed as launcher.
    #[error(
        "this program cannot launch runs: the first line of its `main` must be `shim::init()`, or the path of \
         `runtara-shim` must be given"
    )]
    NotInitialised,
    /// The launcher could not be started.
    #[error("the launcher '{program}' could not be started")]
    NoLauncher {
        /// Its path.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The launcher could not fork: there is no shim.
    #[error("the launcher could not make a shim")]
    NotForked(#[source] io::Error),
    /// The launcher died, or does not answer, with the request in its hands. Only [`look`](super::look) can tell whether
    /// there is a shim.
    #[error("the launcher was lost in the middle of a launch")]
    Unknown(#[source] io::Error),
}

/// Starts shims, through a launcher process that is started anew when it dies. Ends with the server; the shims do not.
#[derive(Debug)]
pub struct Launcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    program: ShimProgram,
    connection: Mutex<Option<Connection>>,
    /// The shim of the next run, if it is there already.
    spare: std::sync::Mutex<Option<Shim>>,
}

#[derive(Debug)]
struct Connection {
    process: Child,
    socket: AsyncFd<OwnedFd>,
    requests: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It keeps no state, and its shims do not hang on it.
        end_helper(&mut self.process);
    }
}

/// Kills a process of [`spawn_helper`], and waits for its end.
pub(crate) fn end_helper(process: &mut Child) {
    let _left = process.kill();
    let _reaped = process.wait();
    let id = process.id().cast_signed();
    orphans::ours().retain(|ours| *ours != id);
}

impl Launcher {
    /// Starts the launcher. To be called within a tokio runtime, and used in that runtime only.
    ///
    /// # Errors
    /// [`ShimError::NotInitialised`], [`ShimError::NoLauncher`].
    pub async fn start(program: ShimProgram) -> Result<Self, ShimError> {
        let connection = connect(&program).await?;
        let launcher = Self {
            shared: Arc::new(Shared {
                program,
                connection: Mutex::new(Some(connection)),
                spare: std::sync::Mutex::new(None),
            }),
        };
        launcher.have_spare();
        Ok(launcher)
    }

    /// Starts the shim of a run whose `run.json` is written. What becomes of the run from here on is in its directory.
    ///
    /// If this future is dropped, the shim may or may not be started: [`look`](super::look) tells.
    ///
    /// # Errors
    /// With [`ShimError::Unknown`] there may be a shim, with all others there is none and will be none.
    pub async fn launch(&self, directory: &RunDirectory) -> Result<Shim, ShimError> {
        let path = directory.path().as_os_str().as_bytes();
        if let Some(shim) = self.shared.begin_spare(path) {
            self.have_spare();
            return Ok(shim);
        }
        let mut held = self.shared.connection.lock().await;
        // One may have been made while this had to wait.
        let launched = match self.shared.begin_spare(path) {
            Some(shim) => Ok(shim),
            None => self.shared.ask(&mut held, path).await,
        };
        drop(held);
        self.have_spare();
        launched
    }

    /// The number of the launcher's process, if there is one.
    pub async fn process_id(&self) -> Option<u32> {
        let held = self.shared.connection.lock().await;
        held.as_ref().map(|connection| connection.process.id())
    }

    /// Has a spare made if there is none. Whoever else asks the launcher for something does this afterwards.
    fn have_spare(&self) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let Ok(mut held) = shared.connection.try_lock() else {
                return;
            };
            if shared.has_spare() {
                return;
            }
            // Without one the next run is launched without it, and that tells what is wrong.
            if let Ok(spare) = shared.ask(&mut held, NO_PATH).await {
                *shared.spare() = Some(spare);
            }
        });
    }
}

/// Asks for a spare.
const NO_PATH: &[u8] = b"";

impl Shared {
    fn spare(&self) -> MutexGuard<'_, Option<Shim>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_spare(&self) -> bool {
        self.spare().is_some()
    }

    /// Tells the spare its run. `None` if there is none that can be told.
    fn begin_spare(&self, path: &[u8]) -> Option<Shim> {
        let spare = self.spare().take()?;
        spare.begin(path).ok().map(|()| spare)
    }

    /// Asks the launcher for a shim, or, without a path, for a spare.
    async fn ask(&self, held: &mut Option<Connection>, path: &[u8]) -> Result<Shim, ShimError> {
        // A launcher that died is noticed when it is written to: then nothing was asked of it, and another may be asked.
        for is_last in [false, true] {
            if held.is_none() {
                *held = Some(connect(&self.program).await?);
            }
            let connection = held.as_mut().expect("it was just connected if it was not");
            let answer = match connection.ask(path).await {
                Ok(number) => connection.answer(number).await,
                Err(error) if is_last => Err(ShimError::NotForked(error)),
                Err(_) => {
                    *held = None;
                    continue;
                }
            };
            if matches!(answer, Err(ShimError::Unknown(_))) {
                *held = None;
            }
            return answer;
        }
        unreachable!("the second turn returns")
    }
}

async fn connect(program: &ShimProgram) -> Result<Connection, ShimError> {
    let variables = vec![(SOCKET_VARIABLE, "0".into())];
    let (process, socket) = spawn_helper(program, NAME, variables).await?;
    let interest = Interest::READABLE | Interest::WRITABLE;
    let socket = watch(socket, interest).map_err(ShimError::NotForked)?;
    Ok(Connection {
        process,
        socket,
        requests: 0,
    })
}

/// Executes this program, or that of shims, as a process that calls itself so, has a socket for its standard input, and no variables but these. Gives
/// the other end of the socket.
pub(crate) async fn spawn_helper(
    program: &ShimProgram,
    name: &'static str,
    variables: Vec<(&'static str, OsString)>,
) -> Result<(Child, OwnedFd), ShimError> {
    let path = match program {
        ShimProgram::ThisProgram if !super::is_initialised() => {
            return Err(ShimError::NotInitialised);
        }
        // Names the file that runs, also after it was replaced or removed.
        ShimProgram::ThisProgram => PathBuf::from("/proc/self/exe"),
        ShimProgram::At(path) => path.clone(),
    };
    let failed = |source| ShimError::NoLauncher {
        program: path.clone(),
        source,
    };
    let spawned = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || spawn(&path, name, variables)).await
    };
    spawned
        .map_err(|error| failed(io::Error::other(error)))?
        .map_err(failed)
}

fn spawn(
    path: &Path,
    name: &str,
    variables: Vec<(&str, OsString)>,
) -> io::Result<(Child, OwnedFd)> {
    // A socket of packets: a request is read whole, and the end of the other side is seen.
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let mut children = orphans::ours();
    let process = Command::new(path)
        .arg0(name)
        .env_clear()
        .envs(variables)
        .envs(open_files::before().map(|soft| (open_files::VARIABLE, soft)))
        .envs(runtara_failpoints::handed_on())
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    children.push(process.id().cast_signed());
    Ok((process, ours))
}

impl Connection {
    /// Sends a request. An error means that the launcher has not got it.
    async fn ask(&mut self, path: &[u8]) -> io::Result<[u8; 8]> {
        self.requests += 1;
        let number = self.requests.to_ne_bytes();
        let mut request = number.to_vec();
        request.extend_from_slice(path);
        if request.len() > REQUEST_BYTES {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
            Ok(send(socket.as_raw_fd(), &request, flags)?)
        });
        timed(sent).await?;
        Ok(number)
    }

    /// Waits for the answer to a request. Answers to earlier ones, whose askers have gone away, are passed over.
    async fn answer(&mut self, number: [u8; 8]) -> Result<Shim, ShimError> {
        loop {
            let received = self.socket.async_io(Interest::READABLE, receive);
            let answer = timed(received).await.map_err(ShimError::Unknown)?;
            if answer.number != number {
                continue;
            }
            let mut descriptors = answer.descriptors.into_iter();
            return match (answer.errno, descriptors.next()) {
                (0, Some(pidfd)) => {
                    Shim::with_socket(pidfd, descriptors.next()).map_err(ShimError::Unknown)
                }
                (0, None) => Err(ShimError::Unknown(Errno::EMFILE.into())),
                (errno, _) => Err(ShimError::NotForked(io::Error::from_raw_os_error(errno))),
            };
        }
    }
}

async fn timed<T>(operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, operation)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

struct Answer {
    number: [u8; 8],
    errno: i32,
    descriptors: Vec<OwnedFd>,
}

#[expect(
    unsafe_code,
    reason = "descriptors arrive as bare numbers, and somebody must own them"
)]
fn receive(socket: &OwnedFd) -> io::Result<Answer> {
    let mut answer = [0; ANSWER_BYTES];
    let mut slices = [IoSliceMut::new(&mut answer)];
    let mut controls = nix::cmsg_space!([std::os::fd::RawFd; ANSWER_DESCRIPTORS]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut controls), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just put this descriptor into our table, for us alone.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if message.bytes != ANSWER_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (number, errno) = answer.split_at(8);
    let whole = |_| io::Error::from(io::ErrorKind::InvalidData);
    Ok(Answer {
        number: number.try_into().map_err(whole)?,
        errno: i32::from_ne_bytes(errno.try_into().map_err(whole)?),
        descriptors,
    })
}
