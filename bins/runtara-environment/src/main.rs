//! The server: keeps durable workflow instances alive.

fn main() {}
