-- For how long a run may be silent, until when an instance may live at all, and how much one tenant may have.

-- Both null where the start did not say.
alter table runtara_instances add column heartbeat_timeout_ms integer;
alter table runtara_instances add column expires_at integer;

-- What is kept of the images of a tenant.
create index runtara_images_tenant on runtara_images (tenant_id, digest, size);

-- Who outlives his deadline next.
create index runtara_instances_expires on runtara_instances (expires_at, instance_id)
    where expires_at is not null and finished_at is null;

-- Those who registered themselves and may have gone silent.
create index runtara_instances_self on runtara_instances (instance_id)
    where origin = 'self_registered' and status = 'running';
