-- One statement per verb and round: each takes all rows of the round as one JSON array (of arrays, or of texts): $1.
-- {runs} are those of an array of ids (e, r), {held} those whose holder speaks.
-- `straight_join` keeps the array outside, and `force index` lets each of its rows find its run by that index: a small
-- table would be read as a whole, and all of it locked. What a round may wait for was locked before (locks.sql). An
-- update tells nothing here; where somebody wants to know, `told_…` asks beforehand.

-- name: insert_runs
-- Runs that are not there yet: neither by their id nor by their idempotency key, in the order in which they are given.
-- One with a concurrency key stands behind until `bring_forward`.
insert ignore into holdfast_runs (
  id, job_name, input, queue, priority, run_at, due, turn, idempotency_key, concurrency_key, labels, tenant, codec,
  trace, timeout, retry, deadline_at, parent_id, root_id, child_index, is_finalize, awaited_as,
  status, created_at, updated_at)
select
  e.id, e.job_name, e.input, e.queue, e.priority, e.run_at, e.run_at <= $2, e.concurrency_key is not null,
  e.idempotency_key, e.concurrency_key, e.labels, e.tenant, e.codec, e.trace, e.timeout, e.retry, e.deadline_at,
  e.parent_id, e.root_id, e.child_index, e.is_finalize, e.awaited_as, 'pending', $2, $2
from json_table($1, '$[*]' columns (
  id {text} path '$[0]', job_name {text} path '$[1]', input {text} path '$[2]', queue {text} path '$[3]',
  priority bigint path '$[4]', run_at bigint path '$[5]', idempotency_key {text} path '$[6]',
  concurrency_key {text} path '$[7]', labels {text} path '$[8]', tenant {text} path '$[9]', codec {text} path '$[10]',
  trace {text} path '$[11]', timeout bigint path '$[13]', retry {text} path '$[14]',
  deadline_at bigint path '$[15]', parent_id {text} path '$[16]', root_id {text} path '$[17]',
  child_index bigint path '$[18]', is_finalize tinyint path '$[19]', awaited_as {text} path '$[20]')) as e
returning id;

-- name: taken_lines
-- Which of these runs would not be the first in their lines.
select e.at - 1
from json_table($1, '$[*]' columns (
  at for ordinality, job_name {text} path '$[1]', concurrency_key {text} path '$[7]')) as e
straight_join holdfast_runs as r force index (holdfast_runs_first_in_line)
  on r.job_name = e.job_name and r.first_in_line = e.concurrency_key;

-- name: take_out
-- Of the runs that this transaction has just inserted.
delete r from {runs};

-- name: batch
-- Runs that are written together or not at all, whoever else is in the round. The caller's transaction survives, too.
savepoint holdfast_batch;

-- name: undo_batch
rollback to savepoint holdfast_batch;

-- name: end_batch
release savepoint holdfast_batch;

-- name: insert_labels
insert ignore into holdfast_labels (`key`, value, run_id)
select e.name, e.value, e.id
from json_table($1, '$[*]' columns (id {text} path '$[0]', name {text} path '$[1]', value {text} path '$[2]')) as e;

-- name: find_triggered
-- The runs that stood in the way of an insertion: by id (written before, its answer was lost), by idempotency key,
-- as the one of this concurrency key that was never claimed, or as one that is under way and good enough for who asks
-- with coalesce="active". In this order: the first of several is the answer.
with e as (
  select * from json_table($1, '$[*]' columns (
    at for ordinality, id {text} path '$[0]', job_name {text} path '$[1]', idempotency_key {text} path '$[6]',
    concurrency_key {text} path '$[7]', tenant {text} path '$[9]', coalesce {text} path '$[12]',
    parent_id {text} path '$[16]')) as e)
select e.at - 1, 0 as place, {columns}
from e straight_join holdfast_runs as r force index (primary) on r.id = e.id
union all
select e.at - 1, 1, {columns}
from e straight_join holdfast_runs as r force index (holdfast_runs_idempotency)
  on r.tenant = e.tenant and r.job_name = e.job_name and r.idempotency_key = e.idempotency_key
union all
select e.at - 1, 2, {columns}
from e straight_join holdfast_runs as r force index (holdfast_runs_first_in_line)
  on r.job_name = e.job_name and r.first_in_line = e.concurrency_key
