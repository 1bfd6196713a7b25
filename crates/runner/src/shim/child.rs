//! Starts the program of a run.
//!
//! The child shares the shim's memory until it executes the program (`CLONE_VM | CLONE_VFORK`, clone(2)), so that no page is
//! copied; only a child that is born in a cgroup has to be forked, because the C library's clone(2) cannot say so. Between clone and
//! exec it makes system calls only, the raw ones where the C library's wrapper would touch state of the shim, and tells by a plain write
//! into shared memory what failed.

#![expect(
    unsafe_code,
    reason = "a child that shares memory with its parent has no safe form"
)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use super::cgroup::Door;
use super::files::Program;

/// Pages that the child's few frames need, with room to spare.
const STACK_BYTES: usize = 64 * 1024;

/// No core dumps. 0 would forbid core files, and not what pipes the core to a program (core(5)); 1 forbids that as well, and is less than
/// any core file needs.
const NO_CORE: u64 = 1;

/// What the child does, in order, before it is the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Step {
    Session,
    Cgroup,
    Limits,
    Memory,
    Niceness,
    Directory,
    Descriptors,
    User,
    Privileges,
    Parent,
    Signals,
    Execute,
}

impl Step {
    /// What was being done, for an error.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Session => "begin a session",
            Self::Cgroup => "enter its cgroup",
            Self::Limits => "set resource limits",
            Self::Memory => "set its out-of-memory score",
            Self::Niceness => "set its niceness",
            Self::Directory => "enter its work directory",
            Self::Descriptors => "connect its input and outputs",
            Self::User => "become its user",
            Self::Privileges => "give up new privileges",
            Self::Parent => "tie it to its shim",
            Self::Signals => "unblock signals",
            Self::Execute => "execute it",
        }
    }
}

/// Why the program did not start.
#[derive(Debug)]
pub(crate) struct StartError {
    pub(crate) step: Step,
    pub(crate) error: io::Error,
}

/// What the child is given.
pub(crate) struct Descriptors<'a> {
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    pub(crate) work: BorrowedFd<'a>,
    /// The way into its cgroup, if it has one of its own.
    pub(crate) cgroup: Option<Door<'a>>,
}

/// Everything the child needs, as the system calls take it.
struct Plan {
    path: *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    stdin: c_int,
    stdout: c_int,
    stderr: c_int,
    work: c_int,
    tasks: Option<c_int>,
    limits: [Option<(c_int, u64)>; 4],
    oom_score_adj: Option<CString>,
    nice: Option<i32>,
    user: Option<(u32, u32)>,
    parent: i32,
    failed: *mut Option<Failed>,
}

/// Starts the program: gives the number of its process, once it is executed.
pub(crate) fn start(
    program: &Program,
    given: &Descriptors<'_>,
    room: &Room,
) -> Result<i32, StartError> {
    let invalid = |_| StartError {
        step: Step::Execute,
        error: io::Error::from_raw_os_error(libc::EINVAL),
    };
    let path = CString::new(program.executable.as_os_str().as_encoded_bytes()).map_err(invalid)?;
    let texts = |texts: &[String]| {
        let texts = texts.iter().map(|text| CString::new(text.as_bytes()));
        texts.collect::<Result<Vec<_>, _>>()
    };
    let (args, env) = (
        texts(&program.args).map_err(invalid)?,
        texts(&program.env).map_err(invalid)?,
    );
    let (args, env) = (pointers(&args), pointers(&env));
    let oom_score_adj = program
        .oom_score_adj
        .map(|score| CString::new(score.to_string()));
    let limits = program.limits;
    room.clear();
    let (tasks, born_in) = match given.cgroup {
        None => (None, None),
        Some(Door::Tasks(file)) => (Some(file.as_raw_fd()), None),
        Some(Door::Directory(directory)) => (None, Some(directory)),
    };
    let mut plan = Plan {
        path: path.as_ptr(),
        args: args.as_ptr(),
        env: env.as_ptr(),
        stdin: given.stdin.as_raw_fd(),
        stdout: given.stdout.as_raw_fd(),
        stderr: given.stderr.as_raw_fd(),
        work: given.work.as_raw_fd(),
        tasks,
        limits: [
            Some((libc::RLIMIT_CORE as c_int, NO_CORE)),
            limits
                .open_files
                .map(|limit| (libc::RLIMIT_NOFILE as c_int, limit)),
            limits
                .processes
                .map(|limit| (libc::RLIMIT_NPROC as c_int, limit)),
            limits
                .file_bytes
                .map(|limit| (libc::RLIMIT_FSIZE as c_int, limit)),
        ],
        oom_score_adj: oom_score_adj.transpose().map_err(invalid)?,
        nice: program.nice,
        user: program.user,
        parent: std::process::id().cast_signed(),
        failed: room.failure(),
    };
    let started = match born_in {
        None => clone(&mut plan, room),
        Some(cgroup) => fork_into(&mut plan, cgroup),
    };
    let pid = started.map_err(|error| StartError {
        step: Step::Session,
        error,
    })?;
    match room.failed() {
        None => Ok(pid),
        Some((step, errno)) => Err(StartError {
            step,
            error: io::Error::from_raw_os_error(errno),
        }),
    }
}

