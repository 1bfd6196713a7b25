-- What images and starts ask of the box of their programs, and the container images that others are laid on.

alter table runtara_images
    -- The content of the container image that this one is laid on.
    add column base      bytea check (length(base) = 32),
    -- JSON text of what it asks for; null where that is nothing.
    add column settings  text,
    -- JSON text of what a container image says of itself.
    add column container text;
-- Whether content is needed as a base.
create index runtara_images_base on runtara_images (base) where base is not null;

-- JSON text of what a start asks for; null where that is nothing. It stands beside the input, not in the hot row: it is written once and
-- read at a launch.
alter table runtara_instance_inputs add column settings text;
