-- Instances that were taken away and of which something is left: what belonged to them is removed in pieces. For everybody else they are
-- gone; their ids are free again once nothing of them is left.

create table runtara_removals (
    instance_id text collate "C" primary key,
    since       bigint not null
);
create index runtara_removals_since on runtara_removals (since, instance_id);
