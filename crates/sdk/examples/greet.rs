//! Says hello, and thinks about it for a day.

use std::{process::ExitCode, time::Duration};

use runtara_sdk::{Error, Instance};

async fn greet(instance: Instance) -> Result<String, Error> {
    // Done once, whatever happens.
    let hello: String = instance
        .checkpoint("greet", async || "hello".to_owned())
        .await?;
    // A day: a row, no memory.
    instance.sleep("a day", Duration::from_secs(86_400)).await?;
    Ok(hello)
}

fn main() -> ExitCode {
    runtara_sdk::run(greet)
}
