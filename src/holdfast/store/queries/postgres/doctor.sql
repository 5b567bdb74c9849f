-- What `holdfast doctor` asks. Reads only, and nothing that a database of millions would have to be read through for,
-- but for `doctor_statuses`.

-- name: doctor_statuses
select status, count(*) from holdfast_runs group by status order by status;

-- name: doctor_expired
-- Leases that ran out before $1: nobody has taken them back yet.
select count(*), min(lease_expires_at) from holdfast_runs where status = 'leased' and lease_expires_at < $1;

-- name: doctor_oldest_pending
select id, job_name, run_at from holdfast_runs
where status = 'pending' and run_at <= $1
order by run_at limit 1;

-- name: doctor_due
-- How many runs of each job in each queue wait since $1 at least, most first.
select queue, job_name, count(*) from holdfast_runs
where status = 'pending' and run_at <= $1
group by queue, job_name order by 3 desc, 1, 2 limit $2;

-- name: doctor_alive
-- What the workers take that have been seen within their lease.
select jobs, queues from holdfast_workers where seen_at + lease > $1;

-- name: doctor_owners
select lease_owner, count(*), max(lease_expires_at) from holdfast_runs
where status = 'leased'
group by lease_owner order by 2 desc, 1 limit $1;

-- name: doctor_future
-- Rows that say they were written after $1, and leases that end after $2. Only what is under way is looked at: there
-- is no index by the time of writing.
select
  count(*) filter (where updated_at > $1), max(updated_at),
  count(*) filter (where status = 'leased' and lease_expires_at > $2)
from holdfast_runs where completed_at is null;

-- name: doctor_sample
-- The newest $1 runs: ids are ordered by time.
select id, labels, input, output from holdfast_runs order by id desc limit $1;

-- name: doctor_sample_steps
-- The steps of the newest $1 runs, at most $2.
select s.run_id, s.name, s.status, s.output, s.error
from (select id from holdfast_runs order by id desc limit $1) as r
cross join lateral (select * from holdfast_steps as s where s.run_id = r.id) as s
limit $2;

-- name: doctor_server
select
  current_setting('server_version'), pg_is_in_recovery(), current_user::text,
  pg_has_role(current_user, 'pg_read_all_stats', 'usage'), pg_backend_pid(), pg_database_size(current_database());

-- name: doctor_settings
-- With what they are for others: a session may have set them for itself.
select name, reset_val from pg_settings
where name in ('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'autovacuum');

-- name: doctor_standbys
select coalesce(application_name, ''), coalesce(sync_state, '') from pg_stat_replication order by 1, 2;

-- name: doctor_connections
-- All, those that say that they are ours, and what there may be.
select
  (select count(*) from pg_stat_activity where datid is not null),
  (select count(*) from pg_stat_activity where application_name = current_setting('application_name')),
  current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int;

-- name: doctor_transactions
-- The oldest ones, in seconds, and how many transactions each holds back. Autovacuum may take its time.
select
  pid, coalesce(usename::text, ''), coalesce(application_name, ''), coalesce(state, ''),
  extract(epoch from clock_timestamp() - xact_start)::float8, coalesce(age(backend_xmin), 0)
from pg_stat_activity
where pid <> pg_backend_pid() and (xact_start is not null or backend_xmin is not null)
  and backend_type is distinct from 'autovacuum worker'
order by xact_start, age(backend_xmin) desc limit $1;

-- name: doctor_prepared
select gid, owner::text, extract(epoch from clock_timestamp() - prepared)::float8
from pg_prepared_xacts where database = current_database() order by prepared limit 1;

-- name: doctor_slots
-- Slots that nobody reads: how many transactions each holds back, and how many bytes of the log.
select slot_name::text, coalesce(age(xmin), 0), coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
from pg_replication_slots where not active order by 3 desc;

-- name: doctor_rows
-- Of each of our tables (in the schema $1): rows, dead rows, when it was last vacuumed, whether it is left out of
-- autovacuum, and bytes.
select
  s.relname::text, s.n_live_tup, s.n_dead_tup,
  (extract(epoch from greatest(s.last_autovacuum, s.last_vacuum)) * 1000000)::bigint,
  coalesce('autovacuum_enabled=false' = any (c.reloptions), false), pg_total_relation_size(s.relid)
from pg_stat_all_tables as s
join pg_class as c on c.oid = s.relid
where s.schemaname = $1 and s.relname like 'holdfast\_%'
order by s.n_dead_tup desc, s.relname;

-- name: doctor_notifications
-- How full the queue of notifications is, from 0 to 1.
select pg_notification_queue_usage();
