//! What only the SQLite store promises: one process, durable answers, and going on after failures.

#![cfg(feature = "sqlite")]

mod sqlite {
    mod support;
    mod whole_life;
}
