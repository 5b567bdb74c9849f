-- Who executes, and what. A few rows, written seldom.

-- name: check_in
insert into holdfast_workers (id, host, pid, started_at, seen_at, jobs, queues, version, lease)
select
  e.value ->> 0, e.value ->> 1, (e.value ->> 2)::bigint, $2, $2, e.value ->> 3, e.value ->> 4, e.value ->> 5,
  (e.value ->> 6)::bigint
from jsonb_array_elements($1::jsonb) as e (value)
order by 1
on conflict (id) do update set
  host = excluded.host, pid = excluded.pid, seen_at = excluded.seen_at, jobs = excluded.jobs,
  queues = excluded.queues, version = excluded.version, lease = excluded.lease;

-- name: check_out
delete from holdfast_workers where id = any (array(select jsonb_array_elements_text($1::jsonb)));

-- name: forget_workers
-- Not seen for $2 of their own leases.
delete from holdfast_workers where id in (
  select id from holdfast_workers where seen_at + $2::bigint * lease <= $1 limit $3 for update skip locked)
returning 1;

-- name: find_workers
select id, host, pid, started_at, seen_at, jobs, queues, version, lease,
  seen_at + lease > coalesce($1::bigint, {now})
from holdfast_workers
order by started_at, id;

-- name: leased
-- Every run that is leased. While it is, nothing but its claim sets `updated_at`.
select lease_owner, id, job_name, updated_at
from holdfast_runs
where status = 'leased' and crashes >= 0
order by updated_at, id;
