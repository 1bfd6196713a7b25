//! Running other programs.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::Error;
use crate::interrupt;

/// How long a child may take to leave after Ctrl-C before it is asked with SIGTERM, then killed.
const GRACE: Duration = Duration::from_secs(15);
/// How much of a failed command's captured output an error shows: its end, where the cause is.
const SHOWN_OUTPUT: usize = 4000;

/// Gives the root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Gives the directory in which cargo builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |it| root().join(it))
}

/// Prepares a call of the cargo that runs us, in the root of the workspace.
pub(crate) fn cargo<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    // What `cargo run` told xtask about xtask must not reach the builds of other packages.
    leave_out(&mut command, |name| {
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    });
    command
}

/// Leaves variables of ours out of those that a command is given.
pub(crate) fn leave_out(command: &mut Command, is_unwanted: impl Fn(&str) -> bool) {
    for (name, _) in std::env::vars_os() {
        if is_unwanted(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
}

/// Runs a command in the open: its line is printed, its output goes where ours goes.
///
/// # Errors
/// When it cannot be started, does not succeed, or the developer asks to end.
pub(crate) fn run(command: &mut Command) -> Result<(), Error> {
    interrupt::check()?;
    let line = line(command);
    eprintln!("    $ {line}");
    let mut child = command
        .spawn()
        .map_err(Error::io(format!("run `{line}`")))?;
    let status = wait(&mut child).map_err(Error::io(format!("wait for `{line}`")))?;
    interrupt::check()?;
    judge(line, status, String::new())
}

/// Runs a command unseen and gives its standard output; an error shows the end of all it printed.
///
/// The command is in a process group of its own: the Ctrl-C that ends us must not cut it short,
/// because what stops a database is such a command.
pub(crate) fn capture(command: &mut Command) -> Result<String, Error> {
    let line = line(command);
    let output = command
        .process_group(0)
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io(format!("run `{line}`")))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let printed = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
    judge(line, output.status, shown(&printed))?;
    Ok(stdout)
}

/// Sends a signal; that the process has left already is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // ESRCH, the only likely failure, means what the caller wants: nobody is there.
        let _gone = kill(Pid::from_raw(pid), signal);
    }
}

fn judge(command: String, status: ExitStatus, output: String) -> Result<(), Error> {
    if status.success() {
        Ok(())
    } else {
        Err(Error::Failed {
            command,
            status,
            output,
        })
    }
}

/// Waits for a child. After Ctrl-C, which the terminal sends to the child too, the child has some
/// time to leave; SIGTERM to xtask alone reaches it late, but reaches it.
fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    let mut asked: Option<Instant> = None;
    let mut terminated = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let signals = interrupt::count();
        if signals > 0 {
            let waited = asked.get_or_insert_with(Instant::now).elapsed();
            if !terminated && (waited > GRACE || signals > 1) {
                signal(child.id(), Signal::SIGTERM);
                terminated = true;
            }
            if waited > 2 * GRACE || signals > 2 {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        } else {
            // The failure of this pause is the interruption that the next round sees.
            let _interrupted = interrupt::pause(Duration::from_millis(20));
        }
    }
}

/// Gives the command as a person would type it.
fn line(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={}",
                name.to_string_lossy(),
                quoted(&value.to_string_lossy())
            ));
        }
    }
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    words.push(name.to_string_lossy().into_owned());
    words.extend(
        command
            .get_args()
            .map(|argument| quoted(&argument.to_string_lossy())),
    );
    words.join(" ")
}

/// Quotes a word for a POSIX shell where it needs it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn shown(printed: &str) -> String {
    let printed = printed.trim();
    if printed.is_empty() {
        return String::new();
    }
    let cut = printed.len().saturating_sub(SHOWN_OUTPUT);
    format!(":\n{}", &printed[printed.ceil_char_boundary(cut)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/env");
        command.args(["-i", "it's", "", "a=b"]).env("LANG", "C");
        assert_eq!(line(&command), r"LANG=C env -i 'it'\''s' '' a=b");
    }

    #[test]
    fn a_failed_command_shows_what_it_printed() {
        let error = capture(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .expect_err("it exits with 3");
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.contains("out\nerr"),
            "{text}"
        );
    }

    #[test]
    fn long_output_is_cut_at_a_character() {
        let text = shown(&"ä".repeat(SHOWN_OUTPUT));
        assert!(
            text.len() <= SHOWN_OUTPUT + 2 && text.ends_with('ä'),
            "{}",
            text.len()
        );
    }
}
