-- The tables that every later part of the engine needs. Never edited after a release: changes get a new number.
-- All times are microseconds since 1970 (UTC). Payloads (input, output, value) are encoded text.

create table holdfast_meta (
  key text primary key,  -- database_id: a random name, made once
  value text not null
) strict, without rowid;

create table holdfast_migrations (
  number integer primary key,
  name text not null,
  applied_at integer not null
) strict;

create table holdfast_runs (
  id text primary key,  -- time-ordered, made by whoever triggers
  job_name text not null,
  status text not null
    check (status in ('pending', 'leased', 'waiting',
                      'completed', 'failed', 'timed_out', 'finalize_failed', 'cancelled')),
  queue text not null default 'default',
  priority integer not null default 0,  -- higher first
  run_at integer not null,  -- not before
  due integer not null check (due in (0, 1)),  -- 1 once run_at was seen to have come: keeps the future out of claims
  turn integer not null default 0 check (turn in (0, 1, 2)),  -- 0: may go. 1: its key is held, or others go first
    -- 2: holds its key, from the first claim to the end. Says nothing once the run has ended
  generation integer not null default 0 check (generation >= 0),  -- fencing number
  attempt integer not null default 0 check (attempt >= 0),  -- +1 by a retry
  crashes integer not null default 0 check (crashes >= 0),  -- leases lost in a row without progress
  lease_owner text,
  lease_expires_at integer,
  created_at integer not null,
  updated_at integer not null,
  started_at integer,  -- first claim
  completed_at integer,  -- end, however it ended
  timeout integer,  -- microseconds of running time of one attempt
  retry text,  -- JSON, where it differs from the job's
  deadline_at integer,
  parent_id text,
  root_id text,
  child_index integer,
  is_finalize integer not null default 0 check (is_finalize in (0, 1)),
  awaited_as text,  -- the key of the wait of the run above it that it belongs to
  waiting_for text,  -- children | finalize | signal | timer | child
  wake_at integer,  -- while it waits: when the first of its waits is over, whatever comes
  used integer not null default 0,  -- microseconds that this attempt had run when it began to wait
  tree integer not null default 0 check (tree in (0, 1, 2, 3)),  -- 1: it has waits, or runs below it
    -- 2: it has ended without its output, and what is below it is to be cancelled
    -- 3: it has ended with its output while something below went on, which goes with those above
  idempotency_key text,
  concurrency_key text,
  tenant text not null default '',
  labels text not null default '{}',  -- JSON, a copy of holdfast_labels for reading
  codec text,  -- which codec wrote the payloads; null: none
  trace text,  -- W3C trace context of the trigger
  input text not null,
  output text,
  error text,  -- message, cleaned
  error_type text,
  outputs_kept integer not null default 1 check (outputs_kept in (0, 1)),  -- of its steps; 0: dropped, for good
  check ((status = 'leased') = (lease_owner is not null)),
  check ((status = 'leased') = (lease_expires_at is not null)),
  check (status <> 'leased' or (turn = 2) = (concurrency_key is not null)),
  check ((completed_at is not null)
         = (status in ('completed', 'failed', 'timed_out', 'finalize_failed', 'cancelled')))
) strict;

-- What a claim reads, in its order. Partial, so that the finished millions cost nothing, nor what waits for its key.
create index holdfast_runs_claimable on holdfast_runs (queue, job_name, priority desc, run_at, id)
  where status = 'pending' and due = 1 and turn <> 1;
-- Pending runs whose time has not come.
create index holdfast_runs_delayed on holdfast_runs (run_at)
  where status = 'pending' and due = 0;
-- Waiting runs whose time comes. Those that were woken are not in it, though what they waited for is still there.
create index holdfast_runs_asleep on holdfast_runs (wake_at)
  where status = 'waiting' and wake_at is not null;
create index holdfast_runs_leases on holdfast_runs (lease_expires_at)
  where status = 'leased';
-- How many of a job are leased, for its limit.
create index holdfast_runs_leased_of_job on holdfast_runs (job_name)
  where status = 'leased';
create index holdfast_runs_deadline on holdfast_runs (deadline_at)
  where deadline_at is not null and completed_at is null;
-- A run that went wrong must be found quickly among millions that did not.
create index holdfast_runs_errored on holdfast_runs (status, id)
  where status in ('failed', 'timed_out', 'finalize_failed', 'cancelled');
-- What may be forgotten, oldest end first. Those that still have the outputs of their steps are last, so that the end of
-- a run appends.
create index holdfast_runs_ended on holdfast_runs (outputs_kept, completed_at)
  where completed_at is not null and parent_id is null;
create index holdfast_runs_by_job on holdfast_runs (job_name, id);
create index holdfast_runs_by_parent on holdfast_runs (parent_id, awaited_as, id)
  where parent_id is not null;
-- What is below a run, or anywhere in its tree, and has not ended.
create index holdfast_runs_unended on holdfast_runs (root_id, parent_id, awaited_as)
  where completed_at is null and root_id is not null;
create index holdfast_runs_above_cancelled on holdfast_runs (id)
  where tree = 2;
