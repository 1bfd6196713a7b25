//! Gives its input as output: from `RUNTARA_INPUT_FILE`, else from standard input.

use std::io::{self, Read as _};
use std::{env, fs};

use runtara_test_programs::print_result;

fn main() -> io::Result<()> {
    let input = match env::var_os("RUNTARA_INPUT_FILE") {
        Some(path) => fs::read(path)?,
        None => {
            let mut input = Vec::new();
            io::stdin().read_to_end(&mut input)?;
            input
        }
    };
    print_result(&serde_json::from_slice(&input)?)
}
