//! Many connections in few threads, as pgbench drives its clients: a thread for each would spend more on changing places than on calls.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::load::{Load, drive_threads};
use crate::error::Error;

/// As many as pgbench has.
const THREADS: usize = 2;
/// Longer than any call takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bounds what is read of an answer.
const LARGEST_ANSWER: usize = 64 * 1024;

/// One connection's part of a load.
pub(super) struct Member {
    /// The port it calls, on 127.0.0.1.
    pub(super) port: u16,
    /// The path of each call.
    pub(super) path: String,
}

/// Lets every member call again as soon as it is answered, until the time is over. `body` makes the body of a member's n-th call.
///
/// # Errors
/// The first call that does not get through or is answered by anything but 200, and the developer's wish to end.
pub(super) fn drive(
    members: &[Member],
    time: Duration,
    body: impl Fn(u64) -> String + Sync,
) -> Result<Load, Error> {
    let mut shares: Vec<Vec<Caller>> = (0..THREADS).map(|_| Vec::new()).collect();
    for (number, member) in members.iter().enumerate() {
        shares[number % THREADS].push(Caller::connect(member)?);
    }
    shares.retain(|share| !share.is_empty());
    let body = &body;
    let works = shares
        .into_iter()
        .map(|callers| move |over: &dyn Fn() -> bool| call_in_turn(callers, body, over))
        .collect();
    drive_threads(works, time)
}

struct Caller {
    name: String,
    head: String,
    stream: TcpStream,
    answer: Vec<u8>,
    calls: u64,
    began: Instant,
}

fn call_in_turn(
    mut callers: Vec<Caller>,
    body: &(impl Fn(u64) -> String + Sync),
    over: &dyn Fn() -> bool,
) -> Result<Vec<f64>, Error> {
    let mut millis = Vec::with_capacity(1 << 18);
    for caller in &mut callers {
        caller.call(body)?;
    }
    loop {
        let ready = wait(&callers)?;
        for (caller, is_ready) in callers.iter_mut().zip(ready) {
            if !is_ready || !caller.is_answered()? {
                continue;
            }
            if over() {
                return Ok(millis);
            }
            millis.push(caller.began.elapsed().as_secs_f64() * 1e3);
            caller.call(body)?;
        }
        if over() {
            return Ok(millis);
        }
    }
}

/// Waits until something can be read from some of them, and says from which.
fn wait(callers: &[Caller]) -> Result<Vec<bool>, Error> {
    let mut polled: Vec<_> = callers
        .iter()
        .map(|caller| PollFd::new(caller.stream.as_fd(), PollFlags::POLLIN))
        .collect();
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut polled, patience) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for answers".to_owned())(errno.into())),
            Ok(0) => {
                let seconds = PATIENCE.as_secs();
                return Err(Error::Unmet(format!(
                    "no call was answered for {seconds} s"
                )));
            }
            Ok(_) => return Ok(polled.iter().map(|it| it.any().unwrap_or(true)).collect()),
        }
    }
}

impl Caller {
    fn connect(member: &Member) -> Result<Self, Error> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, member.port));
        let name = format!("POST {address}{}", member.path);
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        Ok(Self {
            stream: connect().map_err(Error::io(format!("connect to {address}")))?,
            head: format!(
                "POST {} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: ",
                member.path
            ),
            name,
            answer: Vec::new(),
            calls: 0,
            began: Instant::now(),
        })
    }

    /// Sends a call. It is small, and the last one was answered: the kernel has room for it.
    fn call(&mut self, body: &impl Fn(u64) -> String) -> Result<(), Error> {
        let body = body(self.calls);
        let request = format!("{}{}\r\n\r\n{body}", self.head, body.len());
        self.calls += 1;
        self.answer.clear();
        self.began = Instant::now();
        let sent = self.stream.write_all(request.as_bytes());
        sent.map_err(Error::io(self.name.clone()))
    }

    /// Reads what is there, and says whether the answer is whole.
    fn is_answered(&mut self) -> Result<bool, Error> {
        let mut part = [0; 4096];
        match self.stream.read(&mut part) {
            Ok(0) => return Err(self.odd("the server closed the connection")),
            Ok(count) => self.answer.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(Error::io(self.name.clone())(error)),
        }
        if self.answer.len() > LARGEST_ANSWER {
            return Err(self.odd("an answer that does not end"));
        }
        let Some(length) = whole_length(&self.answer) else {
            return Ok(false);
        };
        if self.answer.len() < length {
            return Ok(false);
        }
        if !self.answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(self.odd("anything but 200"));
        }
        Ok(true)
    }

    fn odd(&self, what: &str) -> Error {
        let answer = String::from_utf8_lossy(&self.answer);
        Error::Unmet(format!("{} was answered with {what}: {answer}", self.name))
    }
}

/// How long an answer is with its body, once its head is there.
fn whole_length(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let body: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())?;
    Some(end + body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(whole_length(head), Some(head.len() + 5));
        assert_eq!(whole_length(&head[..10]), None);
    }
}
