-- What a round may wait for, before its verbs begin. First keys, then runs, each in the order of their names: whoever
-- goes on waiting holds nothing that stands before. The arrays are sorted, and are read from their beginning.

-- name: keys_of
-- Of runs that may end or be woken: their concurrency keys, the runs above them, and the keys of those.
select r.id, r.open_key, p.id, p.open_key
from {runs}
left join holdfast_runs as p force index (primary) on p.id = r.parent_id and p.completed_at is null
where r.completed_at is null and (r.open_key is not null or p.id is not null);

-- name: hold_keys
-- Make these keys where they are not there yet, and lock them all: what would be a duplicate is locked instead.
insert into holdfast_keys (`key`, kind)
select e.id, 'key' from {ids}
on duplicate key update kind = 'key';

-- name: make_keys
-- The same without waiting for those that are there; $2 is their kind.
insert into holdfast_keys (`key`, kind)
select e.id, $2 from {ids}
left join holdfast_keys as k force index (primary) on k.kind = $2 and k.`key` = e.id
where k.`key` is null
on duplicate key update kind = $2;

-- name: lock_jobs
-- Those that nobody else has locked: their limits are counted by one claim at a time.
select k.`key`
from {ids} straight_join holdfast_keys as k force index (primary) on k.kind = 'job' and k.`key` = e.id
for update skip locked;

-- name: lock_free_keys
-- The same with keys.
select k.`key`
from {ids} straight_join holdfast_keys as k force index (primary) on k.kind = 'key' and k.`key` = e.id
for update skip locked;

-- name: lock_runs
-- These runs, and then the time: in the second column, as nothing is counted.
select r.id from {runs}
for update;
select null, {now};

-- name: now
select {now};

-- name: unused_keys
-- Keys of no run that is under way, locked. What began before this statement is not seen by it: see `forget_keys`.
select k.`key` from holdfast_keys as k
where k.kind = 'key' and k.`key` > $1
  and not exists (select 1 from holdfast_runs as r force index (holdfast_runs_of_key) where r.open_key = k.`key`)
order by k.`key` limit $2
for update skip locked;

-- name: forget_keys
-- Of these keys, which are locked, those that are still of no run.
delete k from {ids}
straight_join holdfast_keys as k force index (primary) on k.kind = 'key' and k.`key` = e.id
where not exists (
  select 1 from holdfast_runs as r force index (holdfast_runs_of_key) where r.open_key = k.`key`);
