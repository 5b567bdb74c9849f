-- name: follow
-- How runs stand. Asked after every commit that somebody watches: nothing that may be large is read.
select r.id, r.status, r.generation, r.lease_owner, r.lease_expires_at,
  (select progress from holdfast_progress where run_id = r.id),
  coalesce((select max(id) from holdfast_logs where run_id = r.id), 0)
from jsonb_array_elements_text($1::jsonb) as e (id)
cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r;

-- name: step_marks
select s.run_id, s.name, s.occurrence, s.position, s.generation
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (
  select * from holdfast_steps
  where run_id = e.value ->> 0 and position >= (e.value ->> 1)::bigint
  order by position offset 0) as s;

-- name: marked_steps
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (
  select * from holdfast_steps
  where run_id = e.value ->> 0 and name = e.value ->> 1 and occurrence = (e.value ->> 2)::bigint offset 0) as s
where s.position = (e.value ->> 3)::bigint and s.generation = (e.value ->> 4)::bigint;

-- name: logs_after
select l.id, l.run_id, l.generation, l.step_name, l.level, l.message, l.data, l.created_at
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (
  select * from holdfast_logs where run_id = e.value ->> 0 and id > (e.value ->> 1)::bigint order by id limit $2) as l
order by l.id limit $2;

-- name: passing
-- The newest runs, and those that are leased, some of them twice. Asked after every commit while somebody looks at all.
(select id, job_name, status, lease_owner, created_at, labels from holdfast_runs order by id desc limit $1)
union all
(select id, job_name, status, lease_owner, created_at, labels from holdfast_runs
where status = 'leased' and crashes >= 0 limit $1);
