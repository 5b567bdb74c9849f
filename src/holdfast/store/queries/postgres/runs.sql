-- One statement per verb and round: each takes all rows of the round as one JSON array (of arrays, or of texts): $1.
-- Tables get the name of their schema in front when this is read. What a round may wait for was locked before (locks.sql).

-- name: insert_runs
-- Runs that are not there yet: neither by their id nor by their idempotency key, in the order in which they are given.
-- Delays (22nd) and deadlines (16th) count from $2. One with a concurrency key stands behind until `bring_forward`.
insert into holdfast_runs (
  id, job_name, input, queue, priority, run_at, due, turn, idempotency_key, concurrency_key, labels, tenant, codec,
  trace, timeout, retry, deadline_at, parent_id, root_id, child_index, is_finalize, awaited_as,
  status, created_at, updated_at)
select
  e.value ->> 0, e.value ->> 1, e.value ->> 2, e.value ->> 3, (e.value ->> 4)::bigint, t.run_at,
  (t.run_at <= $2)::int, ((e.value ->> 7) is not null)::int, e.value ->> 6, e.value ->> 7,
  e.value ->> 8, e.value ->> 9, e.value ->> 10, e.value ->> 11, (e.value ->> 13)::bigint, e.value ->> 14,
  $2 + (e.value ->> 15)::bigint, e.value ->> 16, e.value ->> 17, (e.value ->> 18)::bigint, (e.value ->> 19)::smallint,
  e.value ->> 20, 'pending', $2, $2
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
cross join lateral (select coalesce((e.value ->> 5)::bigint, $2::bigint + (e.value ->> 21)::bigint) as run_at) as t
order by e.at
on conflict do nothing
returning id;

-- name: take_out
-- Of the runs that this transaction has just inserted.
delete from holdfast_runs where id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: batch
-- Runs that are written together or not at all, whoever else is in the round. The caller's transaction survives, too.
savepoint holdfast_batch;

-- name: undo_batch
rollback to savepoint holdfast_batch;

-- name: end_batch
release savepoint holdfast_batch;

-- name: insert_labels
insert into holdfast_labels (key, value, run_id)
select label.key, label.value, r.id
from jsonb_array_elements_text($1::jsonb) as e (id)
cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r
cross join lateral jsonb_each_text(r.labels::jsonb) as label
on conflict do nothing;

-- name: find_triggered
-- The runs that stood in the way of an insertion: by id (written before, its answer was lost), by idempotency key,
-- as the one of this concurrency key that was never claimed, or as one that is under way and good enough for who asks
-- with coalesce="active". In this order: the first of several is the answer.
with e as materialized (
  select
    at - 1 as at, value ->> 0 as id, value ->> 1 as job_name, value ->> 6 as idempotency_key,
    value ->> 7 as concurrency_key, value ->> 9 as tenant, value ->> 12 as coalesce, value ->> 16 as parent_id
  from jsonb_array_elements($1::jsonb) with ordinality as e (value, at))
select e.at, 0 as place, {columns}
from e
cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r
union all
select e.at, 1, {columns}
from e
cross join lateral (
  select * from holdfast_runs
  where tenant = e.tenant and job_name = e.job_name and idempotency_key = e.idempotency_key
  offset 0) as r
union all
select e.at, 2, {columns}
from e
cross join lateral (
  select * from holdfast_runs
  where job_name = e.job_name and concurrency_key = e.concurrency_key
    and status = 'pending' and generation = 0 and concurrency_key is not null and parent_id is null
  offset 0) as r
where e.parent_id is null
union all
select e.at, 3, {columns}
from e
cross join lateral (
  select * from holdfast_runs
  where job_name = e.job_name and concurrency_key = e.concurrency_key
    and completed_at is null and concurrency_key is not null
  offset 0) as r
where e.coalesce = 'active'
order by 2, 3 desc;

-- name: find_active
-- Which of these need not be written, because a run of their job and concurrency key is under way.
select e.at - 1
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
where e.value ->> 12 = 'active' and exists (
  select 1 from holdfast_runs as r
  where r.job_name = e.value ->> 1 and r.concurrency_key = e.value ->> 7
    and r.completed_at is null and r.concurrency_key is not null offset 0);