where e.parent_id is null
union all
select e.at - 1, 3, {columns}
from e straight_join holdfast_runs as r force index (holdfast_runs_of_key)
  on r.open_key = e.concurrency_key and r.job_name = e.job_name
where e.coalesce = 'active'
order by 2, 3 desc;

-- name: find_active
-- Which of these need not be written, because a run of their job and concurrency key is under way.
select distinct e.at - 1
from json_table($1, '$[*]' columns (
  at for ordinality, job_name {text} path '$[1]', concurrency_key {text} path '$[7]',
  coalesce {text} path '$[12]')) as e
straight_join holdfast_runs as r force index (holdfast_runs_of_key)
  on r.open_key = e.concurrency_key and r.job_name = e.job_name
where e.coalesce = 'active';

-- name: next_due
-- When the next delayed run wants to start.
select delayed_until from holdfast_runs where delayed_until is not null order by delayed_until limit 1;

-- name: look_for_delayed
-- Delayed runs whose time has come. Bounded, so that a million due at midnight do not stop everybody else.
select id, concurrency_key from holdfast_runs where delayed_until <= $1 order by delayed_until limit $2;

-- name: lock_delayed
select r.id, if(r.turn = 1, r.concurrency_key, null)
from {runs}
where r.status = 'pending' and r.due = 0
for update skip locked;

-- name: promote
update {runs} set r.due = 1;

-- name: lock_keyed
-- Of these ($1), whose keys are locked, those that may go now. Of several that may go of one key (of several jobs or
-- queues: $2) the first goes.
select {columns}
from {runs}
where r.claimable = 2
  and not exists (
    select 1 from holdfast_runs as h force index (holdfast_runs_holding)
    where h.held_key = r.concurrency_key and h.id <> r.id)
  and not exists (
    select 1 from holdfast_runs as o force index (holdfast_runs_in_line)
    straight_join json_table($2, '$[*]' columns (queue {text} path '$[0]', job_name {text} path '$[1]')) as w
      on w.queue = o.queue and w.job_name = o.job_name
    where o.line_key = r.concurrency_key and o.turn = 0
      and (o.priority > r.priority or (o.priority = r.priority and (o.run_at, o.id) < (r.run_at, r.id))))
for update skip locked;

-- name: lease
update {runs} set
  r.status = 'leased', r.lease_owner = $2, r.lease_expires_at = $3 + $4, r.generation = r.generation + 1,
  r.turn = if(r.concurrency_key is null, 0, 2), r.started_at = coalesce(r.started_at, $3), r.updated_at = $3;

-- name: leased_of_jobs
-- How many of each of these jobs are leased.
select e.id, (
  select count(*) from holdfast_runs as r force index (holdfast_runs_leased_of_job) where r.leased_job = e.id)
from {ids};

-- name: line_of_keys
-- Of these keys, which are held now, what might have gone and must wait.
select f.id
from {ids}
straight_join holdfast_runs as f force index (holdfast_runs_in_line) on f.line_key = e.id and f.turn = 0;

-- name: out_of_turn
-- Of these runs, whose keys are locked, those that must wait, because somebody holds their key.
select r.id
from {runs}
where r.claimable = 2 and r.turn = 0
  and exists (
    select 1 from holdfast_runs as h force index (holdfast_runs_holding) where h.held_key = r.concurrency_key);

-- name: hold_back
update {runs} set r.turn = 1;

-- name: front_of_keys
-- Of these keys, those that nobody holds: the first that waits in each line may go, unless one that may go stands
-- before it. From line to line, without reading them.
with recursive front as (
  select r.id, r.line_key, r.line, r.priority, r.run_at
  from {ids}
  straight_join holdfast_runs as r force index (primary) on r.id = (
    select p.id from holdfast_runs as p force index (holdfast_runs_in_line)
    where p.line_key = e.id and p.turn = 1
    order by p.line, p.priority desc, p.run_at, p.id limit 1)
  where not exists (select 1 from holdfast_runs as h force index (holdfast_runs_holding) where h.held_key = e.id)
  union all
  select r.id, r.line_key, r.line, r.priority, r.run_at
  from front as f
  straight_join holdfast_runs as r force index (primary) on r.id = (
    select p.id from holdfast_runs as p force index (holdfast_runs_in_line)
    where p.line_key = f.line_key and p.turn = 1 and p.line > f.line
    order by p.line, p.priority desc, p.run_at, p.id limit 1))
