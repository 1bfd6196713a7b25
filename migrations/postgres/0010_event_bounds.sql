-- How many events of an instance are kept, and how many of its oldest are gone because one stands for them. They stand beside the input,
-- not in the hot row: an event must not cost more for them.

alter table runtara_instance_inputs
    add column max_events    integer,
    add column events_folded bigint not null default 0;
