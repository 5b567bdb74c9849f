-- What runs wait for, what wakes them, and what becomes of the runs below one that has ended.

-- name: save_waits
-- Fenced. A wait that is known keeps its time.
insert into holdfast_waits (run_id, key, kind, until, signal, created_at)
select
  e.value ->> 1, e.value ->> 3, e.value ->> 4,
  coalesce((e.value ->> 5)::bigint, $2::bigint + (e.value ->> 6)::bigint), e.value ->> 7, $2
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (select * from holdfast_runs where id = e.value ->> 1 offset 0) as r
where r.generation = (e.value ->> 2)::bigint and r.lease_owner = e.value ->> 0
on conflict (run_id, key) do nothing;

-- name: standing_waits
-- Of these waits those that are there, if the run is still held.
select e.at - 1, w.run_id, w.key, w.kind, w.until, w.signal, w.created_at
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
cross join lateral (select * from holdfast_runs where id = e.value ->> 1 offset 0) as r
cross join lateral (select * from holdfast_waits where run_id = r.id and key = e.value ->> 3 offset 0) as w
where r.generation = (e.value ->> 2)::bigint and r.lease_owner = e.value ->> 0;

-- name: has_tree
-- From now on their ends have to do with others.
update holdfast_runs set tree = 1 where id = any (array(select jsonb_array_elements_text($1::jsonb))) and tree = 0;

-- name: drop_waits
-- Each of a run and by its key: what it waited for is saved.
delete from holdfast_waits
where run_id = any (array(select e.value ->> 0 from jsonb_array_elements($1::jsonb) as e (value)))
  and (run_id, key) in (select e.value ->> 0, e.value ->> 1 from jsonb_array_elements($1::jsonb) as e (value));

-- name: wake
-- Of these waiting runs, which are locked, those that have what one of their waits is for.
update holdfast_runs as r set
  status = 'pending', waiting_for = null, updated_at = $2, turn = case r.turn when 2 then 2 else (r.concurrency_key is not null)::int end
where r.id = any (array(select jsonb_array_elements_text($1::jsonb))) and r.status = 'waiting' and exists (
  select 1 from holdfast_waits as w
  where w.run_id = r.id and (
    w.until <= $2
    or (w.kind = 'signal' and exists (
      select 1 from holdfast_signals as s
      where s.run_id = w.run_id and s.name = w.signal and s.consumed_by is null offset 0))
    or (w.kind in ('child', 'children', 'finalize') and not exists (
      select 1 from holdfast_runs as c
      where c.root_id = coalesce(r.root_id, r.id) and c.parent_id = w.run_id and c.awaited_as = w.key
        and c.completed_at is null and c.root_id is not null
      offset 0)))
  offset 0)
returning r.id, r.concurrency_key;

-- name: sleepers_due
-- Waiting runs of which a wait is over by its time, locked with their keys. What can't be locked now is somebody else's.
with c as materialized (
  select id, concurrency_key from holdfast_runs
  where status = 'waiting' and wake_at is not null and attempt >= 0 and wake_at <= $1
  order by wake_at limit $2),
k as materialized (
  select key from holdfast_keys
  where kind = 'key' and key = any (array(select concurrency_key from c))
  order by key for update skip locked)
select r.id from holdfast_runs as r
where r.id = any (array(select id from c where concurrency_key is null or concurrency_key in (select key from k)))
  and r.status = 'waiting'
order by r.id for no key update skip locked;

-- name: next_wake
-- When the first of the waiting runs wants to be woken.
select wake_at from holdfast_runs
where status = 'waiting' and wake_at is not null and attempt >= 0
order by wake_at limit 1;

-- name: find_waits
select run_id, key, kind, until, signal, created_at
from holdfast_waits
where run_id = $1
order by created_at, key;

-- name: send_signals
-- Guarded: only to runs that have not ended, and not more than $3 unread ones to each.
with e as materialized (
  select at, value ->> 0 as id, value ->> 1 as run_id, value ->> 2 as name, value ->> 3 as value, value ->> 4 as key
  from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)),
r as materialized (
  select r.id
  from (select distinct run_id from e) as e
  cross join lateral (select * from holdfast_runs where id = e.run_id and completed_at is null offset 0) as r
  where (select count(*) from holdfast_signals as s where s.run_id = r.id and s.consumed_by is null) < $3)
insert into holdfast_signals (id, run_id, name, key, value, created_at)
select e.id, e.run_id, e.name, e.key, e.value, $2
from e
where e.run_id in (select id from r)
order by e.at
on conflict do nothing;

-- name: sent_signals
-- What became of each: it is there itself, or one with its key; or neither, and how its run stands.
select e.at - 1, s.id is not null, t.id is not null, r.status
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
left join lateral (select id from holdfast_signals where id = e.value ->> 0 offset 0) as s on true
left join lateral (
  select id from holdfast_signals
  where run_id = e.value ->> 1 and name = e.value ->> 2 and key = e.value ->> 4 and key is not null offset 0) as t on true
left join lateral (select status from holdfast_runs where id = e.value ->> 1 offset 0) as r on true;