-- name: next_due
-- When the next delayed run wants to start.
select run_at from holdfast_runs where status = 'pending' and due = 0 and attempt >= 0 order by run_at limit 1;

-- name: promote
-- Delayed runs whose time has come. Bounded, so that a million due at midnight do not stop everybody else.
-- Whoever locks a run that waits in the line of a key has locked the key; what can't be locked now is somebody else's.
with c as materialized (
  select id, concurrency_key from holdfast_runs
  where status = 'pending' and due = 0 and attempt >= 0 and run_at <= $1
  order by run_at limit $2),
k as materialized (
  select key from holdfast_keys
  where kind = 'key' and key = any (array(select concurrency_key from c))
  order by key for update skip locked),
l as materialized (
  select r.id from holdfast_runs as r
  where r.id = any (array(select id from c where concurrency_key is null or concurrency_key in (select key from k)))
    and r.status = 'pending' and r.due = 0
  order by r.id for no key update skip locked)
update holdfast_runs as r set due = 1
from l where r.id = l.id
returning case when r.turn = 1 then r.concurrency_key end;

-- name: claim
-- The first $2 in claim order of each job in each queue ($1) that nobody else has locked, and the first $2 of those. What
-- waits for its key is not in the index. Runs without a key are leased at once. Of one with a key, if the key could be
-- locked, only the id is given: a statement that begins later has to see whose turn it is. A row of nothing says that
-- there is more, which somebody else has locked. The last row has when the next delayed run is due and the next sleeper
-- wakes; as long as one of these times has come ($6), nothing is taken: it may go before others. Nor is with $7 = 1, unless
-- this is all that has to be said to take what was found: then only the ids are given.
with job as materialized (
  select e.value ->> 0 as queue, e.value ->> 1 as name, (e.value ->> 2)::bigint as room
  from jsonb_array_elements($1::jsonb) as e (value)),
{due_beside},
p as materialized (
  select p.* from job cross join lateral (
    select r.id, r.concurrency_key, r.priority, r.run_at, {plain} from holdfast_runs as r
    where r.status = 'pending' and r.due = 1 and r.turn <> 1 and r.crashes >= 0
      and r.queue = job.queue and r.job_name = job.name
      and (r.concurrency_key is null or {first_of_key})
    order by r.priority desc, r.run_at, r.id limit (select many from d)
    for no key update of r skip locked) as p),
{lease_first};

-- name: claim_within
-- The same, and of each job only as many as it has room for (third of each in $1).
with job as materialized (
  select e.value ->> 0 as queue, e.value ->> 1 as name, (e.value ->> 2)::bigint as room
  from jsonb_array_elements($1::jsonb) as e (value)),
{due_beside},
q as materialized (
  select p.*, job.room from job cross join lateral (
    select r.id, r.concurrency_key, r.priority, r.run_at, r.job_name, {plain} from holdfast_runs as r
    where r.status = 'pending' and r.due = 1 and r.turn <> 1 and r.crashes >= 0
      and r.queue = job.queue and r.job_name = job.name
      and (r.concurrency_key is null or {first_of_key})
    order by r.priority desc, r.run_at, r.id limit (select many from d)
    for no key update of r skip locked) as p),
p as materialized (
  select id, concurrency_key, priority, run_at, plain from (
    select q.*, row_number() over (partition by q.job_name order by q.priority desc, q.run_at, q.id) as place
    from q) as q
  where room is null or place <= room),
{lease_first};

-- name: claim_keyed
-- Runs ($1) that `claim` has locked, with their keys. Of several that may go of one key (of several jobs or queues: $2)
-- the first goes.
update holdfast_runs as r set
  status = 'leased', lease_owner = $3, lease_expires_at = $4::bigint + $5, generation = r.generation + 1, turn = 2,
  started_at = coalesce(r.started_at, $4), updated_at = $4
where r.id = any (array(
  select c.id from holdfast_runs as c
  where c.id = any (array(select jsonb_array_elements_text($1::jsonb)))
    and c.status = 'pending' and c.due = 1 and c.turn <> 1 and {first_of_key_again}))
