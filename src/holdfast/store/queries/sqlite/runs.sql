-- One statement per verb and round: each takes all rows of the round as one JSON array of arrays (?1).
-- `cross join` keeps SQLite from turning the loop around: the array is always the outer one.

-- name: insert_runs
-- Runs that are not there yet: neither by their id nor by their idempotency key.
-- One with a concurrency key stands behind until `bring_forward`.
insert into holdfast_runs (
  id, job_name, input, queue, priority, run_at, due, turn, idempotency_key, concurrency_key, labels, tenant, codec,
  trace, timeout, retry, deadline_at, parent_id, root_id, child_index, is_finalize, awaited_as,
  status, created_at, updated_at)
select
  value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 5 <= ?2,
  (value ->> 7) is not null, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11,
  value ->> 13, value ->> 14, value ->> 15,
  value ->> 16, value ->> 17, value ->> 18, value ->> 19, value ->> 20,
  'pending', ?2, ?2
from json_each(?1)
where true
on conflict do nothing
returning id;

-- name: batch
-- Runs that are written together or not at all, whoever else is in the round. The caller's transaction survives, too.
savepoint holdfast_batch;

-- name: undo_batch
rollback to holdfast_batch;

-- name: end_batch
release holdfast_batch;

-- name: insert_labels
insert into holdfast_labels (key, value, run_id)
select label.key, label.value, run.value
from json_each(?1) as run
cross join holdfast_runs as r on r.id = run.value
cross join json_each(r.labels) as label
where true
on conflict do nothing;

-- name: find_triggered
-- The runs that stood in the way of an insertion: by id (written before, its answer was lost), by idempotency key,
-- as the one of this concurrency key that was never claimed, or as one that is under way and good enough for who asks
-- with coalesce="active". In this order: the first of several is the answer.
select e.key, 0 as place, {columns}
from json_each(?1) as e
cross join holdfast_runs as r on r.id = e.value ->> 0
union all
select e.key, 1, {columns}
from json_each(?1) as e
cross join holdfast_runs as r
  on r.tenant = e.value ->> 9 and r.job_name = e.value ->> 1 and r.idempotency_key = e.value ->> 6
union all
select e.key, 2, {columns}
from json_each(?1) as e
cross join holdfast_runs as r
  on r.job_name = e.value ->> 1 and r.concurrency_key = e.value ->> 7
  and r.status = 'pending' and r.generation = 0 and r.concurrency_key is not null and r.parent_id is null
  and e.value ->> 16 is null
union all
select e.key, 3, {columns}
from json_each(?1) as e
cross join holdfast_runs as r
  on r.job_name = e.value ->> 1 and r.concurrency_key = e.value ->> 7
  and r.completed_at is null and r.concurrency_key is not null
where e.value ->> 12 = 'active'
order by 2, 3 desc;

-- name: find_active
-- Which of these need not be written, because a run of their job and concurrency key is under way.
select e.key
from json_each(?1) as e
where e.value ->> 12 = 'active' and exists (
  select 1 from holdfast_runs as r
  where r.job_name = e.value ->> 1 and r.concurrency_key = e.value ->> 7
    and r.completed_at is null and r.concurrency_key is not null);

-- name: next_due
-- When the next delayed run wants to start.
select run_at from holdfast_runs where status = 'pending' and due = 0 order by run_at limit 1;

-- name: promote
-- Delayed runs whose time has come. Bounded, so that a million due at midnight do not stop everybody else.
update holdfast_runs set due = 1
where rowid in (
  select rowid from holdfast_runs
  where status = 'pending' and due = 0 and run_at <= ?1
  order by run_at limit ?2)
returning iif(turn = 1, concurrency_key, null);

-- name: claim
-- The first ?2 in claim order of each job in each queue (?1), and the first ?2 of those. What waits for its key is not
-- in the index. Of several that may go of one key (of several jobs or queues) the first goes.
update holdfast_runs set
  status = 'leased', lease_owner = ?3, lease_expires_at = ?4 + ?5, generation = generation + 1,
  turn = iif(concurrency_key is null, 0, 2), started_at = coalesce(started_at, ?4), updated_at = ?4
where rowid in (
  select c.rowid
  from json_each(?1) as job
  cross join holdfast_runs as c on c.rowid in (
    select p.rowid from holdfast_runs as p
    where p.status = 'pending' and p.due = 1 and p.turn <> 1 and p.queue = job.value ->> 0 and p.job_name = job.value ->> 1
    order by p.priority desc, p.run_at, p.id limit ?2)
  where c.concurrency_key is null or {first_of_key}
  order by c.priority desc, c.run_at, c.id limit ?2)
returning {bare_columns};

-- name: claim_within
-- The same, and of each job only as many as it has room for (third of each in ?1).
update holdfast_runs set
  status = 'leased', lease_owner = ?3, lease_expires_at = ?4 + ?5, generation = generation + 1,
  turn = iif(concurrency_key is null, 0, 2), started_at = coalesce(started_at, ?4), updated_at = ?4
