-- The tables that every later part of the engine needs. Never edited after a release: changes get a new number.
-- All times are microseconds since 1970 (UTC). Payloads (input, output, value) are encoded text. Names, keys and ids are
-- compared byte by byte. Tables get the name of their schema in front when this is read.

create table holdfast_meta (
  key text collate "C" primary key,  -- database_id: a random name, made once
  value text collate "C" not null
);

create table holdfast_migrations (
  number integer primary key,
  name text collate "C" not null,
  applied_at bigint not null
);

create table holdfast_runs (
  id text collate "C" primary key,  -- time-ordered, made by whoever triggers
  job_name text collate "C" not null,
  status text collate "C" not null
    check (status in ('pending', 'leased', 'waiting',
                      'completed', 'failed', 'timed_out', 'finalize_failed', 'cancelled')),
  queue text collate "C" not null default 'default',
  priority bigint not null default 0,  -- higher first
  run_at bigint not null,  -- not before
  due smallint not null check (due in (0, 1)),  -- 1 once run_at was seen to have come: keeps the future out of claims
  turn smallint not null default 0 check (turn in (0, 1, 2)),  -- 0: may go. 1: its key is held, or others go first
    -- 2: holds its key, from the first claim to the end. Says nothing once the run has ended
  generation bigint not null default 0 check (generation >= 0),  -- fencing number
  attempt bigint not null default 0 check (attempt >= 0),  -- +1 by a retry
  crashes bigint not null default 0 check (crashes >= 0),  -- leases lost in a row without progress
  lease_owner text collate "C",
  lease_expires_at bigint,
  created_at bigint not null,
  updated_at bigint not null,
  started_at bigint,  -- first claim
  completed_at bigint,  -- end, however it ended
  timeout bigint,  -- microseconds of running time of one attempt
  retry text collate "C",  -- JSON, where it differs from the job's
  deadline_at bigint,
  parent_id text collate "C",
  root_id text collate "C",
  child_index bigint,
  is_finalize smallint not null default 0 check (is_finalize in (0, 1)),
  awaited_as text collate "C",  -- the key of the wait of the run above it that it belongs to
  waiting_for text collate "C",  -- children | finalize | signal | timer | child
  wake_at bigint,  -- while it waits: when the first of its waits is over, whatever comes
  used bigint not null default 0,  -- microseconds that this attempt had run when it began to wait
  tree smallint not null default 0 check (tree in (0, 1, 2, 3)),  -- 1: it has waits, or runs below it
    -- 2: it has ended without its output, and what is below it is to be cancelled
    -- 3: it has ended with its output while something below went on, which goes with those above
  idempotency_key text collate "C",
  concurrency_key text collate "C",
  tenant text collate "C" not null default '',
  labels text collate "C" not null default '{}',  -- JSON, a copy of holdfast_labels for reading
  codec text collate "C",  -- which codec wrote the payloads; null: none
  trace text collate "C",  -- W3C trace context of the trigger
  input text not null,
  output text,
  error text,  -- message, cleaned
  error_type text collate "C",
  outputs_kept smallint not null default 1 check (outputs_kept in (0, 1)),  -- of its steps; 0: dropped, for good
  check ((status = 'leased') = (lease_owner is not null)),
  check ((status = 'leased') = (lease_expires_at is not null)),
  check (status <> 'leased' or (turn = 2) = (concurrency_key is not null)),
  check ((completed_at is not null)
         = (status in ('completed', 'failed', 'timed_out', 'finalize_failed', 'cancelled')))
)
-- A run is updated a few times and then never again: room for it on its page, and dead rows gone before claims meet them.
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);

-- Some indexes have a condition that is always true (`crashes >= 0`): only a statement that says it too may use them. Of
-- tables that have just grown the planner knows nothing. Left to itself it takes any index whose condition fits, and
-- reads all of it.
-- What a claim reads, in its order. Partial, so that the finished millions cost nothing, nor what waits for its key.
create index holdfast_runs_claimable on holdfast_runs (queue, job_name, priority desc, run_at, id)
  where status = 'pending' and due = 1 and turn <> 1 and crashes >= 0;
-- Pending runs whose time has not come.
create index holdfast_runs_delayed on holdfast_runs (run_at)
  where status = 'pending' and due = 0 and attempt >= 0;
-- Waiting runs whose time comes. Those that were woken are not in it, though what they waited for is still there.
create index holdfast_runs_asleep on holdfast_runs (wake_at)
  where status = 'waiting' and wake_at is not null and attempt >= 0;
create index holdfast_runs_leases on holdfast_runs (lease_expires_at)
  where status = 'leased' and crashes >= 0;
-- How many of a job are leased, for its limit.
create index holdfast_runs_leased_of_job on holdfast_runs (job_name)
  where status = 'leased' and attempt >= 0;
create index holdfast_runs_deadline on holdfast_runs (deadline_at)
  where deadline_at is not null and completed_at is null and crashes >= 0;
-- A run that went wrong must be found quickly among millions that did not.
create index holdfast_runs_errored on holdfast_runs (status, id)
  where status in ('failed', 'timed_out', 'finalize_failed', 'cancelled');
