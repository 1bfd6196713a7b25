//! Carries what a program without a network says to the core, and what the core answers.
//!
//! The listener is in the program's network namespace, where nothing but the loopback is; the core's socket is on the host. A connection of
//! the program is joined to one of the core. While the server restarts there is none: then the program's waits, so that
//! the restart is not seen.
//!
//! Nothing here blocks and nothing wakes by itself: whoever owns it polls (poll(2)) what [`Relay::interest`] names. A connection that is
//! quiet holds two descriptors and no buffer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Most connections at once; further ones wait in the kernel's queue. Published clients keep one each.
const CONNECTIONS: usize = 64;
/// How long a connection waits for a core.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Read at once; on the stack.
const READ_BYTES: usize = 16 * 1024;
/// Reads in a row, so that one connection cannot keep a shim from anything else.
const READS: usize = 16;

/// A listener of a program, and its connections to the core.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: TcpListener,
    core: PathBuf,
    connections: Vec<Connection>,
    /// When it accepts again, if it could not although somebody waits: for want of descriptors.
    accepts_at: Option<Instant>,
}

/// What is to be polled, and for what.
pub(crate) type Interest<'a> = (BorrowedFd<'a>, PollFlags);

#[derive(Debug)]
struct Connection {
    program: TcpStream,
    core: Core,
    /// From the program to the core.
    calls: Direction,
    /// From the core to the program.
    answers: Direction,
}

#[derive(Debug)]
enum Core {
    Reached(UnixStream),
    Sought {
        since: Instant,
        again: Instant,
        pause: Duration,
    },
}

/// What goes one way.
#[derive(Debug, Default)]
struct Direction {
    /// Read, and not yet written.
    pending: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// Nothing more comes.
    ended: bool,
    /// Nothing more goes, and the receiver knows.
    closed: bool,
}

impl Relay {
    /// A relay between a listener and the core's socket.
    pub(crate) fn new(listener: TcpListener, core: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            core: core.to_owned(),
            connections: Vec::new(),
            accepts_at: None,
        })
    }

    /// What is to be polled now. Only what something can be done about is among it, so that no poll returns in vain.
    pub(crate) fn interest(&self) -> Vec<Interest<'_>> {
        let mut interest = Vec::with_capacity(1 + 2 * self.connections.len());
        if self.connections.len() < CONNECTIONS && self.accepts_at.is_none() {
            interest.push((self.listener.as_fd(), PollFlags::POLLIN));
        }
        for connection in &self.connections {
            let Core::Reached(core) = &connection.core else {
                continue;
            };
            let (calls, answers) = (&connection.calls, &connection.answers);
            let of_program = flags(calls.wants_more(), answers.has_pending());
            let of_core = flags(answers.wants_more(), calls.has_pending());
            if !of_program.is_empty() {
                interest.push((connection.program.as_fd(), of_program));
            }
            if !of_core.is_empty() {
                interest.push((core.as_fd(), of_core));
            }
        }
        interest
    }

    /// When it wants to act although nothing that was polled is ready.
    pub(crate) fn acts_at(&self) -> Option<Instant> {
        let sought = self.connections.iter().filter_map(|it| match it.core {
            Core::Sought { again, .. } => Some(again),
            Core::Reached(_) => None,
        });
        sought.chain(self.accepts_at).min()
    }

    /// Does what can be done without waiting.
    pub(crate) fn act(&mut self, now: Instant) {
        self.accept(now);
        let core = &self.core;
        self.connections
            .retain_mut(|connection| connection.act(core, now).is_ok());
    }

    fn accept(&mut self, now: Instant) {
        if self.accepts_at.is_some_and(|at| now < at) {
            return;
        }
        self.accepts_at = None;
        while self.connections.len() < CONNECTIONS {
            let program = match self.listener.accept() {
                Ok((program, _)) => program,
                Err(error) if is_for_now(&error) => return,
                // One that has gone away again, or no descriptor is free.
                Err(_) => {
                    self.accepts_at = Some(now + LONGEST_PAUSE);
                    return;
                }
            };
            // A call is one small write, and its answer another.
            let prepared = program
                .set_nonblocking(true)
                .and_then(|()| program.set_nodelay(true));
            if prepared.is_ok() {
                self.connections.push(Connection::new(program, now));
            }
        }
    }
}

impl Connection {
    fn new(program: TcpStream, now: Instant) -> Self {
        Self {
            program,
            core: Core::Sought {
                since: now,
                again: now,
                pause: FIRST_PAUSE,
            },
            calls: Direction::default(),
            answers: Direction::default(),
        }
    }

