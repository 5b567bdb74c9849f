-- What runs wait for, what wakes them, and what becomes of the runs below one that has ended.

-- name: save_waits
-- Fenced. A wait that is known keeps its time.
insert into holdfast_waits (run_id, `key`, kind, until, `signal`, created_at)
select e.id, e.name, e.kind, coalesce(e.until, $2 + e.delay), e.`signal`, $2
from {waits} {held}
left join holdfast_waits as w on w.run_id = e.id and w.`key` = e.name
where w.run_id is null
on duplicate key update kind = holdfast_waits.kind;

-- name: standing_waits
-- Of these waits those that are there, if the run is still held.
select e.at - 1, w.run_id, w.`key`, w.kind, w.until, w.`signal`, w.created_at
from {waits} {held}
straight_join holdfast_waits as w force index (primary) on w.run_id = e.id and w.`key` = e.name;

-- name: has_tree
-- From now on their ends have to do with others.
update {runs} set r.tree = 1 where r.tree = 0;

-- name: drop_waits
-- Each of a run and by its key: what it waited for is saved.
delete w from json_table($1, '$[*]' columns (id {text} path '$[0]', name {text} path '$[1]')) as e
straight_join holdfast_waits as w force index (primary) on w.run_id = e.id and w.`key` = e.name;

-- name: told_wake
-- Of these waiting runs, which are held, those that have what one of their waits is for.
select r.id, r.concurrency_key
from {runs}
where r.status = 'waiting' and exists (
  select 1 from holdfast_waits as w force index (primary)
  where w.run_id = r.id and (
    w.until <= $2
    or (w.kind = 'signal' and exists (
      select 1 from holdfast_signals as s force index (holdfast_signals_unread)
      where s.unread = w.run_id and s.name = w.`signal`))
    or (w.kind in ('child', 'children', 'finalize') and not exists (
      select 1 from holdfast_runs as c force index (holdfast_runs_unended)
      where c.open_root = coalesce(r.root_id, r.id) and c.parent_id = w.run_id and c.awaited_as = w.`key`))))
for update;

-- name: wake
update {runs} set
  r.status = 'pending', r.waiting_for = null, r.updated_at = $2, r.turn = if(r.turn = 2, 2, r.concurrency_key is not null);

-- name: look_for_sleepers
-- Waiting runs of which a wait is over by its time.
select r.id, r.concurrency_key
from holdfast_runs as r force index (holdfast_runs_asleep)
where r.asleep_until <= $1
order by r.asleep_until limit $2;

-- name: lock_free_runs
-- Those that nobody else has locked.
select r.id from {runs}
for update skip locked;

-- name: next_wake
-- When the first of the waiting runs wants to be woken.
select asleep_until
from holdfast_runs force index (holdfast_runs_asleep)
where asleep_until is not null
order by asleep_until limit 1;

-- name: find_waits
select run_id, `key`, kind, until, `signal`, created_at
from holdfast_waits
where run_id = $1
order by created_at, `key`;

-- name: send_signals
-- Guarded: only to runs that have not ended, and not more than $3 unread ones to each. What is there is looked for
-- first, because a duplicate would lock what is beside it.
insert into holdfast_signals (id, run_id, name, `key`, value, created_at)
select e.id, r.id, e.name, e.`key`, e.value, $2
from {signals}
straight_join holdfast_runs as r force index (primary) on r.id = e.run_id and r.completed_at is null
left join holdfast_signals as s force index (primary) on s.id = e.id
left join holdfast_signals as t force index (holdfast_signals_key)
  on t.run_id = e.run_id and t.name = e.name and t.`key` = e.`key`
where s.id is null and t.id is null and $3 > (
  select count(*) from holdfast_signals as u force index (holdfast_signals_unread) where u.unread = e.run_id)
order by e.at
on duplicate key update id = holdfast_signals.id;

-- name: sent_signals
-- What became of each: it is there itself, or one with its key; or neither, and how its run stands.
select e.at - 1, s.id is not null, t.id is not null, r.status
from {signals}
left join holdfast_signals as s force index (primary) on s.id = e.id
left join holdfast_signals as t force index (holdfast_signals_key)
  on t.run_id = e.run_id and t.name = e.name and t.`key` = e.`key`
left join holdfast_runs as r force index (primary) on r.id = e.run_id;

