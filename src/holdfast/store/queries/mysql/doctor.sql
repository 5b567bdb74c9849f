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
  count(case when updated_at > $1 then 1 end), max(updated_at),
  count(case when status = 'leased' and lease_expires_at > $2 then 1 end)
from holdfast_runs where completed_at is null;

-- name: doctor_sample
-- The newest $1 runs: ids are ordered by time.
select id, labels, input, output from holdfast_runs order by id desc limit $1;

-- name: doctor_sample_steps
-- The steps of the newest $1 runs, at most $2.
select s.run_id, s.name, s.status, s.output, s.error
from (select id from holdfast_runs order by id desc limit $1) as r
join holdfast_steps as s on s.run_id = r.id
limit $2;

-- name: doctor_server
select
  version(), @@global.read_only, current_user(),
  (select coalesce(sum(data_length + index_length), 0) from information_schema.tables where table_schema = database());

-- name: doctor_variables
-- As they are for everybody: a session may have set them for itself.
select lower(variable_name), global_value from information_schema.system_variables
where variable_name in (
  'innodb_flush_log_at_trx_commit', 'innodb_doublewrite', 'log_bin', 'sync_binlog', 'binlog_format',
  'max_allowed_packet', 'max_connections', 'wsrep_on');

-- name: doctor_status
select lower(variable_name), variable_value from information_schema.global_status
where variable_name in (
  'Threads_connected', 'Innodb_history_list_length', 'Slaves_connected', 'Rpl_semi_sync_master_status',
  'wsrep_cluster_size', 'wsrep_cluster_status', 'wsrep_ready', 'wsrep_local_cert_failures', 'wsrep_local_bf_aborts');

-- name: doctor_transactions
-- The oldest ones, in seconds. Needs the right PROCESS.
select t.trx_mysql_thread_id, coalesce(p.user, ''), coalesce(p.command, ''),
  timestampdiff(second, t.trx_started, now()), t.trx_rows_modified
from information_schema.innodb_trx as t
left join information_schema.processlist as p on p.id = t.trx_mysql_thread_id
where t.trx_mysql_thread_id not in (0, connection_id())
order by t.trx_started limit $1;

-- name: doctor_odd_tables
-- Tables of ours in another engine, or with columns that are compared in another way.
select table_name, coalesce(engine, '') from information_schema.tables
where table_schema = database() and table_name like 'holdfast\\_%' and engine <> 'InnoDB'
union
select concat(table_name, '.', column_name), collation_name from information_schema.columns
where table_schema = database() and table_name like 'holdfast\\_%'
  and collation_name is not null and collation_name not like '%\\_bin'
order by 1;
