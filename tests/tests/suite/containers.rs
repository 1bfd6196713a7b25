//! Images in containers: what they are made of, what they reach, what they may take, what becomes of them.

mod durability;
mod ends;
mod hostile;
mod images;
mod isolation;
mod network;
mod programs;
mod registrations;
mod settings;
