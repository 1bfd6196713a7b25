//! The only caller of runners: dispatch, exits, leases, recovery, cleanup.
