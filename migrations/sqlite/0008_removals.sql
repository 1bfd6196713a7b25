-- Instances that were taken away and of which something is left, by their numbers: what belonged to them is removed in pieces. For
-- everybody else they are gone. Their numbers are not given again before nothing is left of them.

create table runtara_removals (
    instance integer primary key
) strict;
