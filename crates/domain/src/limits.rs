//! Every bound on what comes in, in one place. Sizes are bytes.

/// Longest tenant, instance and image id, and longest image name.
pub const ID_BYTES: usize = 255;
/// Longest checkpoint and signal id.
pub const CHECKPOINT_ID_BYTES: usize = 2_048;
/// Largest state of one checkpoint, input of a start and output of an instance: what fits, base64-encoded, into a body of
/// [`BODY_BYTES`].
pub const STATE_BYTES: usize = 48 * 1024 * 1024;
/// Largest JSON body on either port.
pub const BODY_BYTES: usize = 64 * 1024 * 1024;
/// Largest payload of one event.
pub const EVENT_PAYLOAD_BYTES: usize = 1024 * 1024;
/// Longest event subtype.
pub const EVENT_SUBTYPE_BYTES: usize = 255;
/// Largest payload of a signal.
pub const SIGNAL_PAYLOAD_BYTES: usize = 256 * 1024;
/// Longest error text that is kept; of a longer one the end is kept.
pub const ERROR_BYTES: usize = 64 * 1024;
/// How much of the end of the standard error of the last run is kept with the instance.
pub const STDERR_BYTES: usize = 16 * 1024;
/// Largest metadata of an image.
pub const METADATA_BYTES: usize = 64 * 1024;
/// Longest description of an image.
pub const DESCRIPTION_BYTES: usize = 8 * 1024;
/// Most labels of one image or instance.
pub const LABELS: usize = 64;
/// Longest key of a label.
pub const LABEL_KEY_BYTES: usize = 63;
/// Longest value of a label.
pub const LABEL_VALUE_BYTES: usize = 255;
/// Most variables in the `env` of a start.
pub const ENV_VARIABLES: usize = 512;
/// Largest `env` of a start, names and values together.
pub const ENV_BYTES: usize = 256 * 1024;
/// Most arguments of a start, and their largest total.
pub const ARGS: usize = 512;
/// Largest total of the arguments of a start.
pub const ARGS_BYTES: usize = 128 * 1024;
/// Most rules by which an image or a start says which hosts its program may call.
pub const ALLOWED_HOSTS: usize = 64;
/// Most bytes of them all.
pub const ALLOWED_HOSTS_BYTES: usize = 4 * 1024;
/// Most rows of one page; a larger `limit` is brought down to it.
pub const PAGE_ROWS: u32 = 1_000;
/// A page of events or steps ends with the row by which what they carry reaches so many bytes; each row may carry
/// [`EVENT_PAYLOAD_BYTES`].
pub const PAGE_BYTES: u64 = 8 * 1024 * 1024;
/// Rows of a page when none are named, as published clients expect.
pub const PAGE_ROWS_DEFAULT: u32 = 100;
/// Up to this many matches a total is counted exactly; above it, see the store's `Total`.
pub const EXACT_TOTAL: u64 = 10_000;

/// Running time of one run unless the start says otherwise, in milliseconds.
pub const RUN_TIMEOUT_MS: u64 = 3_600_000;
/// Longest running time a start may ask for, in milliseconds: the most seconds that 32 bits count, which is what people write for none.
pub const RUN_TIMEOUT_MAX_MS: u64 = u32::MAX as u64 * 1_000;
/// Launches without progress that are allowed unless the start says otherwise, the first included.
pub const MAX_ATTEMPTS: u32 = 3;
/// Most `max_attempts` a start may ask for.
pub const MAX_ATTEMPTS_MAX: u32 = 1_000;
/// Fewest events to which an instance may be bounded: those that repeated calls are recognised by are among the newest.
pub const MAX_EVENTS_LEAST: u32 = 100;
/// Relaunches of one instance in all, after which it fails whatever else holds.
pub const RELAUNCHES: u32 = 1_000;
/// Uncounted relaunches without progress, against a program that takes the server down with it.
pub const INTERRUPTIONS: u32 = 50;
/// First pause before a relaunch after a crash, in milliseconds; it doubles up to [`BACKOFF_MAX_MS`].
pub const BACKOFF_MS: u64 = 1_000;
/// Longest pause before a relaunch after a crash, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 60_000;
/// Longest pause before another attempt at a launch that could not be made, in milliseconds (five minutes): the host, or what its operator
/// allows, may stay as it is for months, and thousands of instances may wait for it.
pub const POSTPONED_MAX_MS: u64 = 300_000;
/// A crash after a longer running time than this begins with the first pause again, in milliseconds.
pub const BACKOFF_RESET_MS: u64 = 60_000;
/// How long a run may stay after its own last word before it is killed, in milliseconds.
pub const LEAVE_MS: u64 = 10_000;
/// A sign of life is noted only if the last one that was is at least so old, in milliseconds: so that a run that calls often does
/// not have its row written for each call that changes nothing else. Who judges by signs of life must allow for as much.
pub const SIGN_OF_LIFE_MS: u64 = 5_000;
/// Shortest time for which a run may be told to be silent at most, in milliseconds: a shorter one could not be told from the gaps between
/// the signs of life that are noted.
pub const HEARTBEAT_TIMEOUT_MIN_MS: u64 = 2 * SIGN_OF_LIFE_MS;
/// Longest one, in milliseconds: as for a running time.
pub const HEARTBEAT_TIMEOUT_MAX_MS: u64 = RUN_TIMEOUT_MAX_MS;
/// Longest held call unless the client's own time-out asks for less, in milliseconds.
pub const HOLD_MS: u64 = 10_000;
/// Longest grace period of a stop, in milliseconds (an hour).
pub const GRACE_MAX_MS: u64 = 3_600_000;
/// Longest durable sleep and longest delay of a start, in milliseconds (a hundred years).
pub const SLEEP_MAX_MS: u64 = 100 * 366 * 86_400_000;
/// How long the lease of a node lasts, in milliseconds, by the store's clock. It is renewed three times as often.
pub const NODE_LEASE_MS: u64 = 15_000;
/// For how long a node may go without renewing its lease, in milliseconds, counted from before it asked: then it ends its own runs, if there
/// are other nodes. What is left until [`NODE_LEASE_MS`] is the time for that.
pub const NODE_UNRENEWED_MS: u64 = 10_000;
/// Most nodes of a list.
pub const NODES_LISTED: u32 = 1_000;
/// How long a node without a lease stays on the list, in milliseconds (a day).
pub const NODE_KEPT_MS: u64 = 86_400_000;
