//! Each program does what its name says.

mod scripts;
mod without_a_server;
