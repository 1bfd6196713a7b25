//! What only the SQLite store promises: one process, durable answers, and going on after failures.

#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sqlite {
    mod crash;
    mod failures;
    mod lock;
    mod older;
    mod power;
    mod support;
    mod whole_life;
}
