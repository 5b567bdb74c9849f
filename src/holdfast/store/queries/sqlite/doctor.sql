-- What `holdfast doctor` asks. Reads only, and nothing that a database of millions would have to be read through for,
-- but for `doctor_statuses`.

-- name: doctor_statuses
select status, count(*) from holdfast_runs group by status order by status;

-- name: doctor_expired
-- Leases that ran out before ?1: nobody has taken them back yet.
select count(*), min(lease_expires_at) from holdfast_runs where status = 'leased' and lease_expires_at < ?1;

-- name: doctor_oldest_pending
select id, job_name, run_at from holdfast_runs
where status = 'pending' and run_at <= ?1
order by run_at limit 1;

-- name: doctor_due
-- How many runs of each job in each queue wait since ?1 at least, most first.
select queue, job_name, count(*) from holdfast_runs
where status = 'pending' and run_at <= ?1
group by queue, job_name order by 3 desc, 1, 2 limit ?2;

-- name: doctor_alive
-- What the workers take that have been seen within their lease.
select jobs, queues from holdfast_workers where seen_at + lease > ?1;

-- name: doctor_owners
select lease_owner, count(*), max(lease_expires_at) from holdfast_runs
where status = 'leased'
group by lease_owner order by 2 desc, 1 limit ?1;

-- name: doctor_future
-- Rows that say they were written after ?1, and leases that end after ?2.
select
  (select count(*) from holdfast_runs where updated_at > ?1),
  (select max(updated_at) from holdfast_runs),
  (select count(*) from holdfast_runs where status = 'leased' and lease_expires_at > ?2);

-- name: doctor_sample
-- The newest ?1 runs: ids are ordered by time.
select id, labels, input, output from holdfast_runs order by id desc limit ?1;

-- name: doctor_sample_steps
-- The steps of the newest ?1 runs, at most ?2.
select s.run_id, s.name, s.status, s.output, s.error
from (select id from holdfast_runs order by id desc limit ?1) as r
cross join holdfast_steps as s on s.run_id = r.id
limit ?2;