select f.id from front as f
where not exists (
  select 1 from holdfast_runs as g force index (holdfast_runs_in_line)
  where g.line_key = f.line_key and g.turn = 0 and g.line = f.line
    and (g.priority > f.priority or (g.priority = f.priority and (g.run_at, g.id) < (f.run_at, f.id))));

-- name: bring_forward
update {runs} set r.turn = 0;

-- name: has_claimable
select exists (
  select 1
  from json_table($1, '$[*]' columns (
    queue {text} path '$[0]', job_name {text} path '$[1]', room bigint path '$[2]')) as e
  straight_join (select 1 as kind union all select 2) as k
  straight_join holdfast_runs as p force index (holdfast_runs_claimable)
    on p.claimable = k.kind and p.queue = e.queue and p.job_name = e.job_name
  where e.room is null or e.room > (
    select count(*) from holdfast_runs as l force index (holdfast_runs_leased_of_job) where l.leased_job = e.job_name))
or exists (select 1 from holdfast_runs where delayed_until <= coalesce($2, {now}))
or exists (select 1 from holdfast_runs where asleep_until <= coalesce($2, {now}));

-- name: told_finish
-- Fenced: only while generation and owner are still the holder's own.
select r.id, r.generation, if(e.status = 'pending' or (e.status = 'waiting' and e.holds), null, r.concurrency_key), e.status, r.parent_id,
  if(r.tree > 0 and e.ends and e.status <> 'completed', 2, r.tree)
from json_table($1, '$[*]' columns (
  id {text} path '$[0]', generation bigint path '$[1]', owner {text} path '$[2]', status {text} path '$[3]',
  ends tinyint path '$[4]', holds tinyint path '$[12]')) as e
{held}
for update;

-- name: finish
update json_table($1, '$[*]' columns (
  id {text} path '$[0]', generation bigint path '$[1]', owner {text} path '$[2]', status {text} path '$[3]',
  ends tinyint path '$[4]', output {text} path '$[5]', error {text} path '$[6]', error_type {text} path '$[7]',
  attempt bigint path '$[8]', delay bigint path '$[9]', waiting_for {text} path '$[10]',
  used bigint path '$[11]', holds tinyint path '$[12]')) as e
{held}
set
  r.status = e.status, r.lease_owner = null, r.lease_expires_at = null, r.updated_at = $2,
  r.completed_at = if(e.ends, $2, null),
  r.output = e.output,
  -- Until the run has ended, the error of its last attempt stays.
  r.error = if(e.status in ('pending', 'waiting'), coalesce(e.error, r.error), e.error),
  r.error_type = if(e.status in ('pending', 'waiting'), coalesce(e.error_type, r.error_type), e.error_type),
  r.attempt = r.attempt + e.attempt,
  r.run_at = if(e.delay > 0, $2 + e.delay, r.run_at),
  r.due = if(e.delay > 0, 0, r.due),
  r.turn = case
    when e.status = 'pending' or (e.status = 'waiting' and e.holds) then r.turn
    when e.status = 'waiting' then r.concurrency_key is not null
    else 0 end,
  r.waiting_for = e.waiting_for, r.used = e.used,
  r.wake_at = if(e.status = 'waiting', (
    select min(w.until) from holdfast_waits as w force index (primary) where w.run_id = e.id), null),
  r.tree = if(r.tree > 0 and e.ends and e.status <> 'completed', 2, r.tree);

-- name: states
select r.id, r.generation, r.status, r.lease_owner
from {runs};

-- name: told_cancel
-- Guarded by status; the holder of a lease finds its generation gone.
select r.id, r.concurrency_key, r.parent_id, if(r.tree = 0, 0, 2)
from {runs}
where r.status in ('pending', 'leased', 'waiting')
for update;

-- name: cancel
update {runs} set
  r.status = 'cancelled', r.generation = r.generation + 1, r.lease_owner = null, r.lease_expires_at = null,
  r.waiting_for = null, r.turn = 0, r.tree = if(r.tree = 0, 0, 2), r.completed_at = $2, r.updated_at = $2
where r.status in ('pending', 'leased', 'waiting');

