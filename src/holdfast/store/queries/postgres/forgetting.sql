-- What leaves the database. A tree goes once all of it has ended, in bounded parts, its root last.

-- name: forgettable
-- Of these runs what stands against touching them: the own status, that it is a child, or that a run below has not ended.
select
  r.id,
  case
    when r.completed_at is null then r.status
    when r.parent_id is not null then 'child'
    when exists (select 1 from holdfast_runs as m where m.root_id = r.id and m.completed_at is null and m.root_id is not null offset 0)
      then 'parent'
  end,
  r.job_name, r.labels, r.generation
from jsonb_array_elements_text($1::jsonb) as e (id)
cross join lateral (select * from holdfast_runs where id = e.id offset 0) as r;

-- name: family
-- These runs and all below them.
with e as materialized (select jsonb_array_elements_text($1::jsonb) as id)
select id from e
union
select m.id from e cross join lateral (select id from holdfast_runs where root_id = e.id and attempt >= 0 offset 0) as m;

-- name: members
-- What is below these runs, $2 of it at most, each with how much there is of it. All of it has ended, and whoever deletes
-- it or empties it holds its root.
select m.id,
  (select count(*) from holdfast_steps where run_id = m.id)
  + (select count(*) from holdfast_step_attempts where run_id = m.id)
  + (select count(*) from holdfast_logs where run_id = m.id)
from jsonb_array_elements_text($1::jsonb) as e (id)
cross join lateral (select id from holdfast_runs where root_id = e.id and attempt >= 0 offset 0) as m
limit $2;

-- name: delete_labels
delete from holdfast_labels where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_progress
delete from holdfast_progress where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_steps
delete from holdfast_steps where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_step_attempts
delete from holdfast_step_attempts where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_logs
delete from holdfast_logs where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_waits
delete from holdfast_waits where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_signals
delete from holdfast_signals where run_id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: delete_runs
-- Last: the others are found by what is written here.
delete from holdfast_runs where id = any (array(select jsonb_array_elements_text($1::jsonb))) and completed_at is not null;

-- name: drop_outputs
update holdfast_steps set output = null
where run_id = any (array(select jsonb_array_elements_text($1::jsonb))) and output is not null;

-- name: outputs_dropped
-- Never to be looked at again.
update holdfast_runs set outputs_kept = 0
where id = any (array(select jsonb_array_elements_text($1::jsonb))) and completed_at is not null;
