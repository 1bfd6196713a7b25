-- A save of a run that is under way writes its checkpoint and nothing else: what would have to be written into the row of its
-- instance follows from the checkpoints themselves. No server of the first schema alone was ever released.

-- Numbers of checkpoints grow within each instance, and have holes.
create sequence runtara_checkpoint_seq;
select setval('runtara_checkpoint_seq', (select coalesce(max(seq), 0) + 1 from runtara_checkpoints), false);

alter table runtara_instances drop column checkpoint_id, drop column checkpoint_seq;
