-- Indexes for the filters of events and steps.
--
-- Each index costs every row that it holds, so each holds no more than its filter needs. Nearly every event is `custom`: those are found
-- as fast without one.

create index runtara_events_kind on runtara_events (instance, kind) where kind <> 'custom';
create index runtara_events_subtype on runtara_events (instance, subtype) where subtype is not null;
create index runtara_events_scope on runtara_events (instance, scope_id) where scope_id is not null;
create index runtara_events_parent_scope on runtara_events (instance, parent_scope_id)
    where parent_scope_id is not null;
create index runtara_events_created on runtara_events (instance, created_at);

create index runtara_steps_status on runtara_steps (instance, status);
create index runtara_steps_type on runtara_steps (instance, step_type) where step_type is not null;
create index runtara_steps_scope on runtara_steps (instance, scope_id) where scope_id is not null;
create index runtara_steps_parent_scope on runtara_steps (instance, parent_scope_id)
    where parent_scope_id is not null;
