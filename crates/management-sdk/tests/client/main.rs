//! The client against a server that answers as a test says.

mod calls;
mod fake;
mod streams;
