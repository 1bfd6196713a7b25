//! Registered programs by content: blobs, detection, safe storage.
