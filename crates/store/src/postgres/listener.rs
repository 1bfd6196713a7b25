//! Hears what other nodes tell, as long as there are any.

use std::time::Duration;

use runtara_domain::InstanceId;
use sqlx::postgres::{PgListener, PgNotification};
use sqlx::{Executor as _, PgPool};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::herald::{CHANGED, DUE, Herald, NODES};
use crate::Nudges;

/// When nothing was heard for so long, it is asked whether the connection lives: one that was cut without a word would be listened to
/// for ever.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the answer to that, or a new connection, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(500);

/// Listens until it is closed.
pub(super) async fn listen(
    pool: PgPool,
    herald: Herald,
    nudges: Nudges,
    closed: CancellationToken,
) {
    let mut others = herald.others();
    let listening = async {
        while others.wait_for(|others| *others).await.is_ok() {
            let alone = others.clone();
            tokio::select! {
                () = while_connected(&pool, &herald, &nudges) => {}
                () = until_alone(alone) => {}
            }
        }
    };
    tokio::select! {
        () = closed.cancelled() => {}
        () = listening => {}
    }
}

async fn until_alone(mut others: watch::Receiver<bool>) {
    // Without a sender there is nobody left to listen for.
    let _alone = others.wait_for(|others| !others).await;
}

/// Listens for as long as a connection lasts.
async fn while_connected(pool: &PgPool, herald: &Herald, nudges: &Nudges) {
    let connected = timeout(PATIENCE, connect(pool)).await;
    let mut listener = match connected {
        Ok(Ok(listener)) => listener,
        failed => {
            let error = failed.err().map(|late| late.to_string());
            tracing::debug!(error, "cannot listen to other nodes yet");
            return sleep(PAUSE).await;
        }
    };
    // Whatever was told before is known to nobody here.
    nudges.missed();
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => hear(&notification, herald, nudges),
            Ok(Ok(None) | Err(_)) => break,
            Err(_) => {
                let asked = timeout(PATIENCE, (&mut listener).execute("select 1")).await;
                if !matches!(asked, Ok(Ok(_))) {
                    break;
                }
            }
        }
    }
    nudges.missed();
}

async fn connect(pool: &PgPool) -> sqlx::Result<PgListener> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([DUE, CHANGED, NODES]).await?;
    Ok(listener)
}

fn hear(notification: &PgNotification, herald: &Herald, nudges: &Nudges) {
    let payload = notification.payload();
    let (sender, ids) = payload.split_once('\n').unwrap_or((payload, ""));
    if sender == herald.sender() {
        return;
    }
    match notification.channel() {
        DUE => nudges.due(),
        NODES => nudges.node_asked(),
        _ if ids.is_empty() => nudges.missed(),
        _ => {
            for id in ids.lines().filter_map(|id| InstanceId::new(id).ok()) {
                nudges.look_at_run(&id);
                nudges.changed(&id);
            }
        }
    }
}
