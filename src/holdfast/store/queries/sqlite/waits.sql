-- What runs wait for, what wakes them, and what becomes of the runs below one that has ended.

-- name: save_waits
-- Fenced. A wait that is known keeps its time.
insert into holdfast_waits (run_id, key, kind, until, signal, created_at)
select e.value ->> 1, e.value ->> 3, e.value ->> 4, coalesce(e.value ->> 5, ?2 + (e.value ->> 6)), e.value ->> 7, ?2
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 1 and r.generation = e.value ->> 2 and r.lease_owner = e.value ->> 0
where true
on conflict (run_id, key) do nothing;

-- name: standing_waits
-- Of these waits those that are there, if the run is still held.
select e.key, w.run_id, w.key, w.kind, w.until, w.signal, w.created_at
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 1 and r.generation = e.value ->> 2 and r.lease_owner = e.value ->> 0
cross join holdfast_waits as w on w.run_id = r.id and w.key = e.value ->> 3;

-- name: has_tree
-- From now on their ends have to do with others.
update holdfast_runs set tree = 1 where id in (select value from json_each(?1)) and tree = 0;

-- name: drop_waits
-- Each of a run and by its key: what it waited for is saved.
delete from holdfast_waits
where (run_id, key) in (select value ->> 0, value ->> 1 from json_each(?1));

-- name: wake
-- Of these waiting runs those that have what one of their waits is for.
update holdfast_runs as r set
  status = 'pending', waiting_for = null, updated_at = ?2, turn = iif(r.turn = 2, 2, r.concurrency_key is not null)
where r.id in (select value from json_each(?1)) and r.status = 'waiting' and exists (
  select 1 from holdfast_waits as w
  where w.run_id = r.id and (
    w.until <= ?2
    or (w.kind = 'signal' and exists (
      select 1 from holdfast_signals as s
      where s.run_id = w.run_id and s.name = w.signal and s.consumed_by is null))
    or (w.kind in ('child', 'children', 'finalize') and not exists (
      select 1 from holdfast_runs as c
      where c.root_id = coalesce(r.root_id, r.id) and c.parent_id = w.run_id and c.awaited_as = w.key
        and c.completed_at is null and c.root_id is not null))))
returning id, concurrency_key;

-- name: sleepers_due
-- Waiting runs of which a wait is over by its time.
select id from holdfast_runs
where status = 'waiting' and wake_at is not null and wake_at <= ?1
order by wake_at limit ?2;

-- name: next_wake
-- When the first of the waiting runs wants to be woken.
select wake_at from holdfast_runs where status = 'waiting' and wake_at is not null order by wake_at limit 1;

-- name: find_waits
select run_id, key, kind, until, signal, created_at
from holdfast_waits
where run_id = ?1
order by created_at, key;

-- name: send_signals
-- Guarded: only to runs that have not ended, and not more than ?3 unread ones to each.
insert into holdfast_signals (id, run_id, name, key, value, created_at)
select e.value ->> 0, r.id, e.value ->> 2, e.value ->> 4, e.value ->> 3, ?2
from json_each(?1) as e
cross join holdfast_runs as r on r.id = e.value ->> 1 and r.completed_at is null
where (select count(*) from holdfast_signals as s where s.run_id = r.id and s.consumed_by is null) < ?3
order by e.key
on conflict do nothing;

-- name: sent_signals
-- What became of each: it is there itself (0), or one with its key (1); or neither, and how its run stands.
select e.key, s.id is not null, t.id is not null, r.status
from json_each(?1) as e
left join holdfast_signals as s on s.id = e.value ->> 0
left join holdfast_signals as t
  on t.run_id = e.value ->> 1 and t.name = e.value ->> 2 and t.key = e.value ->> 4 and t.key is not null
left join holdfast_runs as r on r.id = e.value ->> 1;