/// The memory in which the child does its work, made before it is known what to start: a stack of its own, and above it a place to say
/// what failed. The child shares it, whether or not it shares the rest.
pub(crate) struct Room(*mut c_void);

/// Where what failed is said.
const FAILURE_AT: usize = STACK_BYTES;
/// Of whole pages of any size that is in use.
const ROOM_BYTES: usize = 2 * STACK_BYTES;

impl Room {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: touches no memory that is there already.
        let base = unsafe { libc::mmap(ptr::null_mut(), ROOM_BYTES, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let room = Self(base);
        room.clear();
        // The page of the stack that will be used is there from now on.
        // SAFETY: the last byte of the stack.
        unsafe { ptr::write_volatile(room.stack().cast::<u8>().sub(1), 0) };
        Ok(room)
    }

    /// One past the end of the stack, page-aligned, as every ABI wants its stack at least.
    fn stack(&self) -> *mut c_void {
        // SAFETY: within the mapping.
        unsafe { self.0.byte_add(STACK_BYTES) }
    }

    fn failure(&self) -> *mut Option<Failed> {
        // SAFETY: within the mapping, aligned to a page, and with room behind it.
        unsafe { self.0.byte_add(FAILURE_AT) }.cast()
    }

    fn clear(&self) {
        // SAFETY: the place is valid, and nobody else writes while there is no child.
        unsafe { ptr::write_volatile(self.failure(), None) };
    }

    /// What the child has written, which is the program or gone by now.
    fn failed(&self) -> Option<Failed> {
        // SAFETY: `clear` has written a value, and only valid ones have followed.
        unsafe { ptr::read_volatile(self.failure()) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: maps nothing that is still used: the child has executed the program, or ended.
        unsafe { libc::munmap(self.0, ROOM_BYTES) };
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([ptr::null()]).collect()
}

fn clone(plan: &mut Plan, room: &Room) -> io::Result<i32> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the shim has one thread, which CLONE_VFORK suspends until the child has executed the program or ended, so that stack and
    // plan outlive their use and nothing else touches them; `become_program` does not return to a frame of ours.
    let pid = unsafe {
        libc::clone(
            become_program,
            room.stack(),
            flags,
            ptr::from_mut(plan).cast(),
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pid)
}

/// `struct clone_args` (clone(2), `linux/sched.h`).
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Too large for the type that the flags have elsewhere.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks the child into a cgroup of version 2 (`CLONE_INTO_CGROUP`, clone(2), Linux 5.7).
fn fork_into(plan: &mut Plan, cgroup: BorrowedFd<'_>) -> io::Result<i32> {
    let args = CloneArgs {
        flags: libc::CLONE_VFORK as u64 | CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without a stack and without shared memory this is fork(2), of a process with one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if pid == 0 {
        become_program(ptr::from_mut(plan).cast());
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(pid).map_err(io::Error::other)
}

extern "C" fn become_program(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: `clone` was given a valid plan, and its owner is suspended.
    let failed = unsafe { prepare(&*plan).and_then(|()| execute(&*plan)) };
    if let Err(failed) = failed {
        // SAFETY: as above.
        unsafe { ptr::write_volatile((*plan).failed, Some(failed)) };
    }
    // The exit handlers are those of the shim, and stay unrun.
    super::sys::exit_now(127)
}

type Failed = (Step, c_int);

/// Names the step that failed.
fn step(step: Step, answer: c_long) -> Result<c_long, Failed> {
    if answer < 0 {
        // SAFETY: the address of this thread's errno is always valid.
        return Err((step, unsafe { *libc::__errno_location() }));
    }
    Ok(answer)
}

/// Becomes what the program is to find itself as.
///
/// # Safety
/// Only in a child that is about to execute a program.
unsafe fn prepare(plan: &Plan) -> Result<(), Failed> {
    // SAFETY: system calls on numbers, and on memory of the plan that is valid and terminated as they want it.
    unsafe {
        step(Step::Session, libc::setsid().into())?;
        if let Some(tasks) = plan.tasks {
            // Itself: then no lock is needed that waits (see `cgroup`).
            let written = libc::write(tasks, c"0".as_ptr().cast(), 1);
            step(Step::Cgroup, written as c_long)?;
        }
        for (resource, limit) in plan.limits.iter().flatten() {
            let limit = libc::rlimit {
                rlim_cur: *limit as libc::rlim_t,
                rlim_max: *limit as libc::rlim_t,
            };
            let none = ptr::null_mut::<libc::rlimit>();
            let set = libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, none);
            step(Step::Limits, set)?;
        }
        if let Some(score) = &plan.oom_score_adj {
            set_oom_score_adj(score)?;
        }
        if let Some(nice) = plan.nice {
            step(
                Step::Niceness,
                libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice),
            )?;
        }
        libc::umask(0o077);
        step(Step::Directory, libc::fchdir(plan.work).into())?;
        // All of the shim's descriptors are beyond 2 and close at exec; duplicates do not.
        for (from, to) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            step(
                Step::Descriptors,
                libc::syscall(libc::SYS_dup3, from, to, 0),
            )?;
        }
        if let Some((uid, gid)) = plan.user {
            // The raw calls: the wrappers of the C library reach out to all threads of the process whose memory this is.
            step(
                Step::User,
                libc::syscall(libc::SYS_setgroups, 0, ptr::null::<u32>()),
            )?;
            step(
                Step::User,
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
            )?;
            step(
                Step::User,
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            )?;
        }
        step(
            Step::Privileges,
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into(),
        )?;
        // A change of user clears this, so it comes after. If the shim is killed, the program goes with it.
        step(
            Step::Parent,
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into(),
        )?;
        if libc::getppid() != plan.parent {
            return Err((Step::Parent, libc::ESRCH));
        }
        // The shim has blocked all signals, and given all of them their default disposition. 8: the size of the kernel's set.
        let none = [0_u64; 1];
        let old = ptr::null_mut::<u64>();
        let set = libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            none.as_ptr(),
            old,
            8,
        );
        step(Step::Signals, set)?;
    }
    Ok(())
}

/// # Safety
/// As [`prepare`].
unsafe fn set_oom_score_adj(score: &CString) -> Result<(), Failed> {
    // SAFETY: the paths and the text are terminated and outlive the calls.
    unsafe {
        let path = c"/proc/self/oom_score_adj".as_ptr();
        let file = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        step(Step::Memory, file.into())?;
        let text = score.as_bytes();
        let written = libc::write(file, text.as_ptr().cast(), text.len());
        step(Step::Memory, written as c_long)?;
        libc::close(file);
    }
    Ok(())
}

/// # Safety
/// As [`prepare`].
unsafe fn execute(plan: &Plan) -> Result<(), Failed> {
    // SAFETY: path, arguments and environment are terminated as execve(2) wants them and live until it is done.
    unsafe { libc::syscall(libc::SYS_execve, plan.path, plan.args, plan.env) };
    step(Step::Execute, -1).map(drop)
}