where rowid in (
  select at from (
    select c.rowid as at, job.value ->> 2 as room, c.priority, c.run_at, c.id,
      row_number() over (partition by c.job_name order by c.priority desc, c.run_at, c.id) as place
    from json_each(?1) as job
    cross join holdfast_runs as c on c.rowid in (
      select p.rowid from holdfast_runs as p
      where p.status = 'pending' and p.due = 1 and p.turn <> 1 and p.queue = job.value ->> 0
        and p.job_name = job.value ->> 1
      order by p.priority desc, p.run_at, p.id limit ?2)
    where c.concurrency_key is null or {first_of_key})
  where room is null or place <= room
  order by priority desc, run_at, id limit ?2)
returning {bare_columns};

-- name: leased_of_jobs
-- How many of each of these jobs are leased.
select e.value, (
  select count(*) from holdfast_runs indexed by holdfast_runs_leased_of_job
  where status = 'leased' and job_name = e.value)
from json_each(?1) as e;

-- name: hold_back
-- These keys are held now: what might have gone must wait.
update holdfast_runs set turn = 1
where rowid in (
  select f.rowid
  from json_each(?1) as k
  cross join holdfast_runs as f
    on f.concurrency_key = k.value and f.turn = 0 and f.status = 'pending' and f.due = 1
    and f.concurrency_key is not null);

-- name: bring_forward
-- Of these keys, those that nobody holds: the first that waits in each line may go, unless one that may go stands before
-- it. From line to line, without reading them.
with recursive front (at, key, queue, job, priority, run_at, id) as (
  select r.rowid, r.concurrency_key, r.queue, r.job_name, r.priority, r.run_at, r.id
  from json_each(?1) as k
  cross join holdfast_runs as r on r.rowid = (
    select p.rowid from holdfast_runs as p
    where p.concurrency_key = k.value and p.turn = 1
      and p.status = 'pending' and p.due = 1 and p.concurrency_key is not null
    order by p.queue, p.job_name, p.priority desc, p.run_at, p.id limit 1)
  where not exists (
    select 1 from holdfast_runs as h
    where h.concurrency_key = k.value and h.turn = 2 and h.status in ('pending', 'leased', 'waiting')
      and h.concurrency_key is not null)
  union all
  select r.rowid, r.concurrency_key, r.queue, r.job_name, r.priority, r.run_at, r.id
  from front as f
  cross join holdfast_runs as r on r.rowid = coalesce((
    select p.rowid from holdfast_runs as p
    where p.concurrency_key = f.key and p.turn = 1 and p.queue = f.queue and p.job_name > f.job
      and p.status = 'pending' and p.due = 1 and p.concurrency_key is not null
    order by p.job_name, p.priority desc, p.run_at, p.id limit 1), (
    select p.rowid from holdfast_runs as p
    where p.concurrency_key = f.key and p.turn = 1 and p.queue > f.queue
      and p.status = 'pending' and p.due = 1 and p.concurrency_key is not null
    order by p.queue, p.job_name, p.priority desc, p.run_at, p.id limit 1)))
update holdfast_runs set turn = 0
where rowid in (
  select f.at from front as f
  where not exists (
    select 1 from holdfast_runs as g
    where g.concurrency_key = f.key and g.turn = 0 and g.queue = f.queue and g.job_name = f.job
      and g.status = 'pending' and g.due = 1 and g.concurrency_key is not null
      and (-g.priority, g.run_at, g.id) < (-f.priority, f.run_at, f.id)));

-- name: has_claimable
select exists (
  select 1 from json_each(?1) as job
  cross join holdfast_runs as p
  where p.status = 'pending' and p.due = 1 and p.turn <> 1 and p.queue = job.value ->> 0 and p.job_name = job.value ->> 1
    and (job.value ->> 2 is null or job.value ->> 2 > (
      select count(*) from holdfast_runs indexed by holdfast_runs_leased_of_job
      where status = 'leased' and job_name = job.value ->> 1)))
or exists (select 1 from holdfast_runs where status = 'pending' and due = 0 and run_at <= ?2)
or exists (select 1 from holdfast_runs where status = 'waiting' and wake_at is not null and wake_at <= ?2);

-- name: finish
-- Fenced: only while generation and owner are still the holder's own.
update holdfast_runs as r set
  status = e.value ->> 3, lease_owner = null, lease_expires_at = null, updated_at = ?2,
  completed_at = iif(e.value ->> 4, ?2, null),
  output = e.value ->> 5,
  -- Until the run has ended, the error of its last attempt stays.
  error = iif(e.value ->> 3 in ('pending', 'waiting'), coalesce(e.value ->> 6, r.error), e.value ->> 6),
  error_type = iif(e.value ->> 3 in ('pending', 'waiting'), coalesce(e.value ->> 7, r.error_type), e.value ->> 7),
  attempt = r.attempt + (e.value ->> 8),
  run_at = iif(e.value ->> 9 > 0, ?2 + (e.value ->> 9), r.run_at),
  due = iif(e.value ->> 9 > 0, 0, r.due),
  turn = case e.value ->> 3 when 'pending' then r.turn 
    when 'waiting' then iif(e.value ->> 12, r.turn, r.concurrency_key is not null) else 0 end,
  waiting_for = e.value ->> 10, used = e.value ->> 11,
  wake_at = iif(e.value ->> 3 = 'waiting', (select min(w.until) from holdfast_waits as w where w.run_id = r.id), null),
  tree = iif(r.tree > 0 and e.value ->> 4 and e.value ->> 3 <> 'completed', 2, r.tree)
