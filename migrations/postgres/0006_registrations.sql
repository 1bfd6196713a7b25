-- The order in which the contents of images arrived: a name means the image whose content arrived last, however long each took to be
-- made ready.

create sequence runtara_registrations;
alter table runtara_images add column registration bigint not null default 0;
