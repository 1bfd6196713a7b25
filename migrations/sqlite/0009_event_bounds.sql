-- How many events of an instance are kept, and how many of its oldest are gone because one stands for them.

alter table runtara_inputs add column max_events integer;
alter table runtara_inputs add column events_folded integer not null default 0;
