//! Write durable programs in Rust: checkpoints, sleeps and signals that survive any crash.
