//! Plays a script with the SDK of this repository.

use std::process::ExitCode;
use std::time::Duration;

use runtara_sdk::{BoxError, Instance};
use runtara_test_programs::script::{Action, Checkpoint, Script, Seen, act_alone};
use serde_json::{Value, json};

/// How often it looks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    runtara_sdk::run(play)
}

async fn play(instance: Instance) -> Result<Value, BoxError> {
    let run = instance.run_number();
    let input: Value = instance.input().await?;
    let script = Script::read(&input, run)?;
    let mut seen = Seen::default();
    for action in &script.actions {
        match action {
            Action::Complete(output) => return Ok(output.clone()),
            Action::Branches(branches) => {
                let all = side_by_side(&instance, &script, branches).await?;
                all.into_iter().for_each(|one| seen.merge(one));
            }
            other => act(&instance, &script, other, &mut seen).await?,
        }
    }
    Ok(seen.output(run))
}

async fn side_by_side(
    instance: &Instance,
    script: &Script,
    lists: &[Vec<Action>],
) -> Result<Vec<Seen>, BoxError> {
    let mut branches = instance.branches::<Seen, BoxError>();
    for list in lists {
        branches.add(async move {
            let mut seen = Seen::default();
            for action in list {
                act(instance, script, action, &mut seen).await?;
            }
            Ok(seen)
        });
    }
    branches.finish().await
}

async fn act(
    instance: &Instance,
    script: &Script,
    action: &Action,
    seen: &mut Seen,
) -> Result<(), BoxError> {
    match action {
        Action::Checkpoint(step) => {
            let value = checkpoint(instance, script, step).await?;
            seen.note(&step.id, value);
        }
        Action::Sleep(sleep) => {
            instance
                .sleep(&sleep.id, Duration::from_millis(sleep.ms))
                .await?;
        }
        Action::Signal(id) => {
            let value = instance.signal(id).await?;
            seen.note(id, value);
        }
        Action::WaitSignal(wait) => {
            let value: Option<Value> = match wait.timeout_ms {
                Some(millis) => {
                    let limit = Duration::from_millis(millis);
                    instance.signal_within(&wait.id, limit).await?
                }
                None => Some(instance.signal(&wait.id).await?),
            };
            seen.note(&wait.id, json!(value));
        }
        Action::Poll(_) => instance.poll().await?,
        Action::AwaitOrder(_) => loop {
            instance.poll().await?;
            tokio::time::sleep(POLL_INTERVAL).await;
        },
        Action::Event(event) => instance.event(&event.subtype, &event.payload).await?,
        Action::Progress(progress) => {
            instance
                .progress(&progress.message, progress.percent)
                .await?;
        }
        Action::Heartbeat(_) => instance.heartbeat().await?,
        Action::Retry(retry) => {
            instance
                .report_retry(&retry.id, retry.attempt, &retry.error)
                .await?;
        }
        Action::Fail(error) => return Err(error.clone().into()),
        // Not that of the other programs: it must not stop the branches beside it.
        Action::Work(millis) => tokio::time::sleep(Duration::from_millis(*millis)).await,
        other => act_alone(other)?,
    }
    Ok(())
}

async fn checkpoint(
    instance: &Instance,
    script: &Script,
    step: &Checkpoint,
) -> Result<Value, BoxError> {
    let work = || async {
        let value = script.effect(step)?;
        tokio::time::sleep(Duration::from_millis(step.work_ms)).await;
        Ok::<_, std::io::Error>(value)
    };
    Ok(instance.try_checkpoint(&step.id, work).await?)
}
