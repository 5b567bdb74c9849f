-- name: save_steps
-- Fenced. A completed step is never written again; a failed one only by a later attempt of its run.
insert into holdfast_steps (
  run_id, name, occurrence, position, status, attempt, generation, fingerprint, output, error, started_at, completed_at)
select
  e.run_id, e.name, e.occurrence, e.position, e.status, e.attempt, e.generation, e.fingerprint, e.output, e.error,
  e.started_at, e.completed_at
from {steps}
straight_join holdfast_runs as r force index (primary)
  on r.id = e.run_id and r.generation = e.generation and r.lease_owner = e.owner
left join holdfast_steps as s on s.run_id = e.run_id and s.name = e.name and s.occurrence = e.occurrence
where s.run_id is null or (s.status = 'failed' and s.attempt < e.attempt)
on duplicate key update
  position = values(position), status = values(status), attempt = values(attempt), generation = values(generation),
  fingerprint = values(fingerprint), output = values(output), error = values(error), started_at = values(started_at),
  completed_at = values(completed_at)
returning run_id, name, occurrence, generation;

-- name: saved_steps
-- Which of these steps stand as this very execution wrote them (the answer to the first writing was lost).
select e.number
from {steps}
straight_join holdfast_steps as s force index (primary)
  on s.run_id = e.run_id and s.name = e.name and s.occurrence = e.occurrence
  and s.generation = e.generation and s.status = e.status and s.started_at = e.started_at
straight_join holdfast_runs as r force index (primary)
  on r.id = s.run_id and r.generation = e.generation and r.lease_owner = e.owner;

-- name: save_attempts
-- Fenced. What has ended is not opened again; a try whose call was lost in a crash is begun anew under its number.
insert into holdfast_step_attempts (
  run_id, name, occurrence, run_attempt, number, position, generation, started_at, ended_at, error)
select
  e.run_id, e.name, e.occurrence, e.run_attempt, e.number, e.position, e.generation, e.started_at, e.ended_at, e.error
from json_table($1, '$[*]' columns (
  owner {text} path '$[0]', run_id {text} path '$[1]', name {text} path '$[2]', occurrence bigint path '$[3]',
  run_attempt bigint path '$[4]', number bigint path '$[5]', position bigint path '$[6]', generation bigint path '$[7]',
  started_at bigint path '$[8]', ended_at bigint path '$[9]', error {text} path '$[10]')) as e
straight_join holdfast_runs as r force index (primary)
  on r.id = e.run_id and r.generation = e.generation and r.lease_owner = e.owner
left join holdfast_step_attempts as a
  on a.run_id = e.run_id and a.name = e.name and a.occurrence = e.occurrence and a.run_attempt = e.run_attempt
  and a.number = e.number
where a.run_id is null or a.ended_at is null or e.ended_at is not null
on duplicate key update
  position = values(position), generation = values(generation), started_at = values(started_at),
  ended_at = values(ended_at), error = values(error)
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
  a.error, coalesce(r.status = 'leased' and r.generation = a.generation, 0)
from holdfast_step_attempts as a
left join holdfast_runs as r on r.id = a.run_id
where a.run_id = $1
order by a.position, a.name, a.occurrence, a.run_attempt, a.number;

-- name: first_steps
-- The first page of saved steps of several runs, and the last one of each, which tells whether there are more pages.
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from {ids}
straight_join holdfast_steps as s force index (holdfast_steps_by_position)
  on s.run_id = e.id and s.position < $2
union all
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from {ids}
straight_join holdfast_steps as s force index (holdfast_steps_by_position)
  on s.run_id = e.id and s.position >= $2
  and s.position = (select max(l.position) from holdfast_steps as l where l.run_id = e.id)
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
select e.run_id, e.generation, e.step_name, e.level, e.message, e.data, e.created_at
from json_table($1, '$[*]' columns (
  at for ordinality, run_id {text} path '$[0]', generation bigint path '$[1]', owner {text} path '$[2]',
  step_name {text} path '$[3]', level {text} path '$[4]', message {text} path '$[5]', data {text} path '$[6]',
  created_at bigint path '$[7]', again tinyint path '$[8]')) as e
straight_join holdfast_runs as r force index (primary)
  on r.id = e.run_id and r.generation = e.generation and r.lease_owner = e.owner
where not e.again or not exists (
  select 1 from holdfast_logs as l
  where l.run_id = e.run_id and l.generation = e.generation and l.created_at = e.created_at
    and l.step_name <=> e.step_name and l.level = e.level and l.message = e.message and l.data <=> e.data)
order by e.at;

-- name: find_logs
-- What was streamed is no line.
select id, run_id, generation, step_name, level, message, data, created_at
from holdfast_logs
where run_id = $1 and id > $2 and level <> 'emit'
order by id limit $3;