create index holdfast_runs_left_going on holdfast_runs (root_id, parent_id)
  where tree = 3;
create index holdfast_runs_by_root on holdfast_runs (root_id, id)
  where root_id is not null;
create unique index holdfast_runs_idempotency on holdfast_runs (tenant, job_name, idempotency_key)
  where idempotency_key is not null;
-- At most one that was never claimed, per job and key; retried, expired and woken runs keep their place beside it, and
-- runs below others queue.
create unique index holdfast_runs_first_in_line on holdfast_runs (job_name, concurrency_key)
  where status = 'pending' and generation = 0 and concurrency_key is not null and parent_id is null;
-- One run holds a key. The guard of last resort: nobody relies on its error.
create unique index holdfast_runs_holding on holdfast_runs (concurrency_key)
  where turn = 2 and status in ('pending', 'leased', 'waiting') and concurrency_key is not null;
-- The lines of a key, one per queue and job: who may go (0), and who comes after (1). The last two columns say nothing new;
-- with them nobody has to look into the table.
create index holdfast_runs_in_line
  on holdfast_runs (concurrency_key, turn, queue, job_name, priority desc, run_at, id, status, due)
  where status = 'pending' and due = 1 and concurrency_key is not null;
-- What is under way of a job and key.
create index holdfast_runs_of_key on holdfast_runs (job_name, concurrency_key, id)
  where completed_at is null and concurrency_key is not null;

create table holdfast_labels (
  key text not null,
  value text not null,
  run_id text not null,
  primary key (key, value, run_id)
) strict, without rowid;

create table holdfast_progress (  -- apart from the run, whose row may be large
  run_id text primary key,
  progress text not null,  -- JSON: current, total, message
  updated_at integer not null
) strict, without rowid;

create table holdfast_steps (
  run_id text not null,
  name text not null,
  occurrence integer not null check (occurrence >= 0),  -- of the name, within its branch
  position integer not null check (position >= 0),  -- order of starting in the execution that saved it
  kind text not null default 'step',
  status text not null check (status in ('completed', 'failed')),
  attempt integer not null,  -- of the run, when it was saved
  generation integer not null,  -- of the lease that saved it
  fingerprint text,  -- of function and arguments
  output text,
  error text,  -- JSON: type, message, args, traceback
  started_at integer not null,
  completed_at integer not null,
  primary key (run_id, name, occurrence)
) strict, without rowid;
create index holdfast_steps_by_position on holdfast_steps (run_id, position);

create table holdfast_step_attempts (
  run_id text not null,
  name text not null,
  occurrence integer not null,
  run_attempt integer not null,  -- of the run: each has its retries anew
  number integer not null,  -- how many tries had failed before, within the run's attempt
  position integer not null,  -- of the step, as in holdfast_steps
  generation integer not null,
  started_at integer not null,
  ended_at integer,  -- null: under way, or nobody lived to tell
  error text,  -- short: the whole one is with the step, once it has failed for good
  primary key (run_id, name, occurrence, run_attempt, number)
) strict, without rowid;

create table holdfast_logs (
  id integer primary key,
  run_id text not null,
  generation integer not null,
  step_name text,
  level text not null check (level in ('debug', 'info', 'warning', 'error', 'emit')),
  message text not null,
  data text,
  created_at integer not null
) strict;
create index holdfast_logs_by_run on holdfast_logs (run_id, id);

create table holdfast_waits (
  run_id text not null,
  key text not null,  -- of the step that waits
  kind text not null check (kind in ('timer', 'signal', 'child', 'children', 'finalize')),
  until integer,  -- not longer than this
  signal text,  -- its name
  created_at integer not null,
  primary key (run_id, key)
) strict, without rowid;

create table holdfast_signals (
  id text primary key,
  run_id text not null,
  name text not null,
  key text,  -- makes sending twice safe
  value text,
  created_at integer not null,
  consumed_by text  -- key of the step that took it
) strict, without rowid;
create index holdfast_signals_unread on holdfast_signals (run_id, name, created_at, id)
  where consumed_by is null;
create index holdfast_signals_by_run on holdfast_signals (run_id, consumed_by);
create unique index holdfast_signals_key on holdfast_signals (run_id, name, key) where key is not null;

create table holdfast_keys (  -- what several writers lock and count by, per concurrency key and per job with a limit.
  -- SQLite has one writer at a time and leaves it empty: see the column `turn`.
  key text primary key,
  kind text not null check (kind in ('key', 'job')),
  allowed integer not null default 1,
  leased integer not null default 0,
  pending integer not null default 0
) strict, without rowid;
create index holdfast_keys_free on holdfast_keys (kind, key) where leased < allowed and pending > 0;

create table holdfast_workers (
  id text primary key,  -- random, made at each start of a process
  host text not null,
  pid integer not null,
  started_at integer not null,
  seen_at integer not null,
  jobs text not null,  -- JSON
  queues text not null,  -- JSON
  version text not null,
  lease integer not null  -- microseconds: not seen for as long, it counts as gone
) strict, without rowid;
