//! `runtara image pull`: an image of a registry, handed to the server.
//!
//! This side asks the registry, not the server: credentials stay with the person who has them, and the server fetches nothing that
//! somebody names to it.

use clap::Args;
use runtara_management_sdk::Client;
use runtara_oci_pull::{Credentials, Platform, PullOptions, Pulled, Reference, pull};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::screen::Screen;
use crate::text::printable;
use crate::upload::{Described, Line};

/// Pull a container image from a registry and register it
#[derive(Debug, Args)]
#[command(after_help = CREDENTIALS)]
pub(crate) struct PullArgs {
    /// The name to register it under
    name: String,
    /// The image, such as alpine:3.20, ghcr.io/team/app:1 or ghcr.io/team/app@sha256:…
    #[arg(long, value_name = "REFERENCE")]
    from: Reference,
    /// Which of several images to take, such as linux/arm64; that for Linux on this machine's processor if absent
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Speak plain HTTP with a registry that is not on this machine: whoever is on the way can read and change what is sent
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    described: Described,
}

const CREDENTIALS: &str = "Credentials are those of `docker login`: from $DOCKER_CONFIG/config.json, else ~/.docker/config.json. \
They are shown to the registry and to the token server that it names, and to nobody else. The digest that was pulled is kept with the image: see `runtara image show`.";

/// Carries it out.
pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    args: PullArgs,
) -> Result<(), Failure> {
    // Nobody wants to learn after gigabytes that the server is away. What else it would say, it says to the upload.
    if let Err(error) = client.health().await
        && error.is_unreachable()
    {
        return Err(error.into());
    }
    let source = args.from.to_string();
    let pulled = pulled(screen, &args).await?;
    let mut registration = args.described.registration(&args.name);
    let metadata = metadata(&source, &pulled);
    registration.metadata = Some(metadata.clone());
    let archive = tokio::fs::File::from_std(pulled.archive);
    let line = Line::begin(screen, "pushing", &args.name);
    let result = client
        .upload_image(&registration, archive, Some(pulled.bytes), line.uploading())
        .await;
    screen.clear();
    let registered = result?;
    if screen.json {
        let mut told = json!(registered);
        told["source"] = metadata["source"].clone();
        screen.json(&told)?;
        return Ok(());
    }
    screen.note(&format!("{} for {}", pulled.pinned, pulled.platform));
    screen.line(&printable(&registered.image_id))?;
    Ok(())
}

async fn pulled(screen: &mut Screen, args: &PullArgs) -> Result<Pulled, Failure> {
    let credentials = Credentials::find(&args.from).await?;
    let mut options = PullOptions::default();
    options.plain_http = args.plain_http;
    if let Some(platform) = &args.platform {
        options.platform = platform.clone();
    }
    // Without a name, it is gone when this program is, however that ends.
    let file = tempfile::tempfile()?;
    let mut line = Line::begin(screen, "pulling", &args.from.to_string());
    let progress = |progress: runtara_oci_pull::PullProgress| {
        line.show(progress.received_bytes, Some(progress.total_bytes));
    };
    let result = pull(&args.from, &credentials, &options, file, progress).await;
    screen.clear();
    Ok(result?)
}

/// What is kept with the image: what was asked for, and what it stood for then.
fn metadata(source: &str, pulled: &Pulled) -> Value {
    json!({"source": {
        "reference": source,
        "digest": pulled.digest.to_string(),
        "manifest_digest": pulled.manifest_digest.to_string(),
        "platform": pulled.platform.to_string(),
    }})
}
