/** One run: how far it is, what it learns, why it waits or failed, and what can be done. */
import type { RunState } from "@loraline/contracts";
import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, useParams } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { api, can, datasetQuery, isOver, jobIdOf, queryClient, runEventsQuery, runQuery, sessionQuery } from "../../data/api.ts";
import { count, duration, number, time } from "../../data/format.ts";
import { settingsOf } from "../../data/settings-of.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Dialog, Fact, Page, RunBadge } from "../../ui/controls.tsx";
import { ErrorNote, Loaded, Problem, Words } from "../../ui/states.tsx";
import { Checkpoints } from "./checkpoints.tsx";
import { Curves } from "./curves.tsx";
import { Proof } from "./proof.tsx";
import { Spans } from "./spans.tsx";
import { StageStrip } from "./stage-strip.tsx";

export function Run(): ReactNode {
  const t = useTexts();
  const { runId } = useParams({ from: "/runs/$runId" });
  const query = useQuery(runQuery(runId));
  if (query.data === undefined)
    return (
      <Page title={t.nav.runs}>
        <Loaded query={query} lines={8}>
          {() => null}
        </Loaded>
      </Page>
    );
  return <Known run={query.data} />;
}

function Known({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const { error, queue } = run;
  return (
    <Page title={t.run.title(run.spec.adapter)} end={<Actions run={run} />}>
      <div className="row">
        <RunBadge run={run} />
        <span className="soft small">
          {run.spec.base} · {time(run.requestedAt, t.language)} · <code>{run.runId}</code>
        </span>
      </div>
      {error !== null && (run.phase === "failed" || run.phase === "rejected") && (
        <Problem title={run.phase === "failed" ? t.run.failure : t.run.rejected} code={error.code} message={error.message}>
          <Link to="/new" search={{ like: run.runId }} className="button small">
            {t.run.again}
          </Link>
        </Problem>
      )}
      {queue !== null && !isOver(run) && <Problem tone="warn" title={t.run.waits} code={queue.reason} message={queue.message} />}
      {run.cancelRequested && !isOver(run) && <p className="soft">{t.run.cancelling}</p>}
      <Card title={t.run.stages}>
        <Stages run={run} />
        <Spans run={run} />
      </Card>
      {run.phase === "running" && run.progress !== null && <Now run={run} />}
      {run.trained !== null && <Quality run={run} />}
      {run.served !== null && (
        <Card
          title={t.run.served}
          end={
            can(session, "infer") && (
              <Link
                to="/playground"
                search={{ models: `${run.tenant}/${run.spec.adapter}@${run.served.version},${run.spec.base}` }}
                className="button primary"
              >
                {t.run.tryIt}
              </Link>
            )
          }
        >
          <p className="wrap">
            <code>
              {run.tenant}/{run.spec.adapter}@{run.served.version}
            </code>{" "}
            · {t.common.replicas(run.served.replicas)} ·{" "}
            <Link to="/adapters/$adapter" params={{ adapter: run.spec.adapter }}>
              {t.nav.adapters}
            </Link>
          </p>
          {run.served.note && <p className="note">{run.served.note}</p>}
        </Card>
      )}
      <Card title={t.run.curves}>
        <Curves run={run} />
      </Card>
      {run.served !== null && <Proof adapter={run.spec.adapter} version={run.served.version} />}
      {run.checkpoints.length > 0 && <Checkpoints run={run} />}
      <div className="columns">
        <Card title={t.run.events}>
          <Events run={run} />
        </Card>
        <Card title={t.run.settings}>
          <Settings run={run} />
        </Card>
      </div>
    </Page>
  );
}

function Stages({ run }: { run: RunState }): ReactNode {
  const { dataset } = run.spec;
  const query = useQuery({ ...datasetQuery(dataset ?? ""), enabled: dataset !== undefined });
  return <StageStrip run={run} dataset={query.data} />;
}

function Now({ run: { progress, attempt, lostAttempts } }: { run: RunState }): ReactNode {
  const t = useTexts();
  if (progress === null) return null;
  return (
    <Card title={t.run.now}>
      <progress
        className="bar"
        max={Math.max(1, progress.totalSteps)}
        value={progress.step}
        aria-label={t.run.stepOf(progress.step, progress.totalSteps)}
      />
      <dl className="facts">
        <Fact name={t.run.step}>
          {progress.step} / {progress.totalSteps}
        </Fact>
        <Fact name={t.run.loss}>{number(progress.loss)}</Fact>
        <Fact name={t.run.learningRate}>{number(progress.learningRate)}</Fact>
        <Fact name={t.run.speed}>
          {progress.tokensPerSecond === null ? "–" : t.run.tokensPerSecond(count(Math.round(progress.tokensPerSecond), t.language))}
        </Fact>
        <Fact name={t.run.left}>{progress.etaSeconds === null ? "–" : duration(progress.etaSeconds * 1000)}</Fact>
        <Fact name={t.run.epoch}>{number(progress.epoch)}</Fact>
        <Fact name={t.run.attempt}>{attempt}</Fact>
      </dl>
      {lostAttempts > 0 && <p className="small soft">{t.run.attemptsLost(lostAttempts)}</p>}
    </Card>
  );
}

function Quality({ run: { trained } }: { run: RunState }): ReactNode {
  const t = useTexts();
  const evaluation = trained?.evaluation;
  if (!evaluation) return null;
  const { base_loss: base, adapter_loss: adapter, adapter_accuracy: accuracy, base_accuracy: baseAccuracy } = evaluation;
  const percent = (value: number): string => value.toLocaleString(t.language, { style: "percent", maximumFractionDigits: 1 });
  return (
    <Card title={t.run.quality}>
      <p>{adapter < base ? t.run.better(percent((base - adapter) / base)) : t.run.notBetter}</p>
      <dl className="facts">
        <Fact name={t.run.heldOut}>
          {number(adapter)} <span className="small soft">{t.run.baseLoss(number(base))}</span>
        </Fact>
        {typeof accuracy === "number" && (
          <Fact name={t.run.accuracy}>
            {percent(accuracy)}{" "}
            {typeof baseAccuracy === "number" && <span className="small soft">{t.run.baseLoss(percent(baseAccuracy))}</span>}
          </Fact>
        )}
      </dl>
    </Card>
  );
}

function Events({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const query = useQuery(runEventsQuery(run.runId));
  const [isAll, setAll] = useState(false);
  return (
    <Loaded query={query}>
      {({ data }) => {
        // Steps are in the curve.
        const told = data.filter(({ type }) => type === "message");
        const shown = isAll ? told : told.slice(0, 12);
        if (told.length === 0) return <p className="soft">{t.run.noEvents}</p>;
        return (
          <>
            <ol className="items">
              {shown.map(({ id, created_at: at, level, message }) => (
                <li key={id}>
                  <span className="when soft">{time(at * 1000, t.language)}</span>
                  <span
                    className="grow"
                    style={level === "info" ? {} : { color: level === "warn" ? "var(--warn)" : "var(--bad)" }}
                    lang="en"
                  >
                    <Words text={message} />
                  </span>
                </li>
              ))}
            </ol>
            {told.length > 12 && (
              <div>
                <button type="button" className="button small" aria-expanded={isAll} onClick={() => setAll(!isAll)}>
                  {isAll ? t.common.less : t.common.more}
                </button>
              </div>
            )}
          </>
        );
      }}
    </Loaded>
  );
}

const mostAsked = new Set([
  "method.type",
  "lora.r",
  "lora.lora_alpha",
  "training.num_train_epochs",
  "training.max_steps",
  "training.learning_rate",
  "training.per_device_train_batch_size",
  "tokenize.max_length",
  "gate",
  "promote",
]);

function Settings({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const { dataset } = run.spec;
  const all = settingsOf(run.spec);
  const shown = all.filter(({ name }) => mostAsked.has(name));
  const rest = all.filter(({ name }) => !mostAsked.has(name));
  const rowOf = ({ name, value }: (typeof all)[number]): ReactNode => (
    <tr key={name}>
      <th scope="row">
        <code>{name}</code>
      </th>
      <td className="wrap">{value}</td>
    </tr>
  );
  return (
    <>
      <table>
        <tbody>
          {dataset !== undefined && (
            <tr>
              <th scope="row">{t.run.dataset}</th>
              <td>
                <Link to="/datasets/$datasetId" params={{ datasetId: dataset }}>
                  <code className="wrap">{dataset}</code>
                </Link>
              </td>
            </tr>
          )}
          {shown.map(rowOf)}
        </tbody>
      </table>
      <details>
        <summary>{t.newRun.more}</summary>
        <table>
          <tbody>{rest.map(rowOf)}</tbody>
        </table>
      </details>
    </>
  );
}

function Actions({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const [asks, setAsks] = useState(false);
  const job = { fine_tuning_job_id: jobIdOf(run.runId) };
  const settled = (): void => void queryClient.invalidateQueries({ queryKey: runQuery(run.runId).queryKey });
  const cancel = useMutation({ mutationFn: () => api.cancelFineTuningJob(job), onSettled: settled, onSuccess: () => setAsks(false) });
  const pause = useMutation({
    mutationFn: () => (run.paused === true ? api.resumeFineTuningJob(job) : api.pauseFineTuningJob(job)),
    onSettled: settled,
  });
  if (!can(session, "train")) return null;
  const error = pause.error ?? cancel.error;
  const canGoOn = !isOver(run) && run.trained === null && !run.cancelRequested;
  return (
    <>
      {canGoOn && (
        <>
          <button
            type="button"
            className="button"
            disabled={pause.isPending}
            title={run.paused === true ? undefined : t.run.pauseText}
            onClick={() => pause.mutate()}
          >
            {run.paused === true ? t.run.resume : t.run.pause}
          </button>
          <button type="button" className="button danger" onClick={() => setAsks(true)}>
            {t.run.cancel}
          </button>
        </>
      )}
      {run.spec.dataset !== undefined && isOver(run) && run.error === null && (
        <Link to="/new" search={{ like: run.runId }} className="button">
          {t.run.again}
        </Link>
      )}
      {error !== null && !asks && <ErrorNote error={error} title={t.common.failedTitle} />}
      <Dialog title={t.run.cancelTitle} isOpen={asks} onClose={() => setAsks(false)}>
        <p>{t.run.cancelText}</p>
        {cancel.error !== null && <ErrorNote error={cancel.error} title={t.common.failedTitle} />}
        <div className="dialog-end">
          <button type="button" className="button" onClick={() => setAsks(false)}>
            {t.common.close}
          </button>
          <button type="button" className="button danger" disabled={cancel.isPending} onClick={() => cancel.mutate()}>
            {t.run.cancel}
          </button>
        </div>
      </Dialog>
    </>
  );
}
