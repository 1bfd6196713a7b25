-- What is known of nodes. With SQLite there is one at a time; the columns are those of PostgreSQL, so that both mean the same.

alter table runtara_nodes add column registered_at integer not null default 0;
alter table runtara_nodes add column address text;
alter table runtara_nodes add column key text;
alter table runtara_nodes add column capacity integer not null default 0;
alter table runtara_nodes add column used integer not null default 0;
alter table runtara_nodes add column guarded integer not null default 0;
alter table runtara_nodes add column drain_by integer;
alter table runtara_nodes add column removed integer not null default 0;
