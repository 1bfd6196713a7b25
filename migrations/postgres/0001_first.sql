-- The first schema.
--
-- All names begin with runtara_, because the tables may live in a database that belongs to somebody else's program. Times are
-- milliseconds since the Unix epoch. Ids are compared byte by byte (collation "C"), as the other stores do.
--
-- There are no foreign keys between the tables of instances: each row of them is written by the statement that has just
-- updated, and so locked, the row of its instance, and a purge removes them all with it. A foreign key would look the same row
-- up again for each checkpoint.

-- The one clock by which everything is decided. A function of its own, so that a test can replace it.
create function runtara_now() returns bigint
    language sql stable
    as $$ select floor(date_part('epoch', statement_timestamp()) * 1000)::bigint $$;

-- The text of a payload; null if it is not UTF-8. A NUL, which UTF-8 allows and PostgreSQL does not, is read as another control
-- character.
create function runtara_payload_text(payload bytea) returns text
    language plpgsql immutable
    as $$
declare
    place integer;
begin
    return convert_from(payload, 'UTF8');
exception when others then
    place := position('\x00'::bytea in payload);
    if place = 0 then
        return null;
    end if;
    while place > 0 loop
        payload := set_byte(payload, place - 1, 1);
        place := position('\x00'::bytea in payload);
    end loop;
    begin
        return convert_from(payload, 'UTF8');
    exception when others then
        return null;
    end;
end
$$;

-- Words. They are domains because a check of the table would be read and evaluated anew by each statement that changes a row, also
-- where it changes none of the words: a sixth of the time that the server needs for a checkpoint.
create domain runtara_status as text check (value in
    ('pending', 'running', 'suspended', 'completed', 'failed', 'cancelled'));
create domain runtara_reason as text check (value in
    ('paused', 'sleeping', 'waiting_signal', 'crashed', 'interrupted', 'completed', 'application_error', 'timeout',
     'heartbeat_timeout', 'cancelled'));
create domain runtara_origin as text check (value in ('launched', 'self_registered'));
create domain runtara_runner as text check (value in ('oci', 'native', 'wasm'));
create domain runtara_event as text check (value in
    ('started', 'heartbeat', 'completed', 'failed', 'suspended', 'custom'));
create domain runtara_wait as text check (value in ('sleep', 'signal'));

-- What is known of the database itself: one row.
create table runtara_meta (
    only_row    boolean primary key default true check (only_row),
    database_id text collate "C" not null
);
insert into runtara_meta (database_id) values (gen_random_uuid()::text);

create table runtara_nodes (
    node_id       text collate "C" primary key,
    name          text not null,
    registered_at bigint not null,
    lease_until   bigint not null
);

-- Images --------------------------------------------------------------------------------------------------------------

create table runtara_images (
    image_id    text collate "C" primary key,
    tenant_id   text collate "C" not null,
    name        text collate "C" not null,
    description text,
    kind        runtara_runner not null,
    digest      bytea not null check (length(digest) = 32),
    size        bigint not null,
    metadata    text,
    created_at  bigint not null,
    -- Whether the name has not been registered again since.
    current     boolean not null default true,
    deleted_at  bigint
);
create unique index runtara_images_name on runtara_images (tenant_id, name) where current and deleted_at is null;
create index runtara_images_prefix on runtara_images (name, tenant_id);
create index runtara_images_created on runtara_images (created_at, image_id) where current and deleted_at is null;
create index runtara_images_tenant_created on runtara_images (tenant_id, created_at, image_id)
    where current and deleted_at is null;
create index runtara_images_replaced on runtara_images (image_id) where not current or deleted_at is not null;
create index runtara_images_digest on runtara_images (digest);

create table runtara_image_labels (
    image_id text collate "C" not null references runtara_images on delete cascade,
    key      text collate "C" not null,
    value    text collate "C" not null,
    primary key (image_id, key)
);
create index runtara_image_labels_found on runtara_image_labels (key, value, image_id);

