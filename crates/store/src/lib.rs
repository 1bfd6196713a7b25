//! The only door to durable state: PostgreSQL, SQLite and an in-memory reference model.
