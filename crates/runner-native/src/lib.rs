//! Runs images as native processes of the host.
