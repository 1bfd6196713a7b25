//! Does nothing.

fn main() {
    runtara_test_programs::sleep_forever()
}
