//! The launcher of runs for servers whose own program cannot be executed again.

fn main() -> std::process::ExitCode {
    runtara_runner::shim::main()
}
