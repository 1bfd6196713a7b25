-- A save of a run that is under way writes its checkpoint and nothing else: what would have to be written into the row of its
-- instance follows from the checkpoints themselves. No server of the first schema alone was ever released.

-- Numbers of checkpoints grow within each instance, and have holes.
create sequence runtara_checkpoint_seq;
select setval('runtara_checkpoint_seq', (select coalesce(max(seq), 0) + 1 from runtara_checkpoints), false);

alter table runtara_instances drop column checkpoint_id, drop column checkpoint_seq;

-- Each thousandth row of every long list, and its last one: by tenant and status, or by image, in the order of creation; by tenant in
-- that of the ends. Newest first. The empty text stands for all.
drop table runtara_places;
create table runtara_places (
    ordered_by  text collate "C" not null check (ordered_by in ('created', 'finished')),
    tenant_id   text collate "C" not null,
    status      text collate "C" not null,
    image_id    text collate "C" not null,
    place       bigint not null,
    at          bigint not null,
    instance_id text collate "C" not null,
    primary key (ordered_by, tenant_id, status, image_id, place)
);
delete from runtara_counted;