returning {columns};

-- name: settle
-- Of these runs, which are locked with their keys, those whose key is held must wait: they were somebody else's when it
-- was taken.
update holdfast_runs as r set turn = 1
where r.id = any (array(select jsonb_array_elements_text($1::jsonb))) and r.status = 'pending' and r.turn = 0 and exists (
  select 1 from holdfast_runs as h
  where h.concurrency_key = r.concurrency_key and h.turn = 2 and h.status in ('pending', 'leased', 'waiting')
    and h.concurrency_key is not null offset 0);

-- name: leased_of_jobs
-- How many of each of these jobs are leased.
select e.name, (
  select count(*) from holdfast_runs as r where r.status = 'leased' and r.attempt >= 0 and r.job_name = e.name)
from jsonb_array_elements_text($1::jsonb) as e (name);

-- name: hold_back
-- These keys are held now: what might have gone must wait. What another claim has locked is left: that one finds the key
-- held.
update holdfast_runs set turn = 1
where id = any (array(
  select f.id from holdfast_runs as f
  where f.concurrency_key = any (array(select jsonb_array_elements_text($1::jsonb))) and f.turn = 0
    and f.status = 'pending' and f.due = 1 and f.concurrency_key is not null
  for no key update of f skip locked));

-- name: bring_forward
-- Of these keys, those that nobody holds: the first that waits in each line may go, unless one that may go stands before
-- it. From line to line, without reading them.
with recursive front (id, key, queue, job, priority, run_at) as (
  select r.*
  from jsonb_array_elements_text($1::jsonb) as k (key)
  cross join lateral (
    select p.id, p.concurrency_key, p.queue, p.job_name, p.priority, p.run_at from holdfast_runs as p
    where p.concurrency_key = k.key and p.turn = 1
      and p.status = 'pending' and p.due = 1 and p.concurrency_key is not null
    order by p.queue, p.job_name, p.priority desc, p.run_at, p.id limit 1) as r
  where not exists (
    select 1 from holdfast_runs as h
    where h.concurrency_key = k.key and h.turn = 2 and h.status in ('pending', 'leased', 'waiting')
      and h.concurrency_key is not null offset 0)
  union all
  select r.id, r.concurrency_key, r.queue, r.job_name, r.priority, r.run_at
  from front as f
  cross join lateral (
    select * from (
      (select 0 as line, p.id, p.concurrency_key, p.queue, p.job_name, p.priority, p.run_at from holdfast_runs as p
      where p.concurrency_key = f.key and p.turn = 1 and p.queue = f.queue and p.job_name > f.job
        and p.status = 'pending' and p.due = 1 and p.concurrency_key is not null
      order by p.job_name, p.priority desc, p.run_at, p.id limit 1)
      union all
      (select 1, p.id, p.concurrency_key, p.queue, p.job_name, p.priority, p.run_at from holdfast_runs as p
      where p.concurrency_key = f.key and p.turn = 1 and p.queue > f.queue
        and p.status = 'pending' and p.due = 1 and p.concurrency_key is not null
      order by p.queue, p.job_name, p.priority desc, p.run_at, p.id limit 1)) as p
    order by p.line limit 1) as r)
update holdfast_runs set turn = 0
where id = any (array(
  select f.id from front as f
  where not exists (
    select 1 from holdfast_runs as g
    where g.concurrency_key = f.key and g.turn = 0 and g.queue = f.queue and g.job_name = f.job
      and g.status = 'pending' and g.due = 1 and g.concurrency_key is not null
      and (-g.priority, g.run_at, g.id) < (-f.priority, f.run_at, f.id) offset 0)));

-- name: has_claimable
select exists (
  select 1 from jsonb_array_elements($1::jsonb) as job (value)
  join holdfast_runs as p
    on p.status = 'pending' and p.due = 1 and p.turn <> 1 and p.crashes >= 0
    and p.queue = job.value ->> 0 and p.job_name = job.value ->> 1
  where job.value ->> 2 is null or (job.value ->> 2)::bigint > (
    select count(*) from holdfast_runs where status = 'leased' and attempt >= 0 and job_name = job.value ->> 1))
