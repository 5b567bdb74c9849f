-- Who executes, and what. A few rows, written seldom.

-- name: check_in
insert into holdfast_workers (id, host, pid, started_at, seen_at, jobs, queues, version, lease)
select
  value ->> 0, value ->> 1, value ->> 2, ?2, ?2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
from json_each(?1)
where true
on conflict (id) do update set
  host = excluded.host, pid = excluded.pid, seen_at = excluded.seen_at, jobs = excluded.jobs,
  queues = excluded.queues, version = excluded.version, lease = excluded.lease;

-- name: check_out
delete from holdfast_workers where id in (select value from json_each(?1));

-- name: forget_workers
-- Not seen for ?2 of their own leases.
delete from holdfast_workers where id in (
  select id from holdfast_workers where seen_at + ?2 * lease <= ?1 limit ?3)
returning 1;

-- name: find_workers
select id, host, pid, started_at, seen_at, jobs, queues, version, lease, seen_at + lease > ?1
from holdfast_workers
order by started_at, id;

-- name: leased
-- Every run that is leased. While it is, nothing but its claim sets `updated_at`.
select lease_owner, id, job_name, updated_at
from holdfast_runs
where status = 'leased'
order by updated_at, id;