-- What may be forgotten, oldest end first. Those that still have the outputs of their steps are last, so that the end of
-- a run appends.
create index holdfast_runs_ended on holdfast_runs (outputs_kept, completed_at)
  where completed_at is not null and parent_id is null;
create index holdfast_runs_by_job on holdfast_runs (job_name, id) where attempt >= 0;
create index holdfast_runs_by_parent on holdfast_runs (parent_id, child_index)
  where parent_id is not null and attempt >= 0;
-- What is below a run, or anywhere in its tree, and has not ended.
create index holdfast_runs_unended on holdfast_runs (root_id, parent_id, awaited_as)
  where completed_at is null and root_id is not null;
create index holdfast_runs_above_cancelled on holdfast_runs (id)
  where tree = 2;
create index holdfast_runs_left_going on holdfast_runs (root_id, parent_id)
  where tree = 3;
create index holdfast_runs_by_root on holdfast_runs (root_id, id)
  where root_id is not null and attempt >= 0;
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
-- What is under way of a key, and of a job and key.
create index holdfast_runs_of_key on holdfast_runs (concurrency_key, job_name, id)
  where completed_at is null and concurrency_key is not null;

create table holdfast_labels (
  key text collate "C" not null,
  value text collate "C" not null,
  run_id text collate "C" not null,
  primary key (key, value, run_id)
);
create index holdfast_labels_by_run on holdfast_labels (run_id);

create table holdfast_progress (  -- apart from the run, whose row may be large
  run_id text collate "C" primary key,
  progress text not null,  -- JSON: current, total, message
  updated_at bigint not null
);

create table holdfast_steps (
  run_id text collate "C" not null,
  name text collate "C" not null,
  occurrence bigint not null check (occurrence >= 0),  -- of the name, within its branch
  position bigint not null check (position >= 0),  -- order of starting in the execution that saved it
  kind text collate "C" not null default 'step',
  status text collate "C" not null check (status in ('completed', 'failed')),
  attempt bigint not null,  -- of the run, when it was saved
  generation bigint not null,  -- of the lease that saved it
  fingerprint text collate "C",  -- of function and arguments
  output text,
  error text,  -- JSON: type, message, args, traceback
  started_at bigint not null,
  completed_at bigint not null,
  primary key (run_id, name, occurrence)
);
create index holdfast_steps_by_position on holdfast_steps (run_id, position);

create table holdfast_step_attempts (
  run_id text collate "C" not null,
  name text collate "C" not null,
  occurrence bigint not null,
  run_attempt bigint not null,  -- of the run: each has its retries anew
  number bigint not null,  -- how many tries had failed before, within the run's attempt
  position bigint not null,  -- of the step, as in holdfast_steps
  generation bigint not null,
  started_at bigint not null,
  ended_at bigint,  -- null: under way, or nobody lived to tell
  error text collate "C",  -- short: the whole one is with the step, once it has failed for good
  primary key (run_id, name, occurrence, run_attempt, number)
);

create table holdfast_logs (
  id bigint generated always as identity primary key,
  run_id text collate "C" not null,
  generation bigint not null,
  step_name text collate "C",
  level text collate "C" not null check (level in ('debug', 'info', 'warning', 'error', 'emit')),
  message text not null,
  data text,
  created_at bigint not null
);
create index holdfast_logs_by_run on holdfast_logs (run_id, id);

create table holdfast_waits (
  run_id text collate "C" not null,
  key text collate "C" not null,  -- of the step that waits
  kind text collate "C" not null check (kind in ('timer', 'signal', 'child', 'children', 'finalize')),
  until bigint,  -- not longer than this
  signal text collate "C",  -- its name
  created_at bigint not null,
  primary key (run_id, key)
);

create table holdfast_signals (
  id text collate "C" primary key,
  run_id text collate "C" not null,
  name text collate "C" not null,
  key text collate "C",  -- makes sending twice safe
  value text,
  created_at bigint not null,
  consumed_by text collate "C"  -- key of the step that took it
);
create index holdfast_signals_unread on holdfast_signals (run_id, name, id) where consumed_by is null;
create index holdfast_signals_by_run on holdfast_signals (run_id, consumed_by);
create unique index holdfast_signals_key on holdfast_signals (run_id, name, key) where key is not null;

create table holdfast_keys (  -- what several writers lock and count by, per concurrency key and per job with a limit.
  -- Whoever changes the line of a key holds its row; the counters are not used here: see the column `turn`.
  key text collate "C" not null,
  kind text collate "C" not null check (kind in ('key', 'job')),
  allowed bigint not null default 1,
  leased bigint not null default 0,
  pending bigint not null default 0,
  primary key (key, kind)
);
create index holdfast_keys_free on holdfast_keys (kind, key) where leased < allowed and pending > 0;

create table holdfast_workers (
  id text collate "C" primary key,  -- random, made at each start of a process
  host text collate "C" not null,
  pid bigint not null,
  started_at bigint not null,
  seen_at bigint not null,
  jobs text collate "C" not null,  -- JSON
  queues text collate "C" not null,  -- JSON
  version text collate "C" not null,
  lease bigint not null  -- microseconds: not seen for as long, it counts as gone
);
