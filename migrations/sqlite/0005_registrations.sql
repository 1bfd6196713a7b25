-- The order in which the contents of images arrived: a name means the image whose content arrived last, however long each took to be
-- made ready.

alter table runtara_images add column registration integer not null default 0;
