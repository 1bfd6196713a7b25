//! What people ask of the environment: images, instances, signals, lists.
