/** The settings of a new run, each with what it does, and the same as code. */
import type { DatasetReport, RunState } from "@loraline/contracts";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { Tabs } from "radix-ui";
import { type FormEvent, type ReactNode, useMemo, useState } from "react";
import { api, enginesQuery, trainedRunsQuery } from "../../data/api.ts";
import { duration } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Code, Field } from "../../ui/controls.tsx";
import { ErrorNote, Loaded } from "../../ui/states.tsx";
import { estimateOf, roughly } from "./decide-time.ts";
import { codeOf, jobOf, keptOf, methodsFor, nameAfter, namesOf, offeredMethods, problemsOf, type Wish } from "./decide-job.ts";

interface Given {
  datasetId: string;
  filename: string;
  report: DatasetReport;
  like: RunState | undefined;
}

export function RunSettings(given: Given): ReactNode {
  const engines = useQuery(enginesQuery);
  return <Loaded query={engines}>{({ data }) => <Form {...given} bases={[...new Set(data.map(({ base }) => base))]} />}</Loaded>;
}

function firstWish({ filename, report, like }: Given, bases: readonly string[]): Wish {
  const [method = "supervised"] = methodsFor(report);
  const spec = like?.spec;
  const told = (value: string | number | undefined): string => String(value ?? "");
  return {
    base: spec?.base ?? bases[0] ?? "",
    adapter: spec?.adapter ?? nameAfter(filename),
    method: offeredMethods.find((one) => one === spec?.method?.type) ?? method,
    epochs: told(spec?.training?.num_train_epochs ?? 3),
    learningRate: told(spec?.training?.learning_rate),
    rank: told(spec?.lora?.r ?? 8),
    maxSteps: (spec?.training?.max_steps ?? -1) > 0 ? told(spec?.training?.max_steps) : "",
    promote: spec?.promote ?? "auto",
  };
}

function Form({ bases, ...given }: Given & { bases: readonly string[] }): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const { datasetId, filename, report, like } = given;
  const kept = useMemo(() => (like === undefined ? undefined : keptOf(like.spec)), [like]);
  const [wish, setWish] = useState(() => firstWish(given, bases));
  const [isTried, setTried] = useState(false);
  const chosen = wish.base === "" && bases[0] !== undefined ? { ...wish, base: bases[0] } : wish;
  const problems = problemsOf(chosen);
  const recent = useQuery(trainedRunsQuery(chosen.base));
  const estimate = Object.keys(problems).length > 0 ? undefined : estimateOf(chosen, report, recent.data?.data ?? []);
  const start = useMutation({
    mutationFn: () => api.createFineTuningJob({ body: jobOf(chosen, datasetId, kept) }),
    onSuccess: ({ id }) => void navigate({ to: "/runs/$runId", params: { runId: id.replace(/^ftjob-/, "") } }),
  });
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    setTried(true);
    if (Object.keys(problems).length === 0) start.mutate();
  };
  const set = <K extends keyof Wish>(field: K, value: Wish[K]): void => setWish({ ...chosen, [field]: value });
  const errorOf = (field: keyof typeof problems): string | undefined => {
    const problem = problems[field];
    return problem === undefined || (!isTried && problem === "required") ? undefined : t.newRun[problem];
  };
  const textField = (field: "adapter" | "epochs" | "learningRate" | "rank" | "maxSteps", label: string, hint: string): ReactNode => (
    <Field label={label} hint={hint} error={errorOf(field)}>
      {(ids) => (
        <input
          {...ids}
          className="input"
          inputMode={field === "adapter" ? "text" : "decimal"}
          autoComplete="off"
          spellCheck={false}
          value={chosen[field]}
          onChange={(event) => set(field, event.target.value)}
        />
      )}
    </Field>
  );
  const methods = methodsFor(report);
  if (bases.length === 0) return <p className="note warn">{t.newRun.noBase}</p>;
  return (
    <form className="stack" onSubmit={submit} noValidate>
      <Card title={t.run.settings}>
        <div className="columns">
          {textField("adapter", t.newRun.adapter, t.newRun.adapterHint)}
          <Field label={t.newRun.base} error={errorOf("base")}>
            {(ids) => (
              <select {...ids} className="input" value={chosen.base} onChange={(event) => set("base", event.target.value)}>
                {bases.map((base) => (
                  <option key={base}>{base}</option>
                ))}
              </select>
            )}
          </Field>
          {methods.length > 1 && (
            <Field label={t.newRun.method}>
              {(ids) => (
                <select
                  {...ids}
                  className="input"
                  value={chosen.method}
                  onChange={(event) => set("method", event.target.value as Wish["method"])}
                >
                  {methods.map((method) => (
                    <option key={method} value={method}>
                      {t.newRun.methods[method]}
                    </option>
                  ))}
                </select>
              )}
            </Field>
          )}
          {textField("epochs", t.newRun.epochs, t.newRun.epochsHint)}
          <Field label={t.newRun.promote}>
            {(ids) => (
              <select
                {...ids}
                className="input"
                value={chosen.promote}
                onChange={(event) => set("promote", event.target.value as Wish["promote"])}
              >
                {(["auto", "canary", "manual"] as const).map((promote) => (
                  <option key={promote} value={promote}>
                    {t.newRun.promotes[promote]}
                  </option>
                ))}
              </select>
            )}
          </Field>
        </div>
        <details>
          <summary>{t.newRun.more}</summary>
          <div className="columns" style={{ marginTop: 14 }}>
            {textField("learningRate", t.newRun.learningRate, t.newRun.learningRateHint)}
            {textField("rank", t.newRun.rank, t.newRun.rankHint)}
            {textField("maxSteps", t.newRun.maxSteps, t.newRun.maxStepsHint)}
          </div>
        </details>
        {kept !== undefined && namesOf(kept.fields).length > 0 && (
          <p className="small soft wrap">
            {t.newRun.kept} {namesOf(kept.fields).join(", ")}
          </p>
        )}
        <p className="soft" role="status">
          {estimate === undefined ? t.newRun.noEstimate : t.newRun.estimate(duration(roughly(estimate.ms)), estimate.runs)}
        </p>
        {report.records < 10 && <p className="note warn">{t.newRun.tooFew(report.records)}</p>}
        {start.error !== null && <ErrorNote error={start.error} title={t.common.failedTitle} />}
        <div>
          <button type="submit" className="button primary" disabled={start.isPending}>
            {t.newRun.start}
          </button>
        </div>
      </Card>
      <Card title={t.newRun.code} end={<span className="small soft">{t.newRun.codeHint}</span>}>
        <CodeTabs blocks={codeOf(chosen, datasetId, filename, location.origin, kept)} />
      </Card>
    </form>
  );
}

function CodeTabs({ blocks }: { blocks: { name: string; text: string }[] }): ReactNode {
  const t = useTexts();
  return (
    <Tabs.Root defaultValue={blocks[0]?.name ?? ""} className="stack-s">
      <Tabs.List className="tabs" aria-label={t.newRun.code}>
        {blocks.map(({ name }) => (
          <Tabs.Trigger key={name} value={name}>
            {name}
          </Tabs.Trigger>
        ))}
      </Tabs.List>
      {blocks.map(({ name, text }) => (
        <Tabs.Content key={name} value={name} tabIndex={-1}>
          <Code text={text} label={name} isNamed />
        </Tabs.Content>
      ))}
    </Tabs.Root>
  );
}
