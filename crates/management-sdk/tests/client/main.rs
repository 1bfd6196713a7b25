//! The client against a server that answers as a test says.

mod calls;
mod connection;
mod fake;
mod looking;
mod streams;

use std::time::Duration;

use runtara_management_sdk::Client;

/// A client of `fake` for the tenant `acme`, with two quick repeats.
fn client(fake: &fake::Fake) -> Client {
    Client::builder(fake.url())
        .tenant("acme")
        .retries(2, Duration::from_millis(1))
        .build()
        .expect("a valid address")
}
