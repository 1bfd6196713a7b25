//! An order, from the reservation of its stock to the receipt.
//!
//! Kill it wherever you like: a later run replays the steps that are done and goes on with the next one. The result names
//! the run in which each step was really done, so it shows that nothing was done twice.

use std::process::ExitCode;
use std::time::Duration;

use runtara_sdk::{Error, Instance, run};
use serde::{Deserialize, Serialize};

/// What the workflow is started with. All of it may be left out.
#[derive(Deserialize)]
#[serde(default)]
struct Order {
    order: String,
    items: Vec<String>,
    /// How long each step works.
    step_ms: u64,
    /// How long the parcel is on its way.
    sleep_ms: u64,
    /// How long to wait for the signal `delivered` after that.
    delivery_ms: u64,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            order: "A-1".to_owned(),
            items: vec!["teapot".to_owned()],
            step_ms: 1_500,
            sleep_ms: 12_000,
            delivery_ms: 7 * 24 * 3_600_000,
        }
    }
}

/// What the person at the door may tell: `{"signed_by": "…"}`.
#[derive(Deserialize)]
struct Delivery {
    signed_by: String,
}

/// A step that was done, and the run that did it.
#[derive(Serialize, Deserialize)]
struct Step {
    step: String,
    run: u32,
}

#[derive(Serialize)]
struct Receipt {
    order: String,
    total_cents: u64,
    delivered: bool,
    signed_by: Option<String>,
    steps: Vec<Step>,
}

fn main() -> ExitCode {
    run(fulfil)
}

async fn fulfil(instance: Instance) -> Result<Receipt, Error> {
    let order = instance.input::<Option<Order>>().await?.unwrap_or_default();
    let total_cents = order.items.iter().map(|item| price_cents(item)).sum();
    let mut steps = Vec::new();

    instance.progress("reserving the stock", 0.0).await?;
    steps.push(work(&instance, "reserve_stock", &order).await?);

    instance.progress("charging the card", 20.0).await?;
    steps.push(work(&instance, "charge_card", &order).await?);

    instance.progress("packing the parcel", 40.0).await?;
    steps.push(work(&instance, "pack_parcel", &order).await?);

    // No process while the parcel is on its way: what is left of the order is a row.
    instance.progress("the parcel is on its way", 60.0).await?;
    let on_its_way = Duration::from_millis(order.sleep_ms);
    instance.sleep("parcel_on_its_way", on_its_way).await?;

    instance.progress("waiting for the delivery", 80.0).await?;
    let limit = Duration::from_millis(order.delivery_ms);
    // `None` outside: it did not come in time. Inside: it came without saying more.
    let signal: Option<Option<Delivery>> = instance.signal_within("delivered", limit).await?;

    instance.progress("sending the receipt", 90.0).await?;
    steps.push(work(&instance, "send_receipt", &order).await?);

    instance.progress("done", 100.0).await?;
    Ok(Receipt {
        order: order.order,
        total_cents,
        delivered: signal.is_some(),
        signed_by: signal.flatten().map(|delivery| delivery.signed_by),
        steps,
    })
}

/// Does a step once; every later run is given the result of the run that did it.
async fn work(instance: &Instance, name: &str, order: &Order) -> Result<Step, Error> {
    let body = || async move {
        // Here an order would call the warehouse or the bank, with "<order>/<name>" as idempotency key.
        tokio::time::sleep(Duration::from_millis(order.step_ms)).await;
        Step {
            step: name.to_owned(),
            run: instance.run_number(),
        }
    };
    instance.checkpoint(name, body).await
}

/// Stands for a price list.
fn price_cents(item: &str) -> u64 {
    500 + 10 * item.len() as u64
}