-- name: oldest_signals
-- Fenced. The oldest unread one of its name goes to a wait that has none yet.
select u.id, e.name
from {takes} {held}
straight_join holdfast_signals as u force index (primary) on u.id = (
  select o.id from holdfast_signals as o force index (holdfast_signals_unread)
  where o.unread = e.id and o.name = e.`signal`
  order by o.created_at, o.id limit 1)
where not exists (
  select 1 from holdfast_signals as t force index (holdfast_signals_by_run)
  where t.run_id = e.id and t.consumed_by = e.name);

-- name: take_signals
-- Of runs that are held: nobody else takes any of them.
update json_table($1, '$[*]' columns (id {text} path '$[0]', name {text} path '$[1]')) as e
straight_join holdfast_signals as s force index (primary) on s.id = e.id
set s.consumed_by = e.name;

-- name: taken_signals
-- Of these waits, if the run is still held: what was taken, and whether the time is over.
select e.at - 1, s.value, coalesce(w.until <= $2, 0)
from {takes} {held}
left join holdfast_signals as s force index (holdfast_signals_by_run) on s.run_id = e.id and s.consumed_by = e.name
left join holdfast_waits as w force index (primary) on w.run_id = e.id and w.`key` = e.name;

-- name: left_going
-- Of these, which have ended with their output, those below which something goes on: it goes with whatever ends above.
select r.id from {runs}
where r.tree = 1 and (
  exists (
    select 1 from holdfast_runs as c force index (holdfast_runs_unended)
    where c.open_root = r.root_id and c.parent_id = r.id)
  or exists (
    select 1 from holdfast_runs as c force index (holdfast_runs_left_going)
    where c.left_going = r.root_id and c.parent_id = r.id));

-- name: leave_going
update {runs} set r.tree = 3 where r.tree = 1;

-- name: look_through
-- Runs that had ended with their output below those that have ended without: the next level is below them, too.
select c.id
from holdfast_runs as t force index (holdfast_runs_above_cancelled)
straight_join holdfast_runs as c force index (holdfast_runs_left_going)
  on c.left_going = coalesce(t.root_id, t.id) and c.parent_id = t.id
where t.leaves = 1
limit $1;

-- name: go_through
update {runs} set r.tree = 2 where r.tree = 3;

-- name: look_below
-- The next level of runs below those that have ended without their output.
select c.id, c.concurrency_key
from holdfast_runs as t force index (holdfast_runs_above_cancelled)
straight_join holdfast_runs as c force index (holdfast_runs_unended)
  on c.open_root = coalesce(t.root_id, t.id) and c.parent_id = t.id
where t.leaves = 1
limit $1;

-- name: lock_below
select r.id from {runs}
where r.completed_at is null
limit $2
for update skip locked;

-- name: cancel_below
update {runs} set
  r.status = 'cancelled', r.error = 'The run above it ended first', r.error_type = 'ParentEnded',
  r.generation = r.generation + 1, r.lease_owner = null, r.lease_expires_at = null, r.waiting_for = null, r.turn = 0,
  r.tree = if(r.tree = 0, 0, 2), r.completed_at = $2, r.updated_at = $2;

-- name: look_for_settled
-- Those below which nothing is left.
select t.id
from holdfast_runs as t force index (holdfast_runs_above_cancelled)
where t.leaves = 1 and not exists (
  select 1 from holdfast_runs as c force index (holdfast_runs_unended)
  where c.open_root = coalesce(t.root_id, t.id) and c.parent_id = t.id)
  and not exists (
  select 1 from holdfast_runs as c force index (holdfast_runs_left_going)
  where c.left_going = coalesce(t.root_id, t.id) and c.parent_id = t.id)
limit $1;

-- name: settle_trees
update {runs} set r.tree = 1 where r.tree = 2;

-- name: above_ended
-- Why these were cancelled, which nobody has asked for.
update {runs} set r.error = 'The run above it ended first', r.error_type = 'ParentEnded'
where r.status = 'cancelled';

-- name: doomed
-- Of these runs those that have above them one that has ended without its output.
with recursive above as (
  select r.id as run_id, r.id, 0 as tree, r.parent_id
  from {runs}
  union all
  select a.run_id, p.id, p.tree, p.parent_id
  from above as a
  straight_join holdfast_runs as p force index (primary) on p.id = a.parent_id)
select distinct run_id from above where tree = 2;
