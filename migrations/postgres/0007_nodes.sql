-- What nodes that share a database must know of one another.

alter table runtara_nodes
    -- Where other nodes reach this one, and what they show for themselves there. A secret of the nodes of this database.
    add column address  text,
    add column key      text,
    -- The room for runs that it has, and how much of it is taken, by the weights of kinds, at its last renewal.
    add column capacity bigint not null default 0,
    add column used     bigint not null default 0,
    -- Whether a guard ends its runs if it cannot renew its lease: then they may be taken over as soon as that is over.
    add column guarded  boolean not null default false,
    -- When what still runs on it is handed over; null if it is not being drained. It claims nothing meanwhile.
    add column drain_by bigint,
    -- Whether somebody who knows has said that it does not come back.
    add column removed  boolean not null default false;