or exists (
  select 1 from holdfast_runs
  where status = 'pending' and due = 0 and attempt >= 0 and run_at <= coalesce($2::bigint, {now}))
or exists (
  select 1 from holdfast_runs
  where status = 'waiting' and wake_at is not null and attempt >= 0 and wake_at <= coalesce($2::bigint, {now}));

-- name: finish
-- Fenced: only while generation and owner are still the holder's own. With $3 = 1 only of runs that have nothing of a
-- tree and no key: to end them is all that has to be said. (The type is what it always is. Of a condition like that the
-- planner expects little to be left, and little is looked for by an index. Of a hundred rows, which it expects of each
-- array, it would read the whole table as long as that is small, and keep doing so while it grows.)
update holdfast_runs as r set
  status = e.status, lease_owner = null, lease_expires_at = null, updated_at = $2,
  completed_at = case when e.ends then $2::bigint end,
  output = e.output,
  -- Until the run has ended, the error of its last attempt stays.
  error = case when e.status in ('pending', 'waiting') then coalesce(e.error, r.error) else e.error end,
  error_type = case when e.status in ('pending', 'waiting') then coalesce(e.error_type, r.error_type)
               else e.error_type end,
  attempt = r.attempt + e.attempt,
  run_at = case when e.delay > 0 then $2::bigint + e.delay else r.run_at end,
  due = case when e.delay > 0 then 0 else r.due end,
  turn = case
    when e.status = 'pending' or (e.status = 'waiting' and e.holds) then r.turn
    when e.status = 'waiting' then (r.concurrency_key is not null)::int
    else 0 end,
  waiting_for = e.waiting_for, used = e.used,
  wake_at = case when e.status = 'waiting' then (
    select min(until) from holdfast_waits where run_id = e.id) end,
  tree = case when r.tree > 0 and e.ends and e.status <> 'completed' then 2 else r.tree end
from (
  select
    value ->> 0 as id, (value ->> 1)::bigint as generation, value ->> 2 as owner, value ->> 3 as status,
    (value ->> 4)::boolean as ends, value ->> 5 as output, value ->> 6 as error, value ->> 7 as error_type,
    (value ->> 8)::bigint as attempt, (value ->> 9)::bigint as delay, value ->> 10 as waiting_for,
    (value ->> 11)::bigint as used, (value ->> 12)::boolean as holds
  from jsonb_array_elements($1::jsonb) as e (value)
  where jsonb_typeof(value) = 'array') as e
where r.id = e.id and r.generation = e.generation and r.lease_owner = e.owner
  and ($3 = 0 or (r.tree = 0 and r.concurrency_key is null and r.parent_id is null))
returning r.id, r.generation, case when r.status <> 'pending' and r.turn <> 2 then r.concurrency_key end, r.status, r.parent_id, r.tree;

-- name: states
select r.id, r.generation, r.status, r.lease_owner
from jsonb_array_elements_text($1::jsonb) as e (id)
cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r;

-- name: cancel
-- Guarded by status; the holder of a lease finds its generation gone.
update holdfast_runs set
  status = 'cancelled', generation = generation + 1, lease_owner = null, lease_expires_at = null,
  waiting_for = null, turn = 0, tree = case tree when 0 then 0 else 2 end, completed_at = $2, updated_at = $2
where id = any (array(select jsonb_array_elements_text($1::jsonb))) and status in ('pending', 'leased', 'waiting')
returning id, concurrency_key, parent_id, tree;

-- name: expire
-- Leases that ran out. After $2 in a row without progress the run is given up. More are looked at than are taken, so that
-- those which somebody holds locked do not stand before the others.
with c as materialized (
  select id, concurrency_key, parent_id from holdfast_runs
  where status = 'leased' and crashes >= 0 and lease_expires_at <= $1
  order by lease_expires_at limit $3::bigint * 4),
{those_above},
l as materialized (
  select r.id from holdfast_runs as r
  where r.id = any (array({lockable}))
    and r.status = 'leased' and r.lease_expires_at <= $1
  order by r.lease_expires_at limit $3
  for no key update skip locked)
