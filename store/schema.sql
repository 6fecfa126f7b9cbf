-- The run store: one SQLite file per project directory or set of runs.
--
-- store/README.md explains every table to people who query it. The text below is compiled into the
-- program and executed once, when a store is created; `PRAGMA user_version` holds its number
-- (kSchemaVersion in store/database.h), `PRAGMA application_id` says "TrYd".
--
-- Times named *_ns are int64 nanoseconds since the start of the run: of simulated time, or of real time where kind is
-- 'exec'. *_unix_ns are wall-clock times, and no result depends on them. Seeds and hashes are 64-bit and
-- unsigned, which SQLite's integers are not: they are stored as text.

CREATE TABLE runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('step', 'run', 'exec')),
  status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'interrupted', 'failed')),
  started_unix_ns INTEGER NOT NULL,
  ended_unix_ns INTEGER,
  version TEXT NOT NULL,
  commit_id TEXT NOT NULL,
  seed TEXT NOT NULL,
  parameters TEXT NOT NULL CHECK (json_valid(parameters)),
  host TEXT NOT NULL CHECK (json_valid(host)),
  report TEXT CHECK (report IS NULL OR json_valid(report)),
  trace_hash TEXT
) STRICT;

CREATE TABLE streams (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  stream INTEGER NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (run_id, stream)
) STRICT, WITHOUT ROWID;

CREATE TABLE rank_classes (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  class INTEGER NOT NULL,
  name TEXT NOT NULL,
  stage INTEGER NOT NULL,
  representative_rank INTEGER NOT NULL,
  ranks INTEGER NOT NULL CHECK (ranks > 0),
  PRIMARY KEY (run_id, class)
) STRICT, WITHOUT ROWID;

