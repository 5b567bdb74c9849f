-- name: save_steps
-- Fenced. A completed step is never written again; a failed one only by a later attempt of its run.
insert into holdfast_steps (
  run_id, name, occurrence, position, status, attempt, generation, fingerprint, output, error, started_at, completed_at)
select
  e.value ->> 1, e.value ->> 2, e.value ->> 3, e.value ->> 4, e.value ->> 5, e.value ->> 6, e.value ->> 7,
  e.value ->> 8, e.value ->> 9, e.value ->> 10, e.value ->> 11, e.value ->> 12
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 1 and r.generation = e.value ->> 7 and r.lease_owner = e.value ->> 0
where true
on conflict (run_id, name, occurrence) do update set
  position = excluded.position, status = excluded.status, attempt = excluded.attempt,
  generation = excluded.generation, fingerprint = excluded.fingerprint, output = excluded.output,
  error = excluded.error, started_at = excluded.started_at, completed_at = excluded.completed_at
  where holdfast_steps.status = 'failed' and holdfast_steps.attempt < excluded.attempt
returning run_id, name, occurrence, generation;

-- name: saved_steps
-- Which of these steps stand as this very execution wrote them (the answer to the first writing was lost).
select e.value ->> 13
from json_each(?1) as e
cross join holdfast_steps as s
  on s.run_id = e.value ->> 1 and s.name = e.value ->> 2 and s.occurrence = e.value ->> 3
  and s.generation = e.value ->> 7 and s.status = e.value ->> 5 and s.started_at = e.value ->> 11
cross join holdfast_runs as r
  on r.id = s.run_id and r.generation = e.value ->> 7 and r.lease_owner = e.value ->> 0;

-- name: save_attempts
-- Fenced. What has ended is not opened again; a try whose call was lost in a crash is begun anew under its number.
insert into holdfast_step_attempts (
  run_id, name, occurrence, run_attempt, number, position, generation, started_at, ended_at, error)
select
  e.value ->> 1, e.value ->> 2, e.value ->> 3, e.value ->> 4, e.value ->> 5, e.value ->> 6, e.value ->> 7,
  e.value ->> 8, e.value ->> 9, e.value ->> 10
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 1 and r.generation = e.value ->> 7 and r.lease_owner = e.value ->> 0
where true
on conflict (run_id, name, occurrence, run_attempt, number) do update set
  position = excluded.position, generation = excluded.generation, started_at = excluded.started_at,
  ended_at = excluded.ended_at, error = excluded.error
  where holdfast_step_attempts.ended_at is null or excluded.ended_at is not null
returning run_id, name, occurrence, run_attempt, number, generation;

-- name: failed_tries
-- Of the steps that this attempt of the run (?2) has not saved: how many tries have failed, and when the last one did.
select a.name, a.occurrence, count(*), max(a.ended_at)
from holdfast_step_attempts as a
where a.run_id = ?1 and a.run_attempt = ?2 and a.error is not null and not exists (
  select 1 from holdfast_steps as s
  where s.run_id = a.run_id and s.name = a.name and s.occurrence = a.occurrence
    and (s.status = 'completed' or s.attempt = a.run_attempt))
group by a.name, a.occurrence;

-- name: find_attempts
select a.run_id, a.name, a.occurrence, a.run_attempt, a.number, a.position, a.generation, a.started_at, a.ended_at,
  a.error, coalesce(r.status = 'leased' and r.generation = a.generation, 0)
from holdfast_step_attempts as a
left join holdfast_runs as r on r.id = a.run_id
where a.run_id = ?1
order by a.position, a.name, a.occurrence, a.run_attempt, a.number;

-- name: first_steps
-- The first page of saved steps of several runs, and the last one of each, which tells whether there are more pages.
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from json_each(?1) as e
cross join holdfast_steps as s on s.run_id = e.value and s.position < ?2
union all
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from json_each(?1) as e
cross join holdfast_steps as s on s.run_id = e.value and s.position >= ?2
  and s.position = (select max(position) from holdfast_steps where run_id = e.value)
order by 1, 4, 11, 2, 3;

-- name: find_steps
select run_id, name, occurrence, position, status, attempt, generation, fingerprint,
  output, error, started_at, completed_at
from holdfast_steps
where run_id = ?1 and position >= ?2 and position < ?3
order by position, started_at, name, occurrence;

-- name: save_logs
-- Fenced. Lines have no key of their own: one that may have been written before (the last of its values) is left out if
-- it stands.
insert into holdfast_logs (run_id, generation, step_name, level, message, data, created_at)
select e.value ->> 0, e.value ->> 1, e.value ->> 3, e.value ->> 4, e.value ->> 5, e.value ->> 6, e.value ->> 7
from json_each(?1) as e
cross join holdfast_runs as r
  on r.id = e.value ->> 0 and r.generation = e.value ->> 1 and r.lease_owner = e.value ->> 2
where not e.value ->> 8 or not exists (
  select 1 from holdfast_logs as l
  where l.run_id = r.id and l.generation = e.value ->> 1 and l.created_at = e.value ->> 7
    and l.step_name is e.value ->> 3 and l.level = e.value ->> 4 and l.message = e.value ->> 5
    and l.data is e.value ->> 6)
order by e.key;

-- name: find_logs
-- What was streamed is no line.
select id, run_id, generation, step_name, level, message, data, created_at
from holdfast_logs
where run_id = ?1 and id > ?2 and level <> 'emit'
order by id limit ?3;