    /// An error is its end: both sides see it closed.
    fn act(&mut self, path: &Path, now: Instant) -> io::Result<()> {
        self.seek(path, now)?;
        let Core::Reached(core) = &mut self.core else {
            return Ok(());
        };
        self.calls.carry(&mut self.program, core, |core| {
            core.shutdown(Shutdown::Write)
        })?;
        self.answers.carry(core, &mut self.program, |program| {
            program.shutdown(Shutdown::Write)
        })?;
        if self.calls.closed && self.answers.closed {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Reaches for the core, if it was not reached yet and it is time.
    fn seek(&mut self, path: &Path, now: Instant) -> io::Result<()> {
        let Core::Sought {
            since,
            again,
            pause,
        } = &mut self.core
        else {
            return Ok(());
        };
        if now < *again {
            return Ok(());
        }
        match connect_at_once(path) {
            Ok(core) => {
                self.core = Core::Reached(core);
                Ok(())
            }
            // Whatever the reason: the next server may mend it.
            Err(error) if now.duration_since(*since) >= PATIENCE => Err(error),
            Err(_) => {
                *again = now + *pause;
                *pause = (*pause * 2).min(LONGEST_PAUSE);
                Ok(())
            }
        }
    }
}

/// Connects, or fails at once: a core that does not accept lets a call that waits wait for ever.
fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let core = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(core.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(core.into())
}

impl Direction {
    /// Whether reading is of use: one piece at a time is under way, so that a receiver that is slow slows the sender.
    fn wants_more(&self) -> bool {
        !self.ended && !self.has_pending()
    }

    fn has_pending(&self) -> bool {
        self.written < self.pending.len()
    }

    /// Carries what there is until one side has to be waited for.
    fn carry<W: Write>(
        &mut self,
        from: &mut impl Read,
        to: &mut W,
        close: impl Fn(&mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS {
            if !self.flush(to)? {
                return Ok(());
            }
            if self.ended {
                return self.close(to, close);
            }
            match from.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    let written = write_some(to, &buffer[..count])?;
                    self.pending.extend_from_slice(&buffer[written..count]);
                }
                Err(error) if is_for_now(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // There is more, and the poll will say so.
        Ok(())
    }

    fn close<W>(&mut self, to: &mut W, close: impl Fn(&mut W) -> io::Result<()>) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        self.closed = true;
        close(to)
    }

    /// Writes what is pending; false if some is left. The buffer goes with the last of it.
    fn flush(&mut self, to: &mut impl Write) -> io::Result<bool> {
        while self.has_pending() {
            let written = write_some(to, &self.pending[self.written..])?;
            if written == 0 {
                return Ok(false);
            }
            self.written += written;
        }
        self.pending = Vec::new();
        self.written = 0;
        Ok(true)
    }
}

/// Writes once; 0 if nothing could be written now.
fn write_some(to: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    match to.write(bytes) {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Err(error) if is_for_now(&error) => Ok(0),
        written => written,
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn flags(read: bool, write: bool) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::POLLIN, read);
    flags.set(PollFlags::POLLOUT, write);
    flags
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread::{self, JoinHandle};

    use nix::poll::{PollFd, PollTimeout, poll};

    use super::*;

    /// A relay that is polled by a thread until the test ends.
    struct World {
        directory: tempfile::TempDir,
        address: SocketAddr,
        polls: Arc<AtomicUsize>,
        ends: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut relay = Relay::new(listener, &directory.path().join("core.sock")).unwrap();
            let (polls, ends) = (
                Arc::new(AtomicUsize::new(0)),
                Arc::new(AtomicBool::new(false)),
            );
            let thread = thread::spawn({
                let (polls, ends) = (Arc::clone(&polls), Arc::clone(&ends));
                move || {
                    while !ends.load(Ordering::SeqCst) {
                        wait(&relay);
                        polls.fetch_add(1, Ordering::SeqCst);
                        relay.act(Instant::now());
                    }
                }
            });
            Self {
                directory,
                address,
                polls,
                ends,
                thread: Some(thread),
            }
        }

        fn core(&self) -> UnixListener {
            UnixListener::bind(self.directory.path().join("core.sock")).unwrap()
        }

        fn call(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            stream
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.ends.store(true, Ordering::SeqCst);
            // Something to be woken by.
            let _woken = TcpStream::connect(self.address);
            if let Some(thread) = self.thread.take() {
                thread.join().unwrap();
            }
        }
    }

    fn wait(relay: &Relay) {
        let interest = relay.interest();
        let mut polled: Vec<_> = interest
            .iter()
            .map(|(fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        let timeout = relay.acts_at().map_or(PollTimeout::NONE, |at| {
            let ms = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(i32::try_from(ms).unwrap()).unwrap()
        });
        poll(&mut polled, timeout).unwrap();
    }

    fn read_to_end(mut stream: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn both_ways_and_each_end_by_itself() {
        let world = World::new();
        let core = world.core();
        let mut program = world.call();
        program.write_all(b"call").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        let (mut heard, _) = core.accept().unwrap();
        assert_eq!(read_to_end(&mut heard), b"call");
        heard.write_all(b"answer").unwrap();
        drop(heard);
        assert_eq!(read_to_end(program), b"answer");
    }

    #[test]
    fn a_core_that_is_not_there_yet_is_waited_for() {
        let world = World::new();
        let mut program = world.call();
        program.write_all(b"call").unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(
            world.polls.load(Ordering::SeqCst) < 20,
            "it waits between its tries"
        );
        let core = world.core();
        let (mut heard, _) = core.accept().unwrap();
        let mut call = [0; 4];
        heard.read_exact(&mut call).unwrap();
        assert_eq!(&call, b"call");
    }

    #[test]
    fn much_comes_through_whole_although_the_receiver_is_slow() {
        let world = World::new();
        let core = world.core();
        let mut program = world.call();
        let (heard, _) = core.accept().unwrap();
        let bytes: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
        let sender = thread::spawn({
            let bytes = bytes.clone();
            move || {
                program.write_all(&bytes).unwrap();
                program.shutdown(Shutdown::Write).unwrap();
            }
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!sender.is_finished(), "the sender is slowed down");
        let polls = world.polls.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(100));
        assert!(
            world.polls.load(Ordering::SeqCst) <= polls + 1,
            "nothing spins meanwhile"
        );
        assert!(read_to_end(heard) == bytes, "it is all there");
        sender.join().unwrap();
    }

    #[test]
    fn a_quiet_connection_wakes_nobody() {
        let world = World::new();
        let core = world.core();
        let _program = world.call();
        let _heard = core.accept().unwrap();
        thread::sleep(Duration::from_millis(50));
        let polls = world.polls.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(world.polls.load(Ordering::SeqCst), polls);
    }

    #[test]
    fn more_connections_than_are_carried_at_once_have_their_turn() {
        let world = World::new();
        let core = world.core();
        let mut programs: Vec<_> = (0..CONNECTIONS + 8).map(|_| world.call()).collect();
        let mut heard: Vec<_> = (0..CONNECTIONS).map(|_| core.accept().unwrap().0).collect();
        core.set_nonblocking(true).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(core.accept().is_err(), "the bound holds");
        core.set_nonblocking(false).unwrap();
        programs.drain(..CONNECTIONS);
        heard.clear();
        for program in &mut programs {
            program.write_all(b"late").unwrap();
            program.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(core.accept().unwrap().0), b"late");
        }
    }

    #[test]
    fn a_core_that_does_not_accept_holds_nobody_up() {
        use nix::sys::socket::{Backlog, bind, listen};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core.sock");
        let core = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(core.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&core, Backlog::new(1).unwrap()).unwrap();
        let mut waiting = Vec::new();
        while let Ok(call) = connect_at_once(&path) {
            waiting.push(call);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        program.write_all(b"call").unwrap();
        let mut relay = Relay::new(listener, &path).unwrap();
        let begun = Instant::now();
        while relay.connections.is_empty() {
            relay.act(Instant::now());
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(relay.acts_at().is_some(), "it tries again");
        let core = UnixListener::from(core);
        for _ in &waiting {
            drop(core.accept().unwrap());
        }
        while relay.acts_at().is_some() {
            wait(&relay);
            relay.act(Instant::now());
        }
        let (mut heard, _) = core.accept().unwrap();
        let mut call = [0; 4];
        relay.act(Instant::now());
        heard.read_exact(&mut call).unwrap();
        assert_eq!(&call, b"call");
    }

    #[test]
    fn a_side_that_breaks_off_ends_the_other() {
        let world = World::new();
        let core = world.core();
        let program = world.call();
        let (heard, _) = core.accept().unwrap();
        drop(heard);
        assert_eq!(read_to_end(&program), b"");
        drop(program);
        let program = world.call();
        let (heard, _) = core.accept().unwrap();
        drop(program);
        assert_eq!(read_to_end(heard), b"");
    }
}