-- Instances -----------------------------------------------------------------------------------------------------------

-- The hot row: all that decides what may happen next, and nothing large. A checkpoint, an event and a heartbeat change no
-- indexed column, so that PostgreSQL updates the row in place (HOT); the free space of each page is for that.
create table runtara_instances (
    instance_id        text collate "C" primary key,
    tenant_id          text collate "C" not null,
    image_id           text collate "C",
    runner_kind        runtara_runner,
    origin             runtara_origin not null,
    -- Grows with each change of the row: a change is decided outside of the database and applied only if this is still the same.
    version            bigint not null default 1,
    status             runtara_status not null,
    reason             runtara_reason,
    due_at             bigint,
    waiting_for        text collate "C",
    live_node          text collate "C",
    run_number         integer not null default 0,
    -- The current or last run.
    token_hash         bytea,
    claimed_at         bigint,
    spoke              boolean not null default false,
    heartbeat_seen     boolean not null default false,
    stored_new         boolean not null default false,
    cancel_shown       boolean not null default false,
    pause_shown        boolean not null default false,
    leave_by           bigint,
    asked_to_leave     boolean not null default false,
    held               boolean not null default false,
    hold_until         bigint,
    hold_park          boolean not null default false,
    slept_ms           bigint not null default 0,
    -- Signals that wait.
    cancel_at          bigint,
    cancel_payload     bytea,
    pause_at           bigint,
    pause_payload      bytea,
    resume_pending     boolean not null default false,
    -- Attempts.
    crash_count        integer not null default 0,
    max_attempts       integer,
    backoff            integer not null default 0,
    interruptions      integer not null default 0,
    relaunches         integer not null default 0,
    timeout_ms         bigint not null,
    request_timeout_ms bigint,
    created_at         bigint not null,
    started_at         bigint,
    finished_at        bigint,
    last_seen_at       bigint,
    checkpoint_id      text collate "C",
    exit_code          integer,
    has_error          boolean not null default false,
    has_read_signals   boolean not null default false,
    cpu_usec           bigint not null default 0,
    memory_peak_bytes  bigint not null default 0,
    running_ms         bigint not null default 0,
    -- The last number given to an event and to a checkpoint.
    event_seq          bigint not null default 0,
    checkpoint_seq     bigint not null default 0
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

create index runtara_instances_due on runtara_instances (due_at, instance_id)
    where due_at is not null and live_node is null;
create index runtara_instances_tenant_due on runtara_instances (tenant_id, due_at, instance_id)
    where due_at is not null and live_node is null;
create index runtara_instances_live on runtara_instances (live_node, instance_id) where live_node is not null;
create unique index runtara_instances_token on runtara_instances (token_hash) where token_hash is not null;
create index runtara_instances_created on runtara_instances (created_at, instance_id);
create index runtara_instances_tenant_created on runtara_instances (tenant_id, created_at, instance_id);
create index runtara_instances_status_created on runtara_instances (status, created_at, instance_id);
create index runtara_instances_tenant_status_created on runtara_instances (tenant_id, status, created_at, instance_id);
create index runtara_instances_finished on runtara_instances (finished_at, instance_id) where finished_at is not null;
create index runtara_instances_tenant_finished on runtara_instances (tenant_id, finished_at, instance_id)
    where finished_at is not null;
create index runtara_instances_image_created on runtara_instances (image_id, created_at, instance_id)
    where image_id is not null;
create index runtara_instances_image_used on runtara_instances (image_id)
    where image_id is not null and status in ('pending', 'running', 'suspended');

create table runtara_instance_labels (
    instance_id text collate "C" not null,
    key         text collate "C" not null,
    value       text collate "C" not null,
    primary key (instance_id, key)
);
create index runtara_instance_labels_found on runtara_instance_labels (key, value, instance_id);

-- What a start brought: written once, read at a launch.
create table runtara_instance_inputs (
    instance_id text collate "C" primary key,
    input       bytea not null,
    env         text,
    args        text
);

-- What an instance ended with.
create table runtara_instance_results (
    instance_id text collate "C" primary key,
    output      bytea,
    error       text,
    stderr      text
);

-- Checkpoints are never changed. A plain save has version 1 and finds its place taken if any other has been saved under that
-- name; durable sleeps add further versions. Version 0 is the record of a retry, which is no state.
create table runtara_checkpoints (
    instance_id   text collate "C" not null,
    seq           bigint not null,
    checkpoint_id text collate "C" not null,
    version       integer not null,
    state         bytea not null,
    size          bigint not null,
    created_at    bigint not null,
    run_number    integer not null,
    request_id    text collate "C",
    primary key (instance_id, seq)
);
create unique index runtara_checkpoints_name on runtara_checkpoints (instance_id, checkpoint_id, version);

-- Events are append-only and numbered within their instance: a number common to all would become visible out of order.
create table runtara_events (
    instance_id     text collate "C" not null,
    seq             bigint not null,
    kind            runtara_event not null,
    subtype         text collate "C",
    checkpoint_id   text collate "C",
    payload         bytea,
    created_at      bigint not null,
    run_number      integer not null,
    scope_id        text collate "C",
    parent_scope_id text collate "C",
    step_id         text collate "C",
    step_type       text collate "C",
    -- Step and scope in one, of events by which steps begin and end.
    step_key        text collate "C",
    -- Whether an event by which a step ended says that it failed.
    step_failed     boolean,
    -- A hash of what the call that recorded it named itself, so that its repetition is recognised.
    request_key     bytea,
    primary key (instance_id, seq)
);
create unique index runtara_events_request on runtara_events (instance_id, request_key) where request_key is not null;
create index runtara_events_subtype on runtara_events (instance_id, subtype, seq) where subtype is not null;
create index runtara_events_step on runtara_events (instance_id, step_key, subtype, seq) where step_key is not null;
create index runtara_events_scope on runtara_events (instance_id, scope_id, seq) where scope_id is not null;

-- Durable sleeps and waits.
create table runtara_waits (
    instance_id text collate "C" not null,
    kind        runtara_wait not null,
    key         text collate "C" not null,
    n           integer not null,
    until       bigint,
    state_hash  bytea not null,
    met_by      integer not null,
    request_id  text collate "C",
    primary key (instance_id, kind, key, n)
);

-- Custom signals that are kept for an instance.
create table runtara_signals (
    instance_id  text collate "C" not null,
    signal_id    text collate "C" not null,
    n            integer not null,
    payload      bytea,
    -- The run that read it last, and what its call named itself.
    read_by      integer,
    read_request text collate "C",
    primary key (instance_id, signal_id, n)
);

-- Kept counts and places behind long lists ----------------------------------------------------------------------------

-- How many instances a tenant has in a status. The empty text stands for all tenants or all statuses.
create table runtara_counts (
    tenant_id text collate "C" not null,
    status    text collate "C" not null,
    count     bigint not null,
    primary key (tenant_id, status)
);

-- Each thousandth row of the long lists in their usual order, newest first.
create table runtara_places (
    tenant_id   text collate "C" not null,
    status      text collate "C" not null,
    place       bigint not null,
    created_at  bigint not null,
    instance_id text collate "C" not null,
    primary key (tenant_id, status, place)
);

-- When the two were counted last, and how many changes of instances there had been by then.
create table runtara_counted (
    only_row boolean primary key default true check (only_row),
    changes  bigint not null,
    at       bigint not null,
    took_ms  bigint not null
);

-- Values of these columns are often compact already or read soon after they were written: not worth the compressor's time.
alter table runtara_checkpoints alter column state set storage external;
alter table runtara_instance_inputs alter column input set storage external;
alter table runtara_instance_results alter column output set storage external;
