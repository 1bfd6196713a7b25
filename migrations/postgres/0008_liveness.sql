-- For how long a run may be silent, until when an instance may live at all, and how much one tenant may have.

alter table runtara_instances
    -- Both null where the start did not say.
    add column heartbeat_timeout_ms bigint,
    add column expires_at           bigint;

-- What is kept of the images of a tenant.
create index runtara_images_tenant on runtara_images (tenant_id, digest) include (size);

-- Who outlives his deadline next.
create index runtara_instances_expires on runtara_instances (expires_at, instance_id)
    where expires_at is not null and status in ('pending', 'running', 'suspended');
-- Those who registered themselves and may have gone silent. When each was seen last is not in it: with each sign of life that is
-- noted the row would have to be written to all its indexes.
create index runtara_instances_self on runtara_instances (instance_id)
    where origin = 'self_registered' and status = 'running';
