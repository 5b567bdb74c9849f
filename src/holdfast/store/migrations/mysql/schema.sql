-- The tables as they are today, for new databases: what all numbered migrations together come to.
-- All times are microseconds since 1970 (UTC). Payloads (input, output, value) are encoded text. Names, keys and ids
-- are compared byte by byte, with the spaces at their ends. There are no partial indexes: generated columns that are
-- null where a row does not belong stand for them. Each statement may be repeated, because none can be undone.

create table if not exists holdfast_meta (
  `key` varchar(64) primary key,  -- database_id: a random name, made once
  value varchar(255) not null
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_migrations (
  number int primary key,
  name varchar(255) not null,
  applied_at bigint not null
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_runs (
  id varchar(64) primary key,  -- time-ordered, made by whoever triggers
  job_name varchar(255) not null,
  status varchar(16) not null
    check (status in ('pending', 'leased', 'waiting',
                      'completed', 'failed', 'timed_out', 'finalize_failed', 'cancelled')),
  queue varchar(255) not null default 'default',
  priority bigint not null default 0,  -- higher first
  run_at bigint not null,  -- not before
  due smallint not null check (due in (0, 1)),  -- 1 once run_at was seen to have come: keeps the future out of claims
  turn smallint not null default 0 check (turn in (0, 1, 2)),  -- 0: may go. 1: its key is held, or others go first
    -- 2: holds its key, from the first claim to the end. Says nothing once the run has ended
  generation bigint not null default 0 check (generation >= 0),  -- fencing number
  attempt bigint not null default 0 check (attempt >= 0),  -- +1 by a retry
  crashes bigint not null default 0 check (crashes >= 0),  -- leases lost in a row without progress
  lease_owner varchar(255),
  lease_expires_at bigint,
  created_at bigint not null,
  updated_at bigint not null,
  started_at bigint,  -- first claim
  completed_at bigint,  -- end, however it ended
  timeout bigint,  -- microseconds of running time of one attempt
  retry longtext,  -- JSON, where it differs from the job's
  deadline_at bigint,
  parent_id varchar(64),
  root_id varchar(64),
  child_index bigint,
  is_finalize smallint not null default 0 check (is_finalize in (0, 1)),
  awaited_as varchar(300),  -- the key of the wait of the run above it that it belongs to
  waiting_for varchar(16),  -- children | finalize | signal | timer | child
  wake_at bigint,  -- while it waits: when the first of its waits is over, whatever comes
  used bigint not null default 0,  -- microseconds that this attempt had run when it began to wait
  tree smallint not null default 0 check (tree in (0, 1, 2, 3)),  -- 1: it has waits, or runs below it
    -- 2: it has ended without its output, and what is below it is to be cancelled
    -- 3: it has ended with its output while something below went on, which goes with those above
  idempotency_key varchar(255),
  concurrency_key varchar(255),
  tenant varchar(255) not null default '',
  labels longtext not null default '{}',  -- JSON, a copy of holdfast_labels for reading
  codec longtext,  -- which codec wrote the payloads; null: none
  trace longtext,  -- W3C trace context of the trigger
  input longtext not null,
  output longtext,
  error longtext,  -- message, cleaned
  error_type longtext,
  outputs_kept smallint not null default 1 check (outputs_kept in (0, 1)),  -- of its steps; 0: dropped, for good
  -- What the indexes are made of.
  claimable tinyint as (  -- 1: without a key. 2: with one
    if(status = 'pending' and due = 1 and turn <> 1, if(concurrency_key is null, 1, 2), null)) stored,
  delayed_until bigint as (if(status = 'pending' and due = 0, run_at, null)) stored,
  asleep_until bigint as (if(status = 'waiting', wake_at, null)) stored,
  leased_job varchar(255) as (if(status = 'leased', job_name, null)) stored,
  open_deadline bigint as (if(completed_at is null, deadline_at, null)) stored,
  errored varchar(16) as (
    if(status in ('failed', 'timed_out', 'finalize_failed', 'cancelled'), status, null)) stored,
  root_ended_at bigint as (if(parent_id is null, completed_at, null)) stored,
  first_in_line varchar(255) as (
    if(status = 'pending' and generation = 0 and parent_id is null, concurrency_key, null)) stored,
  held_key varchar(255) as (if(turn = 2 and status in ('pending', 'leased', 'waiting'), concurrency_key, null)) stored,
  line_key varchar(255) as (if(status = 'pending' and due = 1, concurrency_key, null)) stored,
  line binary(32) as (  -- queue and job: both would be too wide for an index
    if(concurrency_key is null, null, unhex(sha2(concat(queue, '\n', job_name), 256)))) stored,
  open_key varchar(255) as (if(completed_at is null, concurrency_key, null)) stored,
  open_root varchar(64) as (if(completed_at is null, root_id, null)) stored,
  leaves tinyint as (if(tree = 2, 1, null)) stored,
  left_going varchar(64) as (if(tree = 3, root_id, null)) stored,
  check ((status = 'leased') = (lease_owner is not null)),
  check ((status = 'leased') = (lease_expires_at is not null)),
  check (status <> 'leased' or (turn = 2) = (concurrency_key is not null)),
  check ((completed_at is not null)
         = (status in ('completed', 'failed', 'timed_out', 'finalize_failed', 'cancelled'))),
  -- What a claim reads, in its order.
  index holdfast_runs_claimable (claimable, queue, job_name, priority desc, run_at, id),
  -- Pending runs whose time has not come.
  index holdfast_runs_delayed (delayed_until),
  -- Waiting runs whose time comes. Those that were woken are not in it, though what they waited for is still there.
  index holdfast_runs_asleep (asleep_until),
  index holdfast_runs_leases (lease_expires_at),
  -- How many of a job are leased, for its limit.
  index holdfast_runs_leased_of_job (leased_job),
  index holdfast_runs_deadline (open_deadline),
  -- A run that went wrong must be found quickly among millions that did not.
  index holdfast_runs_errored (errored, id),
  -- What may be forgotten, oldest end first.
  index holdfast_runs_ended (outputs_kept, root_ended_at),
  index holdfast_runs_by_job (job_name, id),
  index holdfast_runs_by_parent (parent_id, awaited_as, id),
  -- What is below a run, or anywhere in its tree, and has not ended.
  index holdfast_runs_unended (open_root, parent_id, awaited_as),
  index holdfast_runs_above_cancelled (leaves),
  index holdfast_runs_left_going (left_going, parent_id),
  index holdfast_runs_by_root (root_id, id),
  unique index holdfast_runs_idempotency (tenant, job_name, idempotency_key),
  -- At most one that was never claimed, per job and key; retried, expired and woken runs keep their place beside it,
  -- and runs below others queue. And one run holds a key. Neither is unique: an insertion into a unique index that
  -- changes all the time locks the gaps around its entry, and so deadlocks with its neighbours. Whoever writes there
  -- has locked the key, and has looked.
  index holdfast_runs_first_in_line (job_name, first_in_line),
  index holdfast_runs_holding (held_key),
  -- The lines of a key, one per queue and job: who may go (0), and who comes after (1).
  index holdfast_runs_in_line (line_key, turn, line, priority desc, run_at, id),
  -- What is under way of a key, and of a job and key.
  index holdfast_runs_of_key (open_key, job_name, id)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_labels (
  `key` varchar(64) not null,
  value varchar(255) not null,
  run_id varchar(64) not null,
  primary key (`key`, value, run_id),
  index holdfast_labels_by_run (run_id)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_progress (  -- apart from the run, whose row may be large
  run_id varchar(64) primary key,
  progress longtext not null,  -- JSON: current, total, message
  updated_at bigint not null
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_steps (
  run_id varchar(64) not null,
  name varchar(255) not null,
  occurrence bigint not null check (occurrence >= 0),  -- of the name, within its branch
  position bigint not null check (position >= 0),  -- order of starting in the execution that saved it
  kind varchar(16) not null default 'step',
  status varchar(16) not null check (status in ('completed', 'failed')),
  attempt bigint not null,  -- of the run, when it was saved
  generation bigint not null,  -- of the lease that saved it
  fingerprint longtext,  -- of function and arguments
  output longtext,
  error longtext,  -- JSON: type, message, args, traceback
  started_at bigint not null,
  completed_at bigint not null,
  primary key (run_id, name, occurrence),
  index holdfast_steps_by_position (run_id, position)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_step_attempts (
  run_id varchar(64) not null,
  name varchar(255) not null,
  occurrence bigint not null,
  run_attempt bigint not null,  -- of the run: each has its retries anew
  number bigint not null,  -- how many tries had failed before, within the run's attempt
  position bigint not null,  -- of the step, as in holdfast_steps
  generation bigint not null,
  started_at bigint not null,
  ended_at bigint,  -- null: under way, or nobody lived to tell
  error longtext,  -- short: the whole one is with the step, once it has failed for good
  primary key (run_id, name, occurrence, run_attempt, number)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_logs (
  id bigint auto_increment primary key,
  run_id varchar(64) not null,
  generation bigint not null,
  step_name longtext,
  level varchar(16) not null check (level in ('debug', 'info', 'warning', 'error', 'emit')),
  message longtext not null,
  data longtext,
  created_at bigint not null,
  index holdfast_logs_by_run (run_id, id)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_waits (
  run_id varchar(64) not null,
  `key` varchar(300) not null,  -- of the step that waits: its name and its occurrence
  kind varchar(16) not null check (kind in ('timer', 'signal', 'child', 'children', 'finalize')),
  until bigint,  -- not longer than this
  `signal` varchar(255),  -- its name
  created_at bigint not null,
  primary key (run_id, `key`)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_signals (
  id varchar(64) primary key,
  run_id varchar(64) not null,
  name varchar(255) not null,
  `key` varchar(255),  -- makes sending twice safe
  value longtext,
  created_at bigint not null,
  consumed_by varchar(300),  -- key of the step that took it
  unread varchar(64) as (if(consumed_by is null, run_id, null)) stored,
  index holdfast_signals_unread (unread, name, created_at, id),
  index holdfast_signals_by_run (run_id, consumed_by),
  unique index holdfast_signals_key (run_id, name, `key`)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_keys (  -- what several writers lock, per concurrency key and per job with a limit.
  -- Whoever changes the line of a key holds its row; the counters are not used here: see the column `turn`.
  `key` varchar(255) not null,
  kind varchar(16) not null check (kind in ('key', 'job')),
  allowed bigint not null default 1,
  leased bigint not null default 0,
  pending bigint not null default 0,
  primary key (kind, `key`)
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;

create table if not exists holdfast_workers (
  id varchar(255) primary key,  -- random, made at each start of a process
  host longtext not null,
  pid bigint not null,
  started_at bigint not null,
  seen_at bigint not null,
  jobs longtext not null,  -- JSON
  queues longtext not null,  -- JSON
  version longtext not null,
  lease bigint not null  -- microseconds: not seen for as long, it counts as gone
) engine = InnoDB row_format = dynamic character set utf8mb4 collate utf8mb4_nopad_bin;
