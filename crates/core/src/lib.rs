//! The instance protocol: what a running instance may ask and say.
