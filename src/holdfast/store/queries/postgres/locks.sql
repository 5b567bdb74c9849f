-- What a round may wait for, before its verbs begin. First keys, then runs, each in the order of their names: whoever
-- goes on waiting holds nothing that stands before.

-- name: keys_of
-- Of runs that may end or be woken: their concurrency keys, the runs above them, and the keys of those.
select r.id, r.concurrency_key, p.id, p.concurrency_key
from jsonb_array_elements_text($1::jsonb) as e (id)
cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r
left join lateral (select * from holdfast_runs where id = r.parent_id and completed_at is null offset 0) as p on true
where r.completed_at is null and (r.concurrency_key is not null or p.id is not null);

-- name: make_keys
-- A row for each of these keys; $2 is their kind.
insert into holdfast_keys (key, kind)
select e.key, $2::text
from jsonb_array_elements_text($1::jsonb) as e (key)
where not exists (select 1 from holdfast_keys as k where k.kind = $2::text and k.key = e.key offset 0)
order by e.key collate "C"
on conflict do nothing;

-- name: missing_keys
-- Keys without a row of runs whose time has come, of as many as `promote` takes.
with c as materialized (
  select concurrency_key as key from holdfast_runs
  where status = 'pending' and due = 0 and attempt >= 0 and run_at <= $1
  order by run_at limit $2)
select distinct c.key
from c
where c.key is not null and not exists (select 1 from holdfast_keys as k where k.kind = 'key' and k.key = c.key);

-- name: lock_keys
select key from holdfast_keys
where kind = 'key' and key = any (array(select jsonb_array_elements_text($1::jsonb)))
order by key for update;

-- name: lock_jobs
-- Those that nobody else has locked: their limits are counted by one claim at a time.
select key from holdfast_keys
where kind = 'job' and key = any (array(select jsonb_array_elements_text($1::jsonb)))
order by key for update skip locked;

-- name: lock_runs
-- The time once all of them are ours, which is left for what follows in the same message.
with l as materialized (
  select id from holdfast_runs
  where id = any (array(select jsonb_array_elements_text($1::jsonb)))
  order by id for no key update)
select count(*), set_config('holdfast.now', ({now})::text, true)::bigint from l;

-- name: now
select {now};

-- name: leave_a_mark
-- A commit that wrote nothing doesn't wait for anybody. This one must: for what an earlier commit wrote, too.
update holdfast_meta set value = value where key = 'database_id';

-- name: unused_keys
-- Keys of no run that is under way, locked. What began before this statement is not seen by it: see `forget_keys`.
select k.key from holdfast_keys as k
where k.kind = 'key' and k.key > $1 and not exists (
  select 1 from holdfast_runs as r
  where r.concurrency_key = k.key and r.completed_at is null and r.concurrency_key is not null offset 0)
order by k.key limit $2
for update skip locked;

-- name: forget_keys
-- Of these keys, which are locked, those that are still of no run.
delete from holdfast_keys as k
where k.kind = 'key' and k.key = any (array(select jsonb_array_elements_text($1::jsonb))) and not exists (
  select 1 from holdfast_runs as r
  where r.concurrency_key = k.key and r.completed_at is null and r.concurrency_key is not null offset 0);
