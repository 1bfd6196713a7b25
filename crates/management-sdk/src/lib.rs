//! An async client for everything the environment offers.
