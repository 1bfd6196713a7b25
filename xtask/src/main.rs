//! Every chore of a developer, as a verb.

fn main() {}
