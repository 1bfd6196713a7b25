//! Black-box suites against the real server process.
