//! The SDK against a small server over real sockets.

mod branches;
mod fake;
mod leaving;
mod outages;
mod steps;
mod waits;
