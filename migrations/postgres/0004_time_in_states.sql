-- How long each instance has stood where. `running_ms` is another figure: the time during which there was a process.

alter table runtara_instances
    -- When its status came; null for as long as it is the one with which the row was made. So a start writes nothing more than before.
    add column status_since      bigint,
    -- The time in each status, without the current one.
    add column pending_time_ms   bigint not null default 0,
    add column running_time_ms   bigint not null default 0,
    add column suspended_time_ms bigint not null default 0;

-- Instances that were there before begin to count at the last time that is known of their status. An ended one counts nothing, and
-- one that is pending is so since it was made.
update runtara_instances
   set status_since = case status when 'running' then claimed_at else greatest(last_seen_at, claimed_at) end
 where status in ('running', 'suspended');
