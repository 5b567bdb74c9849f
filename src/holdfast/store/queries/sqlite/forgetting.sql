-- What leaves the database. A tree goes once all of it has ended, in bounded parts, its root last.

-- name: forgettable
-- Of these runs what stands against touching them: the own status, that it is a child, or that a run below has not ended.
select
  r.id,
  case
    when r.completed_at is null then r.status
    when r.parent_id is not null then 'child'
    when exists (
      select 1 from holdfast_runs as m indexed by holdfast_runs_unended
      where m.root_id = r.id and m.completed_at is null and m.root_id is not null) then 'parent'
  end,
  r.job_name, r.labels, r.generation
from json_each(?1) as e
cross join holdfast_runs as r on r.id = e.value;

-- name: family
-- These runs and all below them.
select value from json_each(?1)
union
select m.id from json_each(?1) as e cross join holdfast_runs as m on m.root_id = e.value;

-- name: members
-- What is below these runs, ?2 of it at most, each with how much there is of it.
select m.id,
  (select count(*) from holdfast_steps where run_id = m.id)
  + (select count(*) from holdfast_step_attempts where run_id = m.id)
  + (select count(*) from holdfast_logs where run_id = m.id)
from json_each(?1) as e
cross join holdfast_runs as m on m.root_id = e.value
limit ?2;

-- name: delete_labels
-- Their table is sorted by label: what a run has is read from its own copy.
delete from holdfast_labels where (key, value, run_id) in (
  select label.key, label.value, r.id
  from json_each(?1) as e
  cross join holdfast_runs as r on r.id = e.value
  cross join json_each(iif(json_valid(r.labels), r.labels, '{}')) as label);

-- name: delete_progress
delete from holdfast_progress where run_id in (select value from json_each(?1));

-- name: delete_steps
delete from holdfast_steps where run_id in (select value from json_each(?1));

-- name: delete_step_attempts
delete from holdfast_step_attempts where run_id in (select value from json_each(?1));

-- name: delete_logs
delete from holdfast_logs where run_id in (select value from json_each(?1));

-- name: delete_waits
delete from holdfast_waits where run_id in (select value from json_each(?1));

-- name: delete_signals
delete from holdfast_signals where run_id in (select value from json_each(?1));

-- name: delete_runs
-- Last: the others are found by what is written here.
delete from holdfast_runs where id in (select value from json_each(?1)) and completed_at is not null;

-- name: drop_outputs
update holdfast_steps set output = null
where run_id in (select value from json_each(?1)) and output is not null;

-- name: outputs_dropped
-- Never to be looked at again.
update holdfast_runs set outputs_kept = 0
where id in (select value from json_each(?1)) and completed_at is not null;
