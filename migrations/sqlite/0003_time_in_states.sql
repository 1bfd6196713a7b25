-- How long each instance has stood where. `running_ms` is another figure: the time during which there was a process.

-- When its status came; null for as long as it is the one with which the row was made.
alter table runtara_instances add column status_since integer;
-- The time in each status, without the current one.
alter table runtara_instances add column pending_time_ms integer not null default 0;
alter table runtara_instances add column running_time_ms integer not null default 0;
alter table runtara_instances add column suspended_time_ms integer not null default 0;

-- Instances that were there before begin to count at the last time that is known of their status. An ended one counts nothing, and
-- one that is pending is so since it was made.
update runtara_instances
   set status_since = case status when 'running' then claimed_at else max(coalesce(last_seen_at, claimed_at), claimed_at) end
 where status in ('running', 'suspended');
