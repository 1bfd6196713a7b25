//! Ids, values and the state machine of durable instances: pure, no I/O, no async.
