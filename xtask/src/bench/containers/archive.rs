//! An image archive of a wanted size.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::command::{capture, run as run_command};
use crate::error::Error;

/// Makes a docker archive in a directory: a program, and so many bytes that nothing compresses.
pub(super) fn archive(place: &Path, program: &Path, size: usize) -> Result<PathBuf, Error> {
    let (tree, image) = (place.join("tree"), place.join("image"));
    let failed = || Error::io(format!("make an image in {}", place.display()));
    for directory in [&tree, &image] {
        fs::create_dir_all(directory).map_err(failed())?;
    }
    for directory in ["proc", "sys", "dev", "tmp", "data", "etc"] {
        fs::create_dir_all(tree.join(directory)).map_err(failed())?;
    }
    fs::copy(program, tree.join("program")).map_err(failed())?;
    fill(&tree.join("ballast"), size).map_err(failed())?;
    tar(&tree, &image.join("layer.tar"))?;
    let layer = digest(&image.join("layer.tar"))?;
    let configuration = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/program"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    });
    let manifest = json!([{"Config": "config.json", "Layers": ["layer.tar"]}]);
    for (name, document) in [("config.json", configuration), ("manifest.json", manifest)] {
        fs::write(image.join(name), document.to_string()).map_err(failed())?;
    }
    let file = place.join("image.tar");
    tar(&image, &file)?;
    Ok(file)
}

fn fill(path: &Path, size: usize) -> io::Result<()> {
    let random = File::open("/dev/urandom")?;
    io::copy(&mut random.take(size as u64), &mut File::create(path)?).map(drop)
}

fn tar(directory: &Path, file: &Path) -> Result<(), Error> {
    let names = fs::read_dir(directory)
        .map_err(Error::io(format!("list {}", directory.display())))?
        .flatten()
        .map(|entry| entry.file_name());
    let mut command = Command::new("tar");
    command.arg("--create").arg("--file").arg(file);
    run_command(command.arg("--directory").arg(directory).args(names))
}

fn digest(file: &Path) -> Result<String, Error> {
    let told = capture(Command::new("sha256sum").arg(file))?;
    let first = told.split_whitespace().next().map(str::to_owned);
    first.ok_or_else(|| Error::Unmet("sha256sum told nothing".to_owned()))
}

/// As images name it (GOARCH of Go).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
