-- name: follow
-- How runs stand. Asked after every commit that somebody watches: nothing that may be large is read.
select r.id, r.status, r.generation, r.lease_owner, r.lease_expires_at,
  (select p.progress from holdfast_progress as p where p.run_id = r.id),
  coalesce((select max(l.id) from holdfast_logs as l where l.run_id = r.id), 0)
from {runs};

-- name: step_marks
select s.run_id, s.name, s.occurrence, s.position, s.generation
from json_table($1, '$[*]' columns (run_id {text} path '$[0]', first bigint path '$[1]')) as e
straight_join holdfast_steps as s force index (holdfast_steps_by_position)
  on s.run_id = e.run_id and s.position >= e.first;

-- name: marked_steps
select s.run_id, s.name, s.occurrence, s.position, s.status, s.attempt, s.generation, s.fingerprint,
  s.output, s.error, s.started_at, s.completed_at
from json_table($1, '$[*]' columns (
  run_id {text} path '$[0]', name {text} path '$[1]', occurrence bigint path '$[2]', position bigint path '$[3]',
  generation bigint path '$[4]')) as e
straight_join holdfast_steps as s force index (primary)
  on s.run_id = e.run_id and s.name = e.name and s.occurrence = e.occurrence and s.position = e.position
  and s.generation = e.generation;

-- name: logs_after
select l.id, l.run_id, l.generation, l.step_name, l.level, l.message, l.data, l.created_at
from json_table($1, '$[*]' columns (run_id {text} path '$[0]', after bigint path '$[1]')) as e
straight_join holdfast_logs as l force index (holdfast_logs_by_run) on l.run_id = e.run_id and l.id > e.after
order by l.id limit $2;

-- name: passing
-- The newest runs, and those that are leased, some of them twice. Asked after every commit while somebody looks at all.
(select id, job_name, status, lease_owner, created_at, labels from holdfast_runs order by id desc limit $1)
union all
(select id, job_name, status, lease_owner, created_at, labels from holdfast_runs
where lease_expires_at is not null limit $1);