CREATE TABLE rank_ranges (
  run_id INTEGER NOT NULL,
  first_rank INTEGER NOT NULL,
  last_rank INTEGER NOT NULL CHECK (last_rank >= first_rank),
  class INTEGER NOT NULL,
  PRIMARY KEY (run_id, first_rank),
  FOREIGN KEY (run_id, class) REFERENCES rank_classes (run_id, class) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE labels (
  id INTEGER PRIMARY KEY,
  label TEXT NOT NULL,
  category TEXT NOT NULL,
  UNIQUE (label, category)
) STRICT;

CREATE TABLE slices (
  run_id INTEGER NOT NULL,
  class INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  label_id INTEGER NOT NULL REFERENCES labels (id),
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL CHECK (end_ns >= start_ns),
  PRIMARY KEY (run_id, class, stream, seq),
  FOREIGN KEY (run_id, class) REFERENCES rank_classes (run_id, class) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Links that a simulated step crossed and that could have slowed it; those that carry alike are one row. `busy` is the
-- share of the step that the bytes take at the healthy link's capacity.
CREATE TABLE links (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  tier TEXT NOT NULL,
  name TEXT NOT NULL,
  alike INTEGER NOT NULL CHECK (alike > 0),
  capacity_bytes_per_s REAL NOT NULL,
  bytes REAL NOT NULL,
  busy REAL NOT NULL,
  PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_events (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  time_ns INTEGER NOT NULL,
  kind TEXT NOT NULL,
  node INTEGER,
  text TEXT NOT NULL,
  PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE recoveries (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  recovery INTEGER NOT NULL,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER CHECK (end_ns >= start_ns),
  cause TEXT NOT NULL,
  node INTEGER,
  lost_work_ns INTEGER NOT NULL CHECK (lost_work_ns >= 0),
  restored_step INTEGER,
  PRIMARY KEY (run_id, recovery)
) STRICT, WITHOUT ROWID;

CREATE TABLE recovery_phases (
  run_id INTEGER NOT NULL,
  recovery INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  phase TEXT NOT NULL,
  attempt INTEGER NOT NULL CHECK (attempt > 0),
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL CHECK (end_ns >= start_ns),
  PRIMARY KEY (run_id, recovery, seq),
  FOREIGN KEY (run_id, recovery) REFERENCES recoveries (run_id, recovery) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Nodes that could be promoted at once: a row whenever their number changed, the first at time 0.
CREATE TABLE spare_counts (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  time_ns INTEGER NOT NULL,
  free INTEGER NOT NULL CHECK (free >= 0),
  PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE goodput_bands (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  band TEXT NOT NULL,
  duration_ns INTEGER NOT NULL CHECK (duration_ns >= 0),
  PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE training_steps (
  run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  loss REAL,
  grad_norm REAL,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL CHECK (end_ns >= start_ns),
  PRIMARY KEY (run_id, step)
) STRICT, WITHOUT ROWID;

-- Sweeps: one scenario under many policies and seeds. Of each simulation only its figures are kept, one row a cell.
-- `identity` is a hash of `inputs`: all that the cells have in common and depend on. A sweep that is started again under
-- the same identity goes on where it was.
CREATE TABLE sweeps (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  identity TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  scenario TEXT NOT NULL,
  duration_ns INTEGER NOT NULL,
  version TEXT NOT NULL,
  commit_id TEXT NOT NULL,
  inputs TEXT NOT NULL CHECK (json_valid(inputs)),
  started_unix_ns INTEGER NOT NULL,
  worked_on_unix_ns INTEGER NOT NULL
) STRICT;

-- A policy with its varied keys: `changes` holds those, `policy_json` the whole.
CREATE TABLE sweep_variations (
  sweep_id INTEGER NOT NULL REFERENCES sweeps (id) ON DELETE CASCADE,
  variation INTEGER NOT NULL,
  name TEXT NOT NULL,
  policy TEXT NOT NULL,
  changes TEXT NOT NULL CHECK (json_valid(changes)),
  policy_json TEXT NOT NULL CHECK (json_valid(policy_json)),
  PRIMARY KEY (sweep_id, variation),
  UNIQUE (sweep_id, name)
) STRICT, WITHOUT ROWID;

-- One simulated run that came to its end. `bands` is a JSON object of the bands that are not 0, in nanoseconds. Seconds
-- of recovery are NULL where there was none.
CREATE TABLE sweep_cells (
  sweep_id INTEGER NOT NULL,
  variation INTEGER NOT NULL,
  seed TEXT NOT NULL,
  effective_training_time REAL NOT NULL,
  failures INTEGER NOT NULL,
  recoveries INTEGER NOT NULL,
  recovery_median_s REAL,
  recovery_mean_s REAL,
  recovery_p99_s REAL,
  lost_work_ns INTEGER NOT NULL,
  bands TEXT NOT NULL CHECK (json_valid(bands)),
  checkpoint_interval_s REAL NOT NULL,
  checkpoints INTEGER NOT NULL,
  steps_done INTEGER NOT NULL,
  steps_committed INTEGER NOT NULL,
  pages INTEGER NOT NULL,
  spares_configured INTEGER NOT NULL,
  spares_fewest INTEGER NOT NULL,
  spares_mean REAL NOT NULL,
  waiting_for TEXT NOT NULL,
  trace_hash TEXT NOT NULL,
  PRIMARY KEY (sweep_id, variation, seed),
  FOREIGN KEY (sweep_id, variation) REFERENCES sweep_variations (sweep_id, variation) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- What the controller of a run was told and what that led to, and how it had been set up: enough to do it all again.
-- `lines` is text, one line for each event, compressed by zlib: `trainyard run replay RUN --log` prints it.
CREATE TABLE controller_logs (
  run_id INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
  config TEXT NOT NULL CHECK (json_valid(config)),
  events INTEGER NOT NULL,
  lines BLOB NOT NULL
) STRICT;

-- Steps that need not be simulated again. `job` is a hash of all that they depend on, the program that simulated them
-- included; `state` says which parts of the job were slow or elsewhere.
CREATE TABLE step_times (
  job TEXT NOT NULL,
  state TEXT NOT NULL,
  seconds REAL NOT NULL,
  PRIMARY KEY (job, state)
) STRICT, WITHOUT ROWID;

-- The same of whole steps where all is well: `result` is for the program that wrote it alone.
CREATE TABLE healthy_steps (
  job TEXT PRIMARY KEY,
  result BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE VIEW named_slices AS
  SELECT s.run_id, s.class, t.name AS stream, l.label, l.category, s.start_ns, s.end_ns,
         s.end_ns - s.start_ns AS duration_ns
  FROM slices AS s
  JOIN labels AS l ON l.id = s.label_id
  JOIN streams AS t ON t.run_id = s.run_id AND t.stream = s.stream;

CREATE VIEW goodput AS
  SELECT run_id, band, duration_ns / 1e9 AS duration_s,
         100.0 * duration_ns / nullif(sum(duration_ns) OVER (PARTITION BY run_id), 0) AS percent
  FROM goodput_bands
  ORDER BY run_id, seq;

CREATE VIEW named_cells AS
  SELECT s.name AS sweep, v.policy, v.name AS variation_name, v.changes, c.*
  FROM sweep_cells AS c
  JOIN sweep_variations AS v USING (sweep_id, variation)
  JOIN sweeps AS s ON s.id = c.sweep_id;