-- name: take_signals
-- Fenced. The oldest unread one of its name goes to a wait that has none yet.
update holdfast_signals as s set consumed_by = o.wait
from (
  select e.value ->> 3 as wait, (
    select u.id from holdfast_signals as u
    where u.run_id = r.id and u.name = e.value ->> 4 and u.consumed_by is null
    order by u.created_at, u.id limit 1) as id
  from json_each(?1) as e
  cross join holdfast_runs as r
    on r.id = e.value ->> 1 and r.generation = e.value ->> 2 and r.lease_owner = e.value ->> 0
  where not exists (
    select 1 from holdfast_signals as t where t.run_id = r.id and t.consumed_by = e.value ->> 3)
  limit -1) as o
where s.id = o.id;

-- name: taken_signals
-- Of these waits, if the run is still held: what was taken, and whether the time is over.
select e.key, s.value, coalesce(w.until <= ?2, 0)
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 1 and r.generation = e.value ->> 2 and r.lease_owner = e.value ->> 0
left join holdfast_signals as s on s.run_id = r.id and s.consumed_by = e.value ->> 3
left join holdfast_waits as w on w.run_id = r.id and w.key = e.value ->> 3;

-- name: leave_going
-- Of these, which have ended with their output, those below which something goes on: it goes with whatever ends above.
update holdfast_runs as r set tree = 3
where r.id in (select value from json_each(?1)) and r.tree = 1 and (
  exists (
    select 1 from holdfast_runs as c
    where c.root_id = r.root_id and c.parent_id = r.id and c.completed_at is null and c.root_id is not null)
  or exists (
    select 1 from holdfast_runs as c where c.root_id = r.root_id and c.parent_id = r.id and c.tree = 3));

-- name: go_through
-- Runs that had ended with their output below those that have ended without: the next level is below them, too.
update holdfast_runs set tree = 2
where id in (
  select c.id
  from holdfast_runs as t
  cross join holdfast_runs as c
    on c.root_id = coalesce(t.root_id, t.id) and c.parent_id = t.id and c.tree = 3
  where t.tree = 2
  limit ?1)
returning id;

-- name: cancel_below
-- The next level of runs below those that have ended without their output.
update holdfast_runs as r set
  status = 'cancelled', error = 'The run above it ended first', error_type = 'ParentEnded',
  generation = generation + 1, lease_owner = null, lease_expires_at = null, waiting_for = null, turn = 0,
  tree = iif(tree = 0, 0, 2), completed_at = ?1, updated_at = ?1
where r.id in (
  select c.id
  from holdfast_runs as t
  cross join holdfast_runs as c
    on c.root_id = coalesce(t.root_id, t.id) and c.parent_id = t.id and c.completed_at is null and c.root_id is not null
  where t.tree = 2
  limit ?2)
returning {bare_columns};

-- name: settle_trees
-- Those below which nothing is left.
update holdfast_runs as r set tree = 1
where r.tree = 2 and not exists (
  select 1 from holdfast_runs as c
  where c.root_id = coalesce(r.root_id, r.id) and c.parent_id = r.id
    and c.completed_at is null and c.root_id is not null)
  and not exists (
    select 1 from holdfast_runs as c
    where c.root_id = coalesce(r.root_id, r.id) and c.parent_id = r.id and c.tree = 3);

-- name: above_ended
-- Why these were cancelled, which nobody has asked for.
update holdfast_runs set error = 'The run above it ended first', error_type = 'ParentEnded'
where id in (select value from json_each(?1)) and status = 'cancelled';

-- name: doomed
-- Of these runs those that have above them one that has ended without its output.
with recursive above (run_id, id, tree, parent_id) as (
  select r.id, r.id, 0, r.parent_id
  from json_each(?1) as e
  cross join holdfast_runs as r on r.id = e.value
  union all
  select a.run_id, p.id, p.tree, p.parent_id
  from above as a
  cross join holdfast_runs as p on p.id = a.parent_id)
select distinct run_id from above where tree = 2;
