//! The command line of the runtara environment.

fn main() {}
