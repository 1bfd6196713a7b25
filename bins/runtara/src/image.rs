//! `runtara image …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use runtara_management_sdk::{Client, Image, ImageFilter};

use crate::failure::Failure;
use crate::lifecycle::{each, told};
use crate::pull::{self, PullArgs};
use crate::screen::Screen;
use crate::settings::facts;
use crate::table::{Cell, Table, Tint};
use crate::text::{moment, now_ms, printable, relative};
use crate::upload::{Described, Line};

/// Register, list, show and delete images
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Upload a file and register it
    Push(Box<PushArgs>),
    /// Pull a container image from a registry and register it
    Pull(Box<PullArgs>),
    /// List images
    Ls(LsArgs),
    /// Show an image
    Show {
        /// Name or id of the image
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// Delete images that no instance needs
    Rm {
        /// Names or ids of the images
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
}

/// Upload a file and register it
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The program: an executable, a script, a WebAssembly module, or a container image as an archive
    file: PathBuf,
    /// Its name; that of the file if absent, without an ending such as .wasm, .sh or .tar.gz
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    described: Described,
    /// Name or id of the container image to lay the program or script on
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
}

/// List images
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only those with this label, may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// All of them, page by page; as JSON one object per line
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// Carries one of them out.
pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    command: ImageCommand,
) -> Result<(), Failure> {
    match command {
        ImageCommand::Push(args) => push(client, screen, *args).await,
        ImageCommand::Pull(args) => pull::run(client, screen, *args).await,
        ImageCommand::Ls(args) => ls(client, screen, args).await,
        ImageCommand::Show { image } => show(client, screen, &image).await,
        ImageCommand::Rm { images } => {
            let delete = async |screen: &mut Screen, name: &str| {
                let image = client.find_image(name).await?;
                client.delete_image(&image.image_id).await?;
                told(screen, name, "deleted")
            };
            each(screen, &images, delete).await
        }
    }
}

async fn push(client: &Client, screen: &mut Screen, args: PushArgs) -> Result<(), Failure> {
    let name = match args.name {
        Some(name) => name,
        None => name_of(&args.file)?,
    };
    let mut registration = args.described.registration(&name);
    registration.base = args.base;
    let line = Line::begin(screen, "pushing", &name);
    let result = client
        .upload_image_file(&registration, &args.file, line.uploading())
        .await;
    screen.clear();
    let registered = result?;
    if screen.json {
        screen.json(&registered)?;
    } else {
        screen.line(&printable(&registered.image_id))?;
    }
    Ok(())
}

/// Endings that say what a file is, the longest first. Whatever else follows a dot belongs to the name, as in `orders-1.2`.
const KNOWN_ENDINGS: [&str; 6] = [".tar.gz", ".tar.zst", ".tgz", ".tar", ".wasm", ".sh"];

fn name_of(file: &std::path::Path) -> Result<String, Failure> {
    let missing = || {
        Failure::Usage(format!(
            "{} has no name that can be an image's, give one with --name",
            file.display()
        ))
    };
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(missing)?;
    let mut stems = KNOWN_ENDINGS
        .iter()
        .filter_map(|ending| name.strip_suffix(ending));
    match stems.next().unwrap_or(name) {
        "" => Err(missing()),
        stem => Ok(stem.to_owned()),
    }
}

async fn ls(client: &Client, screen: &mut Screen, args: LsArgs) -> Result<(), Failure> {
    let mut filter = ImageFilter::new().limit(if args.all { 1000 } else { args.limit });
    filter.labels = Some(args.labels);
    let mut with_head = true;
    loop {
        let page = client.images(&filter).await?;
        match (screen.json, args.all) {
            (true, true) => page
                .items
                .iter()
                .try_for_each(|image| screen.json_line(image))?,
            (true, false) => screen.json(&page)?,
            (false, _) => screen.table(&table(&page.items, now_ms()), with_head)?,
        }
        with_head = false;
        let more = page
            .next_cursor
            .filter(|cursor| Some(cursor) != filter.cursor.as_ref());
        match more {
            Some(cursor) if args.all => filter.cursor = Some(cursor),
            Some(_) if !screen.json => {
                screen.note(&format!(
                    "{} of {}; --all for the rest",
                    page.items.len(),
                    page.total_count
                ));
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}

fn table(images: &[Image], now: i64) -> Table {
    let mut table = Table::new(["NAME", "KIND", "CREATED", "ID", "LABELS"]);
    for image in images {
        table.row([
            Cell::from(&image.name),
            image.runner_type.as_str().into(),
            relative(image.created_at_ms, now).into(),
            Cell::new(&image.image_id, Tint::Dim),
            labels_text(&image.labels).into(),
        ]);
    }
    table
}

/// Labels in one cell.
pub(crate) fn labels_text(labels: &runtara_management_sdk::Labels) -> String {
    let pairs: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

async fn show(client: &Client, screen: &mut Screen, image: &str) -> Result<(), Failure> {
    let image = client.find_image(image).await?;
    if screen.json {
        return Ok(screen.json(&image)?);
    }
    let more: Vec<_> = image
        .more
        .iter()
        .filter(|(_, value)| !value.is_null())
        .collect();
    let mut rows = vec![
        ("name", Some(Cell::from(&image.name))),
        ("id", Some(Cell::from(&image.image_id))),
        ("tenant", Some(Cell::from(&image.tenant_id))),
        ("kind", Some(Cell::from(image.runner_type.as_str()))),
        ("description", image.description.as_ref().map(Cell::from)),
        ("created", Some(moment(image.created_at_ms).into())),
        (
            "labels",
            (!image.labels.is_empty()).then(|| labels_text(&image.labels).into()),
        ),
    ];
    let asked = facts(&image);
    rows.extend(
        asked
            .iter()
            .map(|(name, cell)| (name.as_str(), cell.clone())),
    );
    for (name, value) in more {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        rows.push((name, Some(text.into())));
    }
    Ok(screen.facts(&rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_are_listed_in_columns() {
        let image: Image = serde_json::from_value(json!({
            "image_id": "4f3c", "tenant_id": "t", "name": "orders", "runner_type": "native", "created_at_ms": 0,
            "labels": {"a": "b", "c": "d"}
        }))
        .unwrap();
        assert_eq!(
            table(&[image], 120_000).render(true, false),
            "NAME    KIND    CREATED  ID    LABELS\norders  native  2m ago   4f3c  a=b,c=d\n"
        );
    }

    #[test]
    fn an_image_is_called_like_its_file() {
        for (file, name) in [
            ("a/orders.wasm", "orders"),
            ("./app-1.2", "app-1.2"),
            ("app-1.2.tar", "app-1.2"),
            ("app-1.2.tar.gz", "app-1.2"),
            ("app-1.2.tar.zst", "app-1.2"),
            ("app.tgz", "app"),
            ("work.sh", "work"),
            ("orders.service", "orders.service"),
        ] {
            assert_eq!(name_of(std::path::Path::new(file)).unwrap(), name);
        }
        for file in ["/", "..", "a/.tar.gz"] {
            let failure = name_of(std::path::Path::new(file)).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{file}");
        }
    }
}
