-- What images and starts ask of the box of their programs, and the container images that others are laid on.

-- The content of the container image that this one is laid on.
alter table runtara_images add column base blob;
-- JSON text of what it asks for; null where that is nothing.
alter table runtara_images add column settings text;
-- JSON text of what a container image says of itself.
alter table runtara_images add column container text;
-- Whether content is needed as a base.
create index runtara_images_base on runtara_images (base) where base is not null;

-- JSON text of what a start asks for; null where that is nothing.
alter table runtara_inputs add column settings text;