update holdfast_runs as r set
  status = case when r.crashes + 1 >= $2 then 'failed' else 'pending' end,
  error = case when r.crashes + 1 >= $2
          then 'The worker died ' || (r.crashes + 1) || ' times in a row while executing this run, without progress'
          else r.error end,
  error_type = case when r.crashes + 1 >= $2 then 'WorkerCrashed' else r.error_type end,
  completed_at = case when r.crashes + 1 >= $2 then $1::bigint end,
  turn = case when r.crashes + 1 >= $2 then 0 else r.turn end,
  tree = case when r.crashes + 1 >= $2 and r.tree > 0 then 2 else r.tree end,
  generation = r.generation + 1, crashes = r.crashes + 1, lease_owner = null, lease_expires_at = null, updated_at = $1
from l where r.id = l.id
returning {columns};

-- name: pass_deadlines
-- Runs that have not ended in time, whatever they are doing. The holder of a lease finds its generation gone.
with c as materialized (
  select id, concurrency_key, parent_id from holdfast_runs
  where deadline_at <= $1 and deadline_at is not null and completed_at is null and crashes >= 0
  order by deadline_at limit $2::bigint * 4),
{those_above},
l as materialized (
  select r.id from holdfast_runs as r
  where r.id = any (array({lockable}))
    and r.deadline_at <= $1 and r.completed_at is null
  order by r.deadline_at limit $2
  for no key update skip locked)
update holdfast_runs as r set
  status = 'timed_out', error = 'The run did not end before its deadline', error_type = 'TimedOut',
  generation = r.generation + 1, lease_owner = null, lease_expires_at = null, waiting_for = null, turn = 0,
  tree = case r.tree when 0 then 0 else 2 end, completed_at = $1, updated_at = $1
from l where r.id = l.id
returning {columns};

-- name: recall
-- What is leased to $2 but is not among the runs ($1) that it knows of: the answer to its claim was lost.
update holdfast_runs set
  status = 'pending', generation = generation + 1, lease_owner = null, lease_expires_at = null, updated_at = $3
where id = any (array(
  select id from holdfast_runs
  where status = 'leased' and crashes >= 0 and lease_owner = $2 and id <> all (array(select jsonb_array_elements_text($1::jsonb)))
  for no key update skip locked));

-- name: renew_leases
-- Fenced, and by nothing else: a lease that looks too old after a jump of the clock is renewed until somebody took it.
update holdfast_runs as r set lease_expires_at = $2::bigint + (e.value ->> 3)::bigint
from jsonb_array_elements($1::jsonb) as e (value)
where jsonb_typeof(e.value) = 'array'  -- as in `finish`
  and r.id = e.value ->> 0 and r.generation = (e.value ->> 1)::bigint and r.lease_owner = e.value ->> 2
returning r.id, r.generation, r.lease_owner;

-- name: lost_leases
select e.at - 1, coalesce(r.status, 'gone')
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
left join lateral (select * from holdfast_runs where id = e.value ->> 0 offset 0) as r on true
where r.id is null or r.generation <> (e.value ->> 1)::bigint or r.lease_owner is distinct from e.value ->> 2;

-- name: ended
-- Nothing but what is news: whoever waits for thousands asks often.
select e.id, coalesce(r.status, 'gone')
from jsonb_array_elements_text($1::jsonb) as e (id)
left join lateral (select * from holdfast_runs where id = e.id offset 0) as r on true
where r.id is null or r.completed_at is not null;

-- name: move_on
-- A checkpoint was saved: the crashes in a row are over.
update holdfast_runs set crashes = 0 where id = any (array(select jsonb_array_elements_text($1::jsonb))) and crashes > 0;

-- name: save_progress
insert into holdfast_progress as p (run_id, progress, updated_at)
select e.value ->> 0, e.value ->> 3, $2
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (select * from holdfast_runs where id = e.value ->> 0 offset 0) as r
where r.generation = (e.value ->> 1)::bigint and r.lease_owner = e.value ->> 2
on conflict (run_id) do update set progress = excluded.progress, updated_at = excluded.updated_at;