from json_each(?1) as e
where r.id = e.value ->> 0 and r.generation = e.value ->> 1 and r.lease_owner = e.value ->> 2
returning id, generation, iif(status = 'pending' or turn = 2, null, concurrency_key), status, parent_id, tree;

-- name: states
select r.id, r.generation, r.status, r.lease_owner
from json_each(?1) as e
cross join holdfast_runs as r on r.id = e.value;

-- name: cancel
-- Guarded by status; the holder of a lease finds its generation gone.
update holdfast_runs set
  status = 'cancelled', generation = generation + 1, lease_owner = null, lease_expires_at = null,
  waiting_for = null, turn = 0, tree = iif(tree = 0, 0, 2), completed_at = ?2, updated_at = ?2
where id in (select value from json_each(?1)) and status in ('pending', 'leased', 'waiting')
returning id, concurrency_key, parent_id, tree;

-- name: expire
-- Leases that ran out. After ?2 in a row without progress the run is given up.
update holdfast_runs set
  status = iif(crashes + 1 >= ?2, 'failed', 'pending'),
  error = iif(crashes + 1 >= ?2,
              'The worker died ' || (crashes + 1) || ' times in a row while executing this run, without progress', error),
  error_type = iif(crashes + 1 >= ?2, 'WorkerCrashed', error_type),
  completed_at = iif(crashes + 1 >= ?2, ?1, null),
  turn = iif(crashes + 1 >= ?2, 0, turn),
  tree = iif(crashes + 1 >= ?2 and tree > 0, 2, tree),
  generation = generation + 1, crashes = crashes + 1, lease_owner = null, lease_expires_at = null, updated_at = ?1
where rowid in (
  select rowid from holdfast_runs
  where status = 'leased' and lease_expires_at <= ?1
  order by lease_expires_at limit ?3)
returning {bare_columns};

-- name: pass_deadlines
-- Runs that have not ended in time, whatever they are doing. The holder of a lease finds its generation gone.
update holdfast_runs set
  status = 'timed_out', error = 'The run did not end before its deadline', error_type = 'TimedOut',
  generation = generation + 1, lease_owner = null, lease_expires_at = null, waiting_for = null, turn = 0,
  tree = iif(tree = 0, 0, 2), completed_at = ?1, updated_at = ?1
where rowid in (
  select rowid from holdfast_runs
  where deadline_at <= ?1 and deadline_at is not null and completed_at is null
  order by deadline_at limit ?2)
returning {bare_columns};

-- name: recall
-- What is leased to ?2 but is not among the runs (?1) that it knows of: the answer to its claim was lost.
update holdfast_runs set
  status = 'pending', generation = generation + 1, lease_owner = null, lease_expires_at = null, updated_at = ?3
where status = 'leased' and lease_owner = ?2 and id not in (select value from json_each(?1));

-- name: renew_leases
-- Fenced, and by nothing else: a lease that looks too old after a jump of the clock is renewed until somebody took it.
update holdfast_runs as r set lease_expires_at = ?2 + (e.value ->> 3)
from json_each(?1) as e
where r.id = e.value ->> 0 and r.generation = e.value ->> 1 and r.lease_owner = e.value ->> 2
returning id, generation, lease_owner;

-- name: lost_leases
select e.key, coalesce(r.status, 'gone')
from json_each(?1) as e
left join holdfast_runs as r on r.id = e.value ->> 0
where r.id is null or r.generation <> e.value ->> 1 or r.lease_owner is not e.value ->> 2;

-- name: ended
-- Nothing but what is news: whoever waits for thousands asks often.
select e.value, coalesce(r.status, 'gone')
from json_each(?1) as e
left join holdfast_runs as r on r.id = e.value
where r.id is null or r.completed_at is not null;

-- name: move_on
-- A checkpoint was saved: the crashes in a row are over.
update holdfast_runs set crashes = 0 where id in (select value from json_each(?1)) and crashes > 0;

-- name: save_progress
insert into holdfast_progress (run_id, progress, updated_at)
select e.value ->> 0, e.value ->> 3, ?2
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 0 and r.generation = e.value ->> 1 and r.lease_owner = e.value ->> 2
where true
on conflict (run_id) do update set progress = excluded.progress, updated_at = excluded.updated_at;
