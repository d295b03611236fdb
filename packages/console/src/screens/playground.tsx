/** Two to six models answer one question side by side. */
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { type KeyboardEvent, type ReactNode, useEffect, useRef, useState } from "react";
import { api, modelsQuery } from "../data/api.ts";
import { duration } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";
import { Card, Field, Page } from "../ui/controls.tsx";
import { Empty, ErrorNote, Loaded } from "../ui/states.tsx";

const most = 6;

interface Asked {
  /** A new number for each question, so that answers begin anew. */
  n: number;
  prompt: string;
  system: string;
  temperature: number;
  maxTokens: number;
  seed: number | undefined;
}

export function Playground(): ReactNode {
  const t = useTexts();
  const models = useQuery(modelsQuery);
  return (
    <Page title={t.playground.title}>
      <Loaded query={models}>
        {({ data }) =>
          data.length === 0 ? (
            <Card>
              <Empty text={t.playground.noModels} />
            </Card>
          ) : (
            <Table models={data.map(({ id }) => id)} />
          )
        }
      </Loaded>
    </Page>
  );
}

function Table({ models }: { models: string[] }): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const { models: given } = useSearch({ from: "/playground" });
  const chosen = (given?.split(",").filter((model) => model !== "") ?? models.slice(0, 2)).slice(0, most);
  const [prompt, setPrompt] = useState("");
  const [system, setSystem] = useState("");
  const [temperature, setTemperature] = useState("0");
  const [maxTokens, setMaxTokens] = useState("128");
  const [seed, setSeed] = useState("");
  const [asked, setAsked] = useState<Asked>();
  const [busy, setBusy] = useState<ReadonlySet<string>>(new Set());
  const [stop, setStop] = useState(0);

  const choose = (next: readonly string[]): void => void navigate({ to: "/playground", search: { models: next.join() }, replace: true });
  const ask = (): void => {
    if (prompt.trim() === "" || chosen.length === 0) return;
    setBusy(new Set(chosen));
    setAsked({
      n: (asked?.n ?? 0) + 1,
      prompt,
      system,
      temperature: Number(temperature) || 0,
      maxTokens: Math.max(1, Math.round(Number(maxTokens)) || 128),
      seed: seed.trim() === "" ? undefined : Math.round(Number(seed)),
    });
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  };
  const left = models.filter((model) => !chosen.includes(model));
  const isBusy = busy.size > 0;
  return (
    <>
      <Card>
        <div className="stack-s">
          <h2>{t.playground.models}</h2>
          <ul className="row">
            {chosen.map((model) => (
              <li key={model} className="row">
                <code className="wrap">{model}</code>
                <button
                  type="button"
                  className="button small"
                  aria-label={t.playground.remove(model)}
                  onClick={() => choose(chosen.filter((one) => one !== model))}
                >
                  ×
                </button>
              </li>
            ))}
            {chosen.length < most && left.length > 0 && (
              <li>
                <select
                  className="input"
                  aria-label={t.playground.add}
                  value=""
                  onChange={(event) => choose([...chosen, event.target.value])}
                >
                  <option value="">{t.playground.add}</option>
                  {left.map((model) => (
                    <option key={model}>{model}</option>
                  ))}
                </select>
              </li>
            )}
          </ul>
        </div>
        <Field label={t.playground.prompt} hint={t.playground.hint}>
          {(ids) => (
            <textarea {...ids} className="input" value={prompt} onChange={(event) => setPrompt(event.target.value)} onKeyDown={onKey} />
          )}
        </Field>
        <details>
          <summary>{t.playground.sampling}</summary>
          <div className="columns" style={{ marginTop: 14 }}>
            <Field label={t.playground.system} hint={t.playground.systemHint}>
              {(ids) => <textarea {...ids} className="input" value={system} onChange={(event) => setSystem(event.target.value)} />}
            </Field>
            {(
              [
                [t.playground.temperature, temperature, setTemperature],
                [t.playground.maxTokens, maxTokens, setMaxTokens],
                [t.playground.seed, seed, setSeed],
              ] as const
            ).map(([label, value, set]) => (
              <Field key={label} label={label}>
                {(ids) => (
                  <input {...ids} className="input" inputMode="decimal" value={value} onChange={(event) => set(event.target.value)} />
                )}
              </Field>
            ))}
          </div>
        </details>
        <div className="row">
          <button type="button" className="button primary" disabled={prompt.trim() === "" || chosen.length === 0 || isBusy} onClick={ask}>
            {t.playground.ask}
          </button>
          {isBusy && (
            <button type="button" className="button" onClick={() => setStop(stop + 1)}>
              {t.playground.stop}
            </button>
          )}
        </div>
      </Card>
      {asked === undefined ? (
        <p className="soft">{t.playground.empty}</p>
      ) : (
        <div className="answers">
          {chosen.map((model) => (
            <OneAnswer
              key={model}
              model={model}
              asked={asked}
              stop={stop}
              onEnd={() => setBusy((before) => new Set([...before].filter((one) => one !== model)))}
            />
          ))}
        </div>
      )}
    </>
  );
}

function OneAnswer({ model, asked, stop, onEnd }: { model: string; asked: Asked; stop: number; onEnd: () => void }): ReactNode {
  const t = useTexts();
  const [text, setText] = useState("");
  const [end, setEnd] = useState<{ tokens: number; ms: number; isStopped: boolean }>();
  const [error, setError] = useState<unknown>();
  const controller = useRef<AbortController>(undefined);
  const firstStop = useRef(stop);
  const ended = useRef(onEnd);
  ended.current = onEnd;

  useEffect(() => {
    const stopping = new AbortController();
    controller.current = stopping;
    setText("");
    setEnd(undefined);
    setError(undefined);
    void (async () => {
      const begun = performance.now();
      let [whole, tokens, isStopped] = ["", 0, false];
      try {
        const events = api.stream("createChatCompletion", {
          signal: stopping.signal,
          body: {
            model,
            messages: [
              ...(asked.system.trim() === "" ? [] : [{ role: "system", content: asked.system }]),
              { role: "user", content: asked.prompt },
            ],
            temperature: asked.temperature,
            max_tokens: asked.maxTokens,
            ...(asked.seed === undefined ? {} : { seed: asked.seed }),
            stream_options: { include_usage: true },
          },
        });
        for await (const { choices, usage } of events) {
          whole += choices[0]?.delta.content ?? "";
          tokens = usage?.completion_tokens ?? tokens;
          setText(whole);
        }
      } catch (failed) {
        isStopped = stopping.signal.aborted;
        if (!isStopped) setError(failed);
      }
      if (isStopped && stopping.signal.reason === leaving) return;
      setEnd({ tokens, ms: performance.now() - begun, isStopped });
      ended.current();
    })();
    return () => stopping.abort(leaving);
  }, [model, asked]);
  useEffect(() => {
    if (stop !== firstStop.current) controller.current?.abort();
    firstStop.current = stop;
  }, [stop]);

  return (
    <Card title={<code className="wrap">{model}</code>}>
      <p className="answer" aria-live="polite" aria-busy={end === undefined}>
        {text === "" && end === undefined && error === undefined ? <span className="soft">{t.playground.waiting}</span> : text}
      </p>
      {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
      {end !== undefined && error === undefined && (
        <p className="small soft num">{end.isStopped ? t.playground.stopped : t.playground.answered(end.tokens, duration(end.ms))}</p>
      )}
    </Card>
  );
}

const leaving = new Error("another question");
