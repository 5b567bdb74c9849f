-- name: follow
-- How runs stand. Asked after every commit that somebody watches: nothing that may be large is read.
select r.id, r.status, r.generation, r.lease_owner, r.lease_expires_at,
  (select progress from holdfast_progress where run_id = r.id),
  coalesce((select max(id) from holdfast_logs where run_id = r.id), 0)
from json_each(?1) as e
cross join holdfast_runs as r on r.id = e.value;

-- name: step_marks
select s.run_id, s.name, s.occurrence, s.position, s.generation
from json_each(?1) as e
cross join holdfast_steps as s indexed by holdfast_steps_by_position
  on s.run_id = e.value ->> 0 and s.position >= e.value ->> 1;

-- name: marked_steps
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from json_each(?1) as e
cross join holdfast_steps as s
  on s.run_id = e.value ->> 0 and s.name = e.value ->> 1 and s.occurrence = e.value ->> 2
  and s.position = e.value ->> 3 and s.generation = e.value ->> 4;

-- name: logs_after
select l.id, l.run_id, l.generation, l.step_name, l.level, l.message, l.data, l.created_at
from json_each(?1) as e
cross join holdfast_logs as l indexed by holdfast_logs_by_run
  on l.run_id = e.value ->> 0 and l.id > e.value ->> 1
order by l.id limit ?2;

-- name: passing
-- The newest runs, and those that are leased, some of them twice. Asked after every commit while somebody looks at all.
select * from (
  select id, job_name, status, lease_owner, created_at, labels from holdfast_runs
  where id > '' order by id desc limit ?1)  -- a search, not a scan: it is over after so many
union all
select * from (
  select id, job_name, status, lease_owner, created_at, labels from holdfast_runs indexed by holdfast_runs_leases
  where status = 'leased' limit ?1);
