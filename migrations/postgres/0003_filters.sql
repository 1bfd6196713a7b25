-- Indexes for the filters of events and steps.
--
-- Each index costs every event that it holds, so each holds no more than its filter needs: of the types all but `custom`, which nearly
-- every event is and which is found as fast along the primary key; of scopes those that lie within another; of steps their starts, and
-- the ends that failed. Only the times are those of all events.

create index runtara_events_kind on runtara_events (instance_id, kind, seq) where kind <> 'custom';
create index runtara_events_parent_scope on runtara_events (instance_id, parent_scope_id, seq)
    where parent_scope_id is not null;
create index runtara_events_created on runtara_events (instance_id, created_at);
create index runtara_events_step_type on runtara_events (instance_id, step_type, seq)
    where subtype = 'step_debug_start' and step_type is not null;
create index runtara_events_step_failed on runtara_events (instance_id, seq)
    where subtype = 'step_debug_end' and step_failed;
