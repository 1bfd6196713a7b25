//! The main function of a durable program.

use std::future::Future;
use std::process::ExitCode;

use serde::Serialize;

use crate::error::{BoxError, chain};
use crate::instance::Instance;
use crate::{Error, Settings};

/// `EX_TEMPFAIL` of sysexits(3): nothing was said, a later run may succeed.
const EXIT_TROUBLE: u8 = 75;
/// `EX_CONFIG` of sysexits(3).
const EXIT_SETTINGS: u8 = 78;

/// Runs a workflow as the whole of a program: connects, calls it, and says how it ended.
///
/// | the workflow | is told to the server | exit code |
/// |---|---|---|
/// | gives a value | completed, with the value as output | 0 |
/// | gives an error | failed, with the error and its causes | 1 |
/// | was cancelled or paused, or another run has taken over | what belongs to it, else nothing | 0 |
/// | could not reach the server, or met a fault of it | nothing: a later run goes on from the checkpoints | 75 |
/// | was given wrong settings | nothing | 78 |
/// | panics | nothing: a later run goes on from the checkpoints | 101 |
///
/// The workflow runs on a single-threaded runtime. A program that wants another one calls [`drive`] in it.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use runtara_sdk::{Error, Instance};
///
/// async fn greet(instance: Instance) -> Result<String, Error> {
///     let name: String = instance.input().await?;
///     instance.checkpoint("greet", || async { format!("Hello, {name}!") }).await
/// }
///
/// fn main() -> ExitCode {
///     runtara_sdk::run(greet)
/// }
/// ```
pub fn run<T, E, F, Fut>(workflow: F) -> ExitCode
where
    T: Serialize,
    E: Into<BoxError>,
    F: FnOnce(Instance) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("the async runtime could not be started: {error}");
            return ExitCode::from(EXIT_TROUBLE);
        }
    };
    let code = runtime.block_on(drive(workflow));
    // The last word is said: a blocking call that hangs must not keep the process.
    runtime.shutdown_background();
    code
}

/// Like [`run`], in the runtime of the caller.
pub async fn drive<T, E, F, Fut>(workflow: F) -> ExitCode
where
    T: Serialize,
    E: Into<BoxError>,
    F: FnOnce(Instance) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    match Settings::from_env() {
        Ok(settings) => drive_with(settings, workflow).await,
        Err(error) => code_of(&error),
    }
}

/// Like [`drive`], with settings from elsewhere.
pub async fn drive_with<T, E, F, Fut>(settings: Settings, workflow: F) -> ExitCode
where
    T: Serialize,
    E: Into<BoxError>,
    F: FnOnce(Instance) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    match Instance::connect(settings).await {
        Ok(instance) => {
            let outcome = workflow(instance.clone()).await;
            conclude(&instance, outcome.map_err(Into::into)).await
        }
        Err(error) => code_of(&error),
    }
}

/// Says how the workflow ended, if that was not said yet.
async fn conclude<T: Serialize>(instance: &Instance, outcome: Result<T, BoxError>) -> ExitCode {
    if instance.leaving().reason().is_some() {
        return match instance.acknowledge().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => code_of(&error),
        };
    }
    let failure = match outcome {
        Ok(_) if instance.has_spoken() => return ExitCode::SUCCESS,
        Ok(output) => match instance.complete(&output).await {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) if instance.is_in_trouble() || error.ends_run() => return code_of(&error),
            Err(error) => chain(&error),
        },
        Err(error) => chain(error.as_ref()),
    };
    let failure = instance.settings().endpoint.redact(&failure);
    eprintln!("{failure}");
    if instance.is_in_trouble() {
        // The error may well come from that: to report it would make a passing fault the end of the instance.
        return ExitCode::from(EXIT_TROUBLE);
    }
    if instance.has_spoken() {
        return ExitCode::FAILURE;
    }
    match instance.fail(&failure).await {
        Ok(()) => ExitCode::FAILURE,
        Err(error) => code_of(&error),
    }
}

fn code_of(error: &Error) -> ExitCode {
    if error.ends_run() {
        return ExitCode::SUCCESS;
    }
    eprintln!("{}", chain(error));
    match error {
        Error::Settings { .. } => ExitCode::from(EXIT_SETTINGS),
        error if error.is_trouble() => ExitCode::from(EXIT_TROUBLE),
        _ => ExitCode::FAILURE,
    }
}