-- name: take_signals
-- Fenced. The oldest unread one of its name goes to a wait that has none yet.
update holdfast_signals set consumed_by = t.wait
from (
  select u.id, e.value ->> 3 as wait
  from jsonb_array_elements($1::jsonb) as e (value)
  cross join lateral (select * from holdfast_runs where id = e.value ->> 1 offset 0) as r
  cross join lateral (
    select id from holdfast_signals
    where run_id = r.id and name = e.value ->> 4 and consumed_by is null
    order by created_at, id limit 1) as u
  where r.generation = (e.value ->> 2)::bigint and r.lease_owner = e.value ->> 0
    and not exists (
      select 1 from holdfast_signals as t where t.run_id = r.id and t.consumed_by = e.value ->> 3 offset 0)
  offset 0) as t
where holdfast_signals.id = t.id;

-- name: taken_signals
-- Of these waits, if the run is still held: what was taken, and whether the time is over.
select e.at - 1, s.value, coalesce(w.until <= $2, false)
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
cross join lateral (select * from holdfast_runs where id = e.value ->> 1 offset 0) as r
left join lateral (
  select value from holdfast_signals where run_id = r.id and consumed_by = e.value ->> 3 offset 0) as s on true
left join lateral (
  select until from holdfast_waits where run_id = r.id and key = e.value ->> 3 offset 0) as w on true
where r.generation = (e.value ->> 2)::bigint and r.lease_owner = e.value ->> 0;

-- name: leave_going
-- Of these, which have ended with their output, those below which something goes on: it goes with whatever ends above.
update holdfast_runs as r set tree = 3
where r.id = any (array(select jsonb_array_elements_text($1::jsonb))) and r.tree = 1 and (
  exists (
    select 1 from holdfast_runs as c
    where c.root_id = r.root_id and c.parent_id = r.id and c.completed_at is null and c.root_id is not null offset 0)
  or exists (
    select 1 from holdfast_runs as c
    where c.root_id = r.root_id and c.parent_id = r.id and c.tree = 3 offset 0));

-- name: go_through
-- Runs that had ended with their output below those that have ended without: the next level is below them, too.
with c as materialized (
  select c.id
  from (select id, root_id from holdfast_runs where tree = 2 offset 0) as t
  cross join lateral (
    select id from holdfast_runs
    where root_id = coalesce(t.root_id, t.id) and parent_id = t.id and tree = 3
    offset 0) as c
  limit $1),
l as materialized (
  select r.id from holdfast_runs as r
  where r.id = any (array(select id from c)) and r.tree = 3
  order by r.id
  for no key update skip locked)
update holdfast_runs as r set tree = 2
from l where r.id = l.id
returning r.id;

-- name: cancel_below
-- The next level of runs below those that have ended without their output. More are looked at than are taken, so that
-- those which somebody holds locked do not stand before the others.
with c as materialized (
  select c.id, c.concurrency_key
  from (select id, root_id from holdfast_runs where tree = 2 offset 0) as t
  cross join lateral (
    select id, concurrency_key from holdfast_runs
    where root_id = coalesce(t.root_id, t.id) and parent_id = t.id and completed_at is null and root_id is not null
    offset 0) as c
  limit $2::bigint * 4),
k as materialized (
  select key from holdfast_keys
  where kind = 'key' and key = any (array(select concurrency_key from c))
  order by key for update skip locked),
l as materialized (
  select r.id from holdfast_runs as r
  where r.id = any (array(select id from c where concurrency_key is null or concurrency_key in (select key from k)))
    and r.completed_at is null
  order by r.id limit $2
  for no key update skip locked)
update holdfast_runs as r set
  status = 'cancelled', error = 'The run above it ended first', error_type = 'ParentEnded',
  generation = r.generation + 1, lease_owner = null, lease_expires_at = null, waiting_for = null, turn = 0,
  tree = case r.tree when 0 then 0 else 2 end, completed_at = $1, updated_at = $1
from l where r.id = l.id
returning {columns};

-- name: settle_trees
-- Those below which nothing is left. Nothing can be put below a run that has ended.
update holdfast_runs set tree = 1
where id = any (array(
  select r.id from holdfast_runs as r
  where r.tree = 2 and not exists (
    select 1 from holdfast_runs as c
    where c.root_id = coalesce(r.root_id, r.id) and c.parent_id = r.id
      and c.completed_at is null and c.root_id is not null offset 0)
    and not exists (
      select 1 from holdfast_runs as c
      where c.root_id = coalesce(r.root_id, r.id) and c.parent_id = r.id and c.tree = 3 offset 0)
  order by r.id for no key update of r skip locked));

-- name: above_ended
-- Why these were cancelled, which nobody has asked for.
update holdfast_runs set error = 'The run above it ended first', error_type = 'ParentEnded'
from (
  select r.id
  from jsonb_array_elements_text($1::jsonb) as e (id)
  cross join lateral (select id, status from holdfast_runs where id = e.id offset 0) as r
  where r.status = 'cancelled') as c
where holdfast_runs.id = c.id;

-- name: doomed
-- Of these runs those that have above them one that has ended without its output.
with recursive above (run_id, tree, parent_id) as (
  select r.id, 0::smallint, r.parent_id
  from jsonb_array_elements_text($1::jsonb) as e (id)
  cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r
  union all
  select a.run_id, p.tree, p.parent_id
  from above as a
  cross join lateral (select * from holdfast_runs where id = a.parent_id offset 0) as p)
select distinct run_id from above where tree = 2;
