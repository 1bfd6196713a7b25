//! The variables, for help and documentation.

/// One variable, for help and documentation.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds if it is not set.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

const fn variable(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        default,
        meaning,
    }
}

/// All variables that a server reads.
pub const VARIABLES: &[Variable] = &[
    variable(
        "RUNTARA_ENVIRONMENT_DATABASE_URL",
        "-",
        "postgres://… or sqlite:…; required by serve",
    ),
    variable(
        "RUNTARA_DATABASE_URL",
        "-",
        "the same, if the one above is not set",
    ),
    variable(
        "RUNTARA_ENV_HTTP_PORT",
        "8002",
        "port of the environment protocol",
    ),
    variable("RUNTARA_ENV_HTTP_BIND", "127.0.0.1", "its address"),
    variable(
        "RUNTARA_CORE_ADDR",
        "127.0.0.1:8001",
        "address of the instance protocol",
    ),
    variable("RUNTARA_CORE_MODE", "auto", "auto, embedded or external"),
    variable(
        "RUNTARA_CORE_HTTP_PORT",
        "- (dev: 8003)",
        "a second port of the instance protocol, on loopback",
    ),
    variable(
        "DATA_DIR",
        ".data",
        "images, run directories, embedded database",
    ),
    variable(
        "RUNTARA_ALLOW_UNAUTHENTICATED",
        "false",
        "allow listening on anything but loopback although nobody is asked who he is",
    ),
    variable(
        "RUNTARA_ALLOWED_HOSTS",
        "-",
        "names and addresses, with commas between them, by which others call ports that are not on loopback",
    ),
    variable(
        "RUNTARA_SKIP_CERT_VERIFICATION",
        "false",
        "handed on to instances: skip TLS verification",
    ),
    variable(
        "RUNTARA_NODE_NAME",
        "host name",
        "what people call this node",
    ),
    variable(
        "RUNTARA_NODE_ADDR",
        "-",
        "where other nodes reach this one, as host:port: it listens there for their requests alone",
    ),
    variable(
        "RUNTARA_MAX_RUNS",
        "1000",
        "most runs at once, or less by their weights",
    ),
    variable(
        "RUNTARA_RUN_WEIGHTS",
        "oci=1,native=1,wasm=1",
        "how many of them one run of each kind counts for",
    ),
    variable(
        "RUNTARA_MAX_RUNS_PER_TENANT",
        "- (any number)",
        "most runs of one tenant at once, over all nodes; what else it has due waits",
    ),
    variable(
        "RUNTARA_MAX_PENDING_PER_TENANT",
        "- (any number)",
        "most instances of one tenant that wait for their first run; a further start is refused",
    ),
    variable(
        "RUNTARA_MAX_IMAGE_BYTES_PER_TENANT",
        "- (any number)",
        "most bytes of all images of one tenant, each content counted once",
    ),
    variable(
        "RUNTARA_SELF_REGISTERED_TIMEOUT",
        "- (for ever)",
        "seconds, 10 and more, for which an instance that registered itself may be silent before it fails",
    ),
    variable("RUNTARA_MAX_IMAGE_BYTES", "2147483648", "largest image"),
    variable(
        "RUNTARA_IMAGE_STORE_URL",
        "-",
        "where the nodes of one database share their images: file:///directory or s3://bucket/prefix; region, endpoint and keys of S3 are AWS_REGION, AWS_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_ALLOW_HTTP without TLS",
    ),
    variable(
        "RUNTARA_IMAGE_CACHE_BYTES",
        "10737418240",
        "how much of what is shared each node keeps, beside what is in use",
    ),
    variable(
        "RUNTARA_MAX_UNPACKED_IMAGE_BYTES",
        "34359738368",
        "largest container image, unpacked",
    ),
    variable(
        "RUNTARA_SLEEP_HOLD_MS",
        "10000",
        "a sleep this near to its end is held; a farther one frees its process",
    ),
    variable(
        "RUNTARA_DB_POOL_SIZE",
        "20",
        "most connections to PostgreSQL",
    ),
    variable(
        "RUNTARA_DB_REQUEST_TIMEOUT_MS",
        "30000",
        "longest statement",
    ),
    variable("RUNTARA_SHUTDOWN_GRACE_MS", "10000", "longest orderly end"),
    variable(
        "RUNTARA_NATIVE_USER",
        "- (not root: this user)",
        "user of native programs; a root server without it refuses native images",
    ),
    variable(
        "RUNTARA_NATIVE_FOR_OCI",
        "false (dev: true)",
        "run plain binaries that are declared oci as native programs where no containers can be made",
    ),
    variable(
        "RUNTARA_NATIVE_OPEN_FILES",
        "-",
        "most open files of a native program",
    ),
    variable(
        "RUNTARA_NATIVE_PROCESSES",
        "-",
        "most processes of their user",
    ),
    variable(
        "RUNTARA_NATIVE_FILE_BYTES",
        "-",
        "largest file that one may write",
    ),
    variable(
        "RUNTARA_NATIVE_OOM_SCORE_ADJ",
        "500",
        "how willingly the kernel kills one when memory runs out",
    ),
    variable(
        "RUNTARA_OCI_RUNTIME",
        "runc",
        "makes containers: a program of PATH, or an absolute path",
    ),
    variable(
        "RUNTARA_NETWORK_MODE",
        "isolated",
        "what containers reach if neither image nor start says: isolated, egress or host",
    ),
    variable(
        "RUNTARA_ALLOWED_NETWORK_MODES",
        "isolated,egress",
        "what they may reach at all",
    ),
    variable(
        "RUNTARA_CONTAINER_MEMORY_BYTES",
        "536870912",
        "their memory, if neither image nor start says; RUNTARA_CONTAINER_MAX_MEMORY_BYTES: at most",
    ),
    variable(
        "RUNTARA_CONTAINER_CPU_MILLICORES",
        "- (what is free)",
        "their processor time, 1000 is one processor; RUNTARA_CONTAINER_MAX_CPU_MILLICORES: at most",
    ),
    variable(
        "RUNTARA_CONTAINER_PIDS",
        "512",
        "their processes and threads; RUNTARA_CONTAINER_MAX_PIDS: at most",
    ),
    variable(
        "RUNTARA_CONTAINER_OPEN_FILES",
        "1024 (up to 524288)",
        "open files of each process; RUNTARA_CONTAINER_MAX_OPEN_FILES: at most",
    ),
    variable(
        "RUNTARA_CONTAINER_WRITABLE_BYTES",
        "67108864",
        "what they may write, a part of their memory; RUNTARA_CONTAINER_MAX_WRITABLE_BYTES: at most",
    ),
    variable(
        "RUNTARA_CONTAINER_ID_BASE",
        "1879048192",
        "the first of the user and group ids that containers have on the host; another for each server of a machine",
    ),
    variable(
        "RUNTARA_CONTAINER_ID_RANGES",
        "4094",
        "how many ranges of 65536 ids follow: one for each container at once",
    ),
    variable(
        "RUNTARA_CONTAINER_KEEP_SETUID",
        "false",
        "keep setuid bits of images",
    ),
    variable(
        "RUNTARA_CONTAINER_OOM_SCORE_ADJ",
        "500",
        "how willingly the kernel kills one when memory runs out",
    ),
    variable(
        "RUNTARA_CONTAINER_RUN_DIR",
        "/run/runtara/<node>",
        "where they are mounted; everybody must be able to pass through",
    ),
    variable(
        "RUNTARA_WASM_MAX_INSTANCES",
        "1000",
        "WebAssembly guests at once, others wait for their turn; address space is set aside for each",
    ),
    variable(
        "RUNTARA_WASM_MEMORY_BYTES",
        "67108864",
        "memory of a guest, if neither image nor start says",
    ),
    variable(
        "RUNTARA_WASM_MAX_MEMORY_BYTES",
        "1073741824",
        "memory of a guest at most",
    ),
    variable(
        "RUNTARA_WASM_MAX_WRITABLE_BYTES",
        "67108864",
        "what the directory may hold at most that a guest asks for",
    ),
    variable(
        "RUNTARA_WASM_ALLOWED_HOSTS",
        "-",
        "hosts that guests with the network egress may call, with commas between them: names, *.name, *, addresses, networks, each with or without a port",
    ),
    variable(
        "RUNTARA_LOG_BYTES",
        "10485760",
        "how much of each stream of a run is kept",
    ),
    variable(
        "RUNTARA_RETENTION",
        "30d",
        "how long ended instances are kept, with all that belongs to them: rules such as 30d, failed=90d, @tenant=7d, failed@tenant=forever",
    ),
    variable(
        "RUNTARA_LOGS_MAX_AGE",
        "30d",
        "how long what ended runs have written is kept: a time such as 12h or 30d, or forever: as long as their instance",
    ),
    variable(
        "RUNTARA_LOGS_MAX_BYTES",
        "10737418240",
        "how much of that is kept on this node: the oldest goes first",
    ),
    variable(
        "RUNTARA_MAX_EVENTS",
        "- (all)",
        "how many events of an instance are kept, if its start does not say; the oldest that its program has reported are folded into one",
    ),
    variable(
        "RUNTARA_IMAGES_UNUSED",
        "forever",
        "after what time a registered image is deleted from which nothing is started and that nothing needs: a time such as 90d, or forever",
    ),
    variable(
        "RUNTARA_CONNECTION_SERVICE_URL",
        "-",
        "handed on as CONNECTION_SERVICE_URL",
    ),
    variable("RUNTARA_OBJECT_MODEL_URL", "-", "handed on"),
    variable("RUNTARA_SDK_BACKEND", "-", "handed on"),
    variable("RUNTARA_LOG_FORMAT", "text", "text or json"),
    variable("RUST_LOG", "info", "what is logged"),
];