-- name: look_for_expired
-- Leases that ran out. Each with the run above it, which its end may wake.
select r.id, r.concurrency_key, p.id, p.concurrency_key
from holdfast_runs as r force index (holdfast_runs_leases)
left join holdfast_runs as p force index (primary) on p.id = r.parent_id and p.completed_at is null
where r.lease_expires_at <= $1
order by r.lease_expires_at limit $2;

-- name: lock_expired
select r.id from {runs}
where r.lease_expires_at <= $2
limit $3
for update skip locked;

-- name: expire
-- After $3 in a row without progress the run is given up.
update {runs} set
  r.status = if(r.crashes + 1 >= $3, 'failed', 'pending'),
  r.error = if(r.crashes + 1 >= $3,
    concat('The worker died ', r.crashes + 1, ' times in a row while executing this run, without progress'), r.error),
  r.error_type = if(r.crashes + 1 >= $3, 'WorkerCrashed', r.error_type),
  r.completed_at = if(r.crashes + 1 >= $3, $2, null),
  r.turn = if(r.crashes + 1 >= $3, 0, r.turn),
  r.tree = if(r.crashes + 1 >= $3 and r.tree > 0, 2, r.tree),
  r.generation = r.generation + 1, r.lease_owner = null, r.lease_expires_at = null, r.updated_at = $2,
  r.crashes = r.crashes + 1;

-- name: look_for_late
-- Runs that have not ended in time, whatever they are doing.
select r.id, r.concurrency_key, p.id, p.concurrency_key
from holdfast_runs as r force index (holdfast_runs_deadline)
left join holdfast_runs as p force index (primary) on p.id = r.parent_id and p.completed_at is null
where r.open_deadline <= $1
order by r.open_deadline limit $2;

-- name: lock_late
select r.id from {runs}
where r.open_deadline <= $2
limit $3
for update skip locked;

-- name: pass_deadlines
-- The holder of a lease finds its generation gone.
update {runs} set
  r.status = 'timed_out', r.error = 'The run did not end before its deadline', r.error_type = 'TimedOut',
  r.generation = r.generation + 1, r.lease_owner = null, r.lease_expires_at = null, r.waiting_for = null, r.turn = 0,
  r.tree = if(r.tree = 0, 0, 2), r.completed_at = $2, r.updated_at = $2;

-- name: runs
-- These runs, as they are.
select {columns} from {runs};

-- name: leased_to
select id from holdfast_runs where lease_expires_at is not null and lease_owner = $1;

-- name: lock_leased
select r.id from {runs}
where r.status = 'leased' and r.lease_owner = $2
for update skip locked;

-- name: recall
-- What is leased to a worker that doesn't know of it: the answer to its claim was lost.
update {runs} set
  r.status = 'pending', r.generation = r.generation + 1, r.lease_owner = null, r.lease_expires_at = null,
  r.updated_at = $2;

-- name: told_renew_leases
-- Fenced, and by nothing else: a lease that looks too old after a jump of the clock is renewed until somebody took it.
select r.id, r.generation, r.lease_owner
from {leases} {held}
for update;

-- name: renew_leases
update json_table($1, '$[*]' columns (
  id {text} path '$[0]', generation bigint path '$[1]', owner {text} path '$[2]', duration bigint path '$[3]')) as e
{held}
set r.lease_expires_at = $2 + e.duration;

-- name: lost_leases
select e.at - 1, coalesce(r.status, 'gone')
from {leases} left join holdfast_runs as r on r.id = e.id
where r.id is null or r.generation <> e.generation or not r.lease_owner <=> e.owner;

-- name: ended
-- Nothing but what is news: whoever waits for thousands asks often.
select e.id, coalesce(r.status, 'gone')
from {ids} left join holdfast_runs as r on r.id = e.id
where r.id is null or r.completed_at is not null;

-- name: move_on
-- A checkpoint was saved: the crashes in a row are over.
update {runs} set r.crashes = 0 where r.crashes > 0;

-- name: save_progress
insert into holdfast_progress (run_id, progress, updated_at)
select e.id, e.progress, $2
from json_table($1, '$[*]' columns (
  id {text} path '$[0]', generation bigint path '$[1]', owner {text} path '$[2]', progress {text} path '$[3]')) as e
{held}
on duplicate key update progress = values(progress), updated_at = values(updated_at);
