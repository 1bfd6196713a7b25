-- Times are milliseconds since the Unix epoch. Words (status, reason, kind, …) are stored as text.
--
-- An instance has its public id and a small number of its own, by which everything that belongs to it is kept: rows of one
-- instance lie beside each other, and keys are short. The place of a checkpoint, event or step is
-- `instance * 4294967296 + number within the instance`, so that the table itself is ordered by instance and number and needs no
-- second tree for it.

create table runtara_meta (
    key text primary key,
    value text not null
) strict, without rowid;

create table runtara_nodes (
    node_id text primary key,
    name text not null,
    lease_until integer not null
) strict, without rowid;

create table runtara_images (
    image_id text primary key,
    tenant_id text not null,
    name text not null,
    description text,
    kind text not null,
    digest blob not null,
    size integer not null,
    metadata text,
    labels text,
    created_at integer not null,
    -- 0 once its name was registered again.
    current integer not null default 1,
    -- 1 once somebody deleted it; it is kept for as long as an instance of it is.
    deleted integer not null default 0
) strict;

create unique index runtara_images_name on runtara_images (tenant_id, name)
    where current = 1 and deleted = 0;
create index runtara_images_by_name on runtara_images (name, tenant_id);
create index runtara_images_created on runtara_images (created_at, image_id)
    where current = 1 and deleted = 0;
create index runtara_images_tenant_created on runtara_images (tenant_id, created_at, image_id)
    where current = 1 and deleted = 0;
create index runtara_images_digest on runtara_images (digest);
create index runtara_images_replaced on runtara_images (image_id) where current = 0;
create index runtara_images_deleted on runtara_images (image_id) where deleted = 1;

create table runtara_instances (
    id integer primary key,
    instance_id text not null unique,
    tenant_id text not null,
    image_id text,
    -- The runner kind of the image; null for an instance that registered itself, which is never claimed.
    kind text,
    origin text not null,
    status text not null,
    reason text,
    due_at integer,
    waiting_for text,
    live_node text,
    run_number integer not null,
    token blob,
    claimed_at integer,
    spoke integer not null,
    heartbeat_seen integer not null,
    stored_new integer not null,
    cancel_shown integer not null,
    pause_shown integer not null,
    leave_by integer,
    asked_to_leave integer not null,
    -- 0 or 1 while a call is held: whether the run may be parked meanwhile.
    hold_park integer,
    hold_until integer,
    slept_ms integer not null,
    cancel_at integer,
    cancel_payload blob,
    pause_at integer,
    pause_payload blob,
    resume_waits integer not null,
    crash_count integer not null,
    max_attempts integer,
    backoff integer not null,
    interruptions integer not null,
    relaunches integer not null,
    timeout_ms integer not null,
    request_timeout_ms integer,
    created_at integer not null,
    started_at integer,
    finished_at integer,
    last_seen_at integer,
    checkpoint_id text,
    exit_code integer,
    has_error integer not null,
    has_read_signals integer not null,
    cpu_usec integer not null,
    memory_peak_bytes integer not null,
    running_ms integer not null,
    labels text,
    events_recorded integer not null default 0,
    checkpoints_saved integer not null default 0
) strict;

-- The claim, and when the next instance is due.
create index runtara_instances_due on runtara_instances (due_at, instance_id, kind, tenant_id)
    where due_at is not null and live_node is null;
-- What runs on a node.
create index runtara_instances_live on runtara_instances (live_node, instance_id)
    where live_node is not null;
-- Whose token it is.
create unique index runtara_instances_token on runtara_instances (token) where token is not null;
-- Whether an image is in use.
create index runtara_instances_image_open on runtara_instances (image_id) where finished_at is null;
-- Lists.
create index runtara_instances_created on runtara_instances (created_at, instance_id);
create index runtara_instances_tenant_created
    on runtara_instances (tenant_id, created_at, instance_id);
create index runtara_instances_tenant_status_created
    on runtara_instances (tenant_id, status, created_at, instance_id);
create index runtara_instances_status_created
    on runtara_instances (status, created_at, instance_id);
create index runtara_instances_image_created
    on runtara_instances (image_id, created_at, instance_id);
create index runtara_instances_finished on runtara_instances (finished_at, instance_id, status);
create index runtara_instances_tenant_finished
    on runtara_instances (tenant_id, finished_at, instance_id, status);

create table runtara_instance_labels (
    tenant_id text not null,
    key text not null,
    value text not null,
    created_at integer not null,
    instance_id text not null,
    primary key (tenant_id, key, value, created_at, instance_id)
) strict, without rowid;

create index runtara_instance_labels_value
    on runtara_instance_labels (key, value, created_at, instance_id);
create index runtara_instance_labels_tenant_key
    on runtara_instance_labels (tenant_id, key, created_at, instance_id);
create index runtara_instance_labels_key
    on runtara_instance_labels (key, created_at, instance_id);

-- How many instances there are, kept with each change.
create table runtara_counts (
    tenant_id text not null,
    status text not null,
    instances integer not null,
    primary key (tenant_id, status)
) strict, without rowid;

-- What a start brings along. Large, written once.
create table runtara_inputs (
    instance integer primary key,
    input blob,
    env text,
    args text
) strict;

-- What an instance leaves. Large, written at its end.
create table runtara_results (
    instance integer primary key,
    output blob,
    error text,
    stderr text
) strict;

create table runtara_checkpoints (
    place integer primary key,
    instance integer not null,
    checkpoint_id text not null,
    -- 0 for a plain save, n for the n-th sleep of this name; -1 for the record of a retry, which is no checkpoint.
    version integer not null,
    created_at integer not null,
    run_number integer not null,
    size integer not null,
    request_id text,
    state blob not null
) strict;

create index runtara_checkpoints_name on runtara_checkpoints (instance, checkpoint_id);

-- Custom signals; several of one id, in the order of n, while the current run has read one of them.
create table runtara_signals (
    instance integer not null,
    signal_id text not null,
    n integer not null,
    read_by integer,
    read_request text,
    payload blob,
    primary key (instance, signal_id, n)
) strict, without rowid;

create table runtara_waits (
    instance integer not null,
    kind text not null,
    key text not null,
    n integer not null,
    until integer,
    state_hash blob not null,
    met_by integer not null,
    request_id text,
    primary key (instance, kind, key, n)
) strict, without rowid;

create table runtara_events (
    place integer primary key,
    instance integer not null,
    kind text not null,
    subtype text,
    checkpoint_id text,
    created_at integer not null,
    run_number integer not null,
    request_id text,
    scope_id text,
    parent_scope_id text,
    -- Whether the payload is UTF-8, and so can be searched for a text.
    is_text integer not null,
    payload blob
) strict;

create index runtara_events_request on runtara_events (instance, request_id)
    where request_id is not null;
create index runtara_events_scope_enter on runtara_events (instance, scope_id)
    where subtype = 'scope_enter';

-- One row for each step that began, at the place of its start event; its end is noted when it comes.
create table runtara_steps (
    place integer primary key,
    instance integer not null,
    step_id text not null,
    scope_id text,
    parent_scope_id text,
    step_type text,
    status text not null,
    end_place integer
) strict;

create index runtara_steps_step on runtara_steps (instance, step_id, scope_id);
