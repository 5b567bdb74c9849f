-- What leaves the database. A tree goes once all of it has ended, in bounded parts, its root last.

-- name: forgettable
-- Of these runs what stands against touching them: the own status, that it is a child, or that a run below has not
-- ended.
select
  r.id,
  case
    when r.completed_at is null then r.status
    when r.parent_id is not null then 'child'
    when exists (select 1 from holdfast_runs as m force index (holdfast_runs_unended) where m.open_root = r.id)
      then 'parent'
  end,
  r.job_name, r.labels, r.generation
from {runs};

-- name: family
-- These runs and all below them.
select e.id from {ids}
union
select m.id from {ids} straight_join holdfast_runs as m on m.root_id = e.id;

-- name: members
-- What is below these runs, $2 of it at most, each with how much there is of it. All of it has ended, and whoever deletes
-- it or empties it holds its root.
select m.id,
  (select count(*) from holdfast_steps where run_id = m.id)
  + (select count(*) from holdfast_step_attempts where run_id = m.id)
  + (select count(*) from holdfast_logs where run_id = m.id)
from {ids} straight_join holdfast_runs as m force index (holdfast_runs_by_root) on m.root_id = e.id
limit $2;

-- name: delete_labels
delete p from {ids} straight_join holdfast_labels as p force index (holdfast_labels_by_run) on p.run_id = e.id;

-- name: delete_progress
delete p from {ids} straight_join holdfast_progress as p force index (primary) on p.run_id = e.id;

-- name: delete_steps
delete p from {ids} straight_join holdfast_steps as p force index (primary) on p.run_id = e.id;

-- name: delete_step_attempts
delete p from {ids} straight_join holdfast_step_attempts as p force index (primary) on p.run_id = e.id;

-- name: delete_logs
delete p from {ids} straight_join holdfast_logs as p force index (holdfast_logs_by_run) on p.run_id = e.id;

-- name: delete_waits
delete p from {ids} straight_join holdfast_waits as p force index (primary) on p.run_id = e.id;

-- name: delete_signals
delete p from {ids} straight_join holdfast_signals as p force index (holdfast_signals_by_run) on p.run_id = e.id;

-- name: delete_runs
-- Last: the others are found by what is written here.
delete r from {runs} where r.completed_at is not null;

-- name: drop_outputs
update {ids} straight_join holdfast_steps as s force index (primary) on s.run_id = e.id
set s.output = null where s.output is not null;

-- name: outputs_dropped
-- Never to be looked at again.
update {runs} set r.outputs_kept = 0 where r.completed_at is not null;
