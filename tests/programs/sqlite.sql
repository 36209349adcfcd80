pragma cache_size = -200000;
create table item (id integer primary key, grp integer, name text, body text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 200000)
insert into item select i, (i * 7919) % 1000, printf('name-%06d', (i * 104729) % 1000003),
    substr('the quick brown fox jumps over the lazy dog, and again, and again', 1 + i % 20, 10 + i % 40) from n;
create index item_name on item (name);
create index item_grp on item (grp, name);
select count(*), sum(length(body)), min(name), max(name) from item;
select grp, count(*), max(name) from item group by grp order by grp limit 20;
select a.grp, count(*) from item a join item b on a.name = b.name and a.id < b.id group by a.grp order by 1 limit 20;
begin;
update item set body = body || ' ' || name || ' ' || body where id % 3 = 0;
delete from item where id % 5 = 0;
commit;
select count(*), sum(length(body)) from item;
select group_concat(name, ',') is not null, length(group_concat(body, '')) from item;
with recursive walk(id, path) as (
    select 1, '1' union all select id * 3 % 9973, path || '-' || (id * 3 % 9973) from walk where length(path) < 40000)
select count(*), max(length(path)) from walk;
create table wide as select a.id, a.body || b.body as both from item a join item b on b.id = a.id + 1 where a.id < 60000;
select count(*), sum(length(both)) from wide;
drop table wide;
select json_group_array(json_object('id', id, 'name', name)) ->> '$[4321].name' from (select * from item order by id);
