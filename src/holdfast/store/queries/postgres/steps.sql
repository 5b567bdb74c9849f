-- name: save_steps
-- Fenced. A completed step is never written again; a failed one only by a later attempt of its run.
insert into holdfast_steps as s (
  run_id, name, occurrence, position, status, attempt, generation, fingerprint, output, error, started_at, completed_at)
select
  e.value ->> 1, e.value ->> 2, (e.value ->> 3)::bigint, (e.value ->> 4)::bigint, e.value ->> 5,
  (e.value ->> 6)::bigint, (e.value ->> 7)::bigint, e.value ->> 8, e.value ->> 9, e.value ->> 10,
  (e.value ->> 11)::bigint, (e.value ->> 12)::bigint
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (select * from holdfast_runs where id = e.value ->> 1 offset 0) as r
where r.generation = (e.value ->> 7)::bigint and r.lease_owner = e.value ->> 0
on conflict (run_id, name, occurrence) do update set
  position = excluded.position, status = excluded.status, attempt = excluded.attempt,
  generation = excluded.generation, fingerprint = excluded.fingerprint, output = excluded.output,
  error = excluded.error, started_at = excluded.started_at, completed_at = excluded.completed_at
  where s.status = 'failed' and s.attempt < excluded.attempt
returning run_id, name, occurrence, generation;

-- name: saved_steps
-- Which of these steps stand as this very execution wrote them (the answer to the first writing was lost).
select (e.value ->> 13)::bigint
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (
  select * from holdfast_steps
  where run_id = e.value ->> 1 and name = e.value ->> 2 and occurrence = (e.value ->> 3)::bigint offset 0) as s
cross join lateral (select * from holdfast_runs where id = s.run_id offset 0) as r
where s.generation = (e.value ->> 7)::bigint and s.status = e.value ->> 5 and s.started_at = (e.value ->> 11)::bigint
  and r.generation = (e.value ->> 7)::bigint and r.lease_owner = e.value ->> 0;

-- name: save_attempts
-- Fenced. What has ended is not opened again; a try whose call was lost in a crash is begun anew under its number.
insert into holdfast_step_attempts as a (
  run_id, name, occurrence, run_attempt, number, position, generation, started_at, ended_at, error)
select
  e.value ->> 1, e.value ->> 2, (e.value ->> 3)::bigint, (e.value ->> 4)::bigint, (e.value ->> 5)::bigint,
  (e.value ->> 6)::bigint, (e.value ->> 7)::bigint, (e.value ->> 8)::bigint, (e.value ->> 9)::bigint, e.value ->> 10
from jsonb_array_elements($1::jsonb) as e (value)
cross join lateral (select * from holdfast_runs where id = e.value ->> 1 offset 0) as r
where r.generation = (e.value ->> 7)::bigint and r.lease_owner = e.value ->> 0
on conflict (run_id, name, occurrence, run_attempt, number) do update set
  position = excluded.position, generation = excluded.generation, started_at = excluded.started_at,
  ended_at = excluded.ended_at, error = excluded.error
  where a.ended_at is null or excluded.ended_at is not null
returning run_id, name, occurrence, run_attempt, number, generation;

-- name: failed_tries
-- Of the steps that this attempt of the run ($2) has not saved: how many tries have failed, and when the last one did.
select a.name, a.occurrence, count(*), max(a.ended_at)
from holdfast_step_attempts as a
where a.run_id = $1 and a.run_attempt = $2 and a.error is not null and not exists (
  select 1 from holdfast_steps as s
  where s.run_id = a.run_id and s.name = a.name and s.occurrence = a.occurrence
    and (s.status = 'completed' or s.attempt = a.run_attempt))
group by a.name, a.occurrence;

-- name: find_attempts
select a.run_id, a.name, a.occurrence, a.run_attempt, a.number, a.position, a.generation, a.started_at, a.ended_at,
  a.error, coalesce(r.status = 'leased' and r.generation = a.generation, false)
from holdfast_step_attempts as a
left join holdfast_runs as r on r.id = a.run_id
where a.run_id = $1
order by a.position, a.name, a.occurrence, a.run_attempt, a.number;

-- name: first_steps
-- The first page of saved steps of several runs, and the last one of each, which tells whether there are more pages.
with e as materialized (select jsonb_array_elements_text($1::jsonb) as id)
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from e
cross join lateral (select * from holdfast_steps where run_id = e.id and position < $2 offset 0) as s
union all
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from e
cross join lateral (
  select * from holdfast_steps
  where run_id = e.id and position = (select max(position) from holdfast_steps where run_id = e.id) offset 0) as s
where s.position >= $2
order by 1, 4, 11, 2, 3;

-- name: find_steps
select run_id, name, occurrence, position, status, attempt, generation, fingerprint,
  output, error, started_at, completed_at
from holdfast_steps
where run_id = $1 and position >= $2 and position < $3
order by position, started_at, name, occurrence;

-- name: save_logs
-- Fenced. Lines have no key of their own: one that may have been written before (the last of its values) is left out if
-- it stands.
insert into holdfast_logs (run_id, generation, step_name, level, message, data, created_at)
select
  e.value ->> 0, (e.value ->> 1)::bigint, e.value ->> 3, e.value ->> 4, e.value ->> 5, e.value ->> 6,
  (e.value ->> 7)::bigint
from jsonb_array_elements($1::jsonb) with ordinality as e (value, at)
cross join lateral (select * from holdfast_runs where id = e.value ->> 0 offset 0) as r
where r.generation = (e.value ->> 1)::bigint and r.lease_owner = e.value ->> 2
  and (not (e.value ->> 8)::boolean or not exists (
    select 1 from holdfast_logs as l
    where l.run_id = r.id and l.generation = (e.value ->> 1)::bigint and l.created_at = (e.value ->> 7)::bigint
      and l.step_name is not distinct from e.value ->> 3 and l.level = e.value ->> 4 and l.message = e.value ->> 5
      and l.data is not distinct from e.value ->> 6 offset 0))
order by e.at;

-- name: find_logs
-- What was streamed is no line.
select id, run_id, generation, step_name, level, message, data, created_at
from holdfast_logs
where run_id = $1 and id > $2 and level <> 'emit'
order by id limit $3;
