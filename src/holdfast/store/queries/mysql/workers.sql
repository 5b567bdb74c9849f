-- Who executes, and what. A few rows, written seldom.

-- name: check_in
insert into holdfast_workers (id, host, pid, started_at, seen_at, jobs, queues, version, lease)
select e.id, e.host, e.pid, $2, $2, e.jobs, e.queues, e.version, e.lease
from json_table($1, '$[*]' columns (
  id {text} path '$[0]', host {text} path '$[1]', pid bigint path '$[2]', jobs {text} path '$[3]',
  queues {text} path '$[4]', version {text} path '$[5]', lease bigint path '$[6]')) as e
order by e.id
on duplicate key update
  host = values(host), pid = values(pid), seen_at = values(seen_at), jobs = values(jobs), queues = values(queues),
  version = values(version), lease = values(lease);

-- name: check_out
delete w from {ids} straight_join holdfast_workers as w force index (primary) on w.id = e.id;

-- name: old_workers
-- Not seen for $2 of their own leases.
select id from holdfast_workers where seen_at + $2 * lease <= $1 order by id limit $3;

-- name: forget_old
delete w from {ids} straight_join holdfast_workers as w force index (primary) on w.id = e.id
where w.seen_at + $3 * w.lease <= $2;

-- name: find_workers
select id, host, pid, started_at, seen_at, jobs, queues, version, lease, seen_at + lease > coalesce($1, {now})
from holdfast_workers
order by started_at, id;

-- name: leased
-- Every run that is leased. While it is, nothing but its claim sets `updated_at`.
select lease_owner, id, job_name, updated_at
from holdfast_runs
where lease_expires_at is not null
order by updated_at, id;
