//! Work that waits for files.

use std::io;

/// Does work with files on the pool that tokio has for it.
///
/// # Errors
/// What the work reported, or that it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}
