// A page that uses every hook of the React client, as it is published, and shows all that they tell.
// What it shows is chosen by the query: ?show=job,run,runs&job=import-rows&run=…&resume=no&follow=no&status=…&label=…
import { StrictMode, useCallback, useState, type ReactNode } from "react";
import { createRoot } from "react-dom/client";
import { createDurably, useRuns, type LogEntry } from "@coji/durably-react";

type Input = { rows: number; held?: boolean; fail_at?: number };
type Output = { rows: number };
type Job = { trigger: (input: Input) => Promise<{ output?: Output }> };

const api = "/api/durably";
const client = createDurably<Record<string, Job>>({ api });
const asked = new URLSearchParams(location.search);
const shows = (asked.get("show") ?? "job,runs").split(",");
const jobName = asked.get("job") ?? "import-rows";
const initialRunId = asked.get("run") ?? undefined;

/** What was given, in the words of JSON. */
function Said({ name, value }: { name: string; value: unknown }) {
  return (
    <p>
      {name} <output className={name}>{JSON.stringify(value)}</output>
    </p>
  );
}

function Logs({ logs }: { logs: LogEntry[] }) {
  return (
    <ol className="logs">
      {logs.map((log) => (
        <li key={log.id} data-data={JSON.stringify(log.data)}>
          {log.level}: {log.message}
        </li>
      ))}
    </ol>
  );
}

/** The answer of the last thing that was asked for, or its error. */
function useAnswer(): [ReactNode, (what: Promise<unknown>) => void] {
  const [answer, setAnswer] = useState<unknown>(null);
  const ask = useCallback((what: Promise<unknown>) => {
    setAnswer("asked");
    what.then(
      (value) => setAnswer(value === undefined ? "done" : value),
      (error: Error) => setAnswer(`Error: ${error.message}`),
    );
  }, []);
  return [<Said name="answer" value={answer} />, ask];
}

function JobPanel() {
  const job = client[jobName].useJob({
    initialRunId,
    autoResume: asked.get("resume") !== "no",
    followLatest: asked.get("follow") !== "no",
  });
  const { trigger, triggerAndWait, reset, logs, ...told } = job;
  const [input, setInput] = useState('{"rows": 3}');
  const [answer, ask] = useAnswer();
  return (
    <section id="job">
      <h2>useJob</h2>
      <input className="input" size={50} value={input} onChange={(event) => setInput(event.target.value)} />
      <button onClick={() => ask(trigger(JSON.parse(input)))}>trigger</button>
      <button onClick={() => ask(triggerAndWait(JSON.parse(input)))}>triggerAndWait</button>
      <button onClick={reset}>reset</button>
      {answer}
      {Object.entries(told).map(([name, value]) => (
        <Said key={name} name={name} value={value} />
      ))}
      <Logs logs={logs} />
    </section>
  );
}

function RunPanel() {
  const [watched, setWatched] = useState(initialRunId ?? "");
  const [calls, setCalls] = useState<string[]>([]);
  const called = (name: string) => setCalls((before) => [...before, name]);
  const run = client[jobName].useRun(watched || null, {
    onStart: () => called("start"),
    onComplete: () => called("complete"),
    onFail: () => called("fail"),
  });
  const { logs: all, ...told } = run;
  const { logs, clearLogs } = client[jobName].useLogs(watched || null, { maxLogs: 3 });
  return (
    <section id="run">
      <h2>useRun, useLogs</h2>
      <input className="watched" size={30} value={watched} onChange={(event) => setWatched(event.target.value)} />
      <Said name="calls" value={calls} />
      <Said name="all" value={all.length} />
      {Object.entries(told).map(([name, value]) => (
        <Said key={name} name={name} value={value} />
      ))}
      <button onClick={clearLogs}>clearLogs</button>
      <Logs logs={logs} />
    </section>
  );
}

function filters() {
  const labels = asked.getAll("label").map((label) => label.split("="));
  const status = asked.getAll("status") as ("pending" | "leased" | "completed" | "failed" | "cancelled")[];
  const jobs = asked.getAll("jobs");
  return {
    ...(jobs.length && { jobName: jobs }),
    ...(status.length && { status }),
    ...(labels.length && { labels: Object.fromEntries(labels) as Record<string, string> }),
    pageSize: Number(asked.get("size") ?? 10),
    realtime: asked.get("realtime") !== "no",
  };
}

function RunsPanel() {
  const list = client.useRuns(filters());
  const { retrigger, cancel, deleteRun, getRun, getSteps } = client.useRunActions();
  const [answer, ask] = useAnswer();
  const { runs, nextPage, prevPage, goToPage, refresh, ...told } = list;
  const actions = { retrigger, cancel, deleteRun, getRun, getSteps };
  const [id, setId] = useState("");
  return (
    <section id="runs">
      <h2>useRuns, useRunActions</h2>
      {Object.entries(told).map(([name, value]) => (
        <Said key={name} name={name} value={value} />
      ))}
      <button onClick={prevPage}>prevPage</button>
      <button onClick={nextPage}>nextPage</button>
      <button onClick={() => goToPage(0)}>goToPage(0)</button>
      <button onClick={() => ask(refresh())}>refresh</button>
      <table>
        <tbody>
          {runs.map((run) => (
            <tr key={run.id} data-id={run.id}>
              <td>{run.id}</td>
              <td>{run.jobName}</td>
              <td className="status">{run.status}</td>
              <td className="progress">{JSON.stringify(run.progress)}</td>
              <td className="steps">{run.currentStepIndex}</td>
              <td className="labels">{JSON.stringify(run.labels)}</td>
              <td className="output">{JSON.stringify(run.output)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <input className="id" size={30} value={id} onChange={(event) => setId(event.target.value)} />
      {Object.entries(actions).map(([name, act]) => (
        <button key={name} onClick={() => ask(act(id))}>
          {name}
        </button>
      ))}
      {answer}
    </section>
  );
}

// Of a job's definition the hook takes the name only; in a page there is none that could be run.
const definition = { name: jobName, run: () => undefined } as never;

function RunsOfJobPanel() {
  const { runs } = useRuns(definition, { api, realtime: false });
  return (
    <section id="runs-of-job">
      <h2>useRuns of a job's definition</h2>
      <Said name="names" value={runs.map((run) => run.jobName)} />
    </section>
  );
}

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <h1>Runs</h1>
    {shows.includes("job") && <JobPanel />}
    {shows.includes("run") && <RunPanel />}
    {shows.includes("runs") && <RunsPanel />}
    {shows.includes("runs-of-job") && <RunsOfJobPanel />}
  </StrictMode>,
);
