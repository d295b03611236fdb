/** Two to six models answer one question side by side. */
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { type KeyboardEvent, type ReactNode, useState } from "react";
import { can, modelsQuery, sessionQuery } from "../../data/api.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Field, Page } from "../../ui/controls.tsx";
import { Empty, Loaded } from "../../ui/states.tsx";
import { type Asked, OneAnswer, type Whole } from "./answer.tsx";
import { toolsOf } from "./decide-answer.ts";
import { pairsOf } from "./decide-pairs.ts";
import { Pairs, usePairs } from "./pairs.tsx";
import { type Picture, Pictures } from "./pictures.tsx";

const most = 6;

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
            <Table
              models={data.map(({ id }) => id)}
              seeing={new Set(data.flatMap(({ id, loraline }) => (loraline?.modalities?.includes("image") === true ? id : [])))}
            />
          )
        }
      </Loaded>
    </Page>
  );
}

/** @param seeing - those of the models that take pictures. */
function Table({ models, seeing }: { models: string[]; seeing: ReadonlySet<string> }): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const { models: given } = useSearch({ from: "/playground" });
  const chosen = (given?.split(",").filter((model) => model !== "") ?? models.slice(0, 2)).slice(0, most);
  const [prompt, setPrompt] = useState("");
  const [pictures, setPictures] = useState<readonly Picture[]>([]);
  const [system, setSystem] = useState("");
  const [temperature, setTemperature] = useState("0");
  const [maxTokens, setMaxTokens] = useState("128");
  const [seed, setSeed] = useState("");
  const [toolText, setToolText] = useState("");
  const [probabilities, setProbabilities] = useState(false);
  const [asked, setAsked] = useState<Asked>();
  const [busy, setBusy] = useState<ReadonlySet<string>>(new Set());
  const [stop, setStop] = useState(0);
  const [whole, setWhole] = useState<ReadonlyMap<string, Whole>>(new Map());
  const [better, setBetter] = useState<string>();
  const { data: session } = useQuery(sessionQuery);
  const { pairs, set, choose: choosePairs } = usePairs();
  const tools = toolsOf(toolText);
  const blind = pictures.length === 0 ? [] : chosen.filter((model) => !seeing.has(model));
  const cannotAsk = prompt.trim() === "" || chosen.length === 0 || tools === undefined || blind.length > 0;

  const choose = (next: readonly string[]): void => void navigate({ to: "/playground", search: { models: next.join() }, replace: true });
  const ask = (): void => {
    if (cannotAsk) return;
    setBusy(new Set(chosen));
    setWhole(new Map());
    setBetter(undefined);
    setAsked({
      id: `${Date.now()}`,
      prompt,
      pictures: pictures.map(({ url }) => url),
      system,
      temperature: Number(temperature) || 0,
      maxTokens: Math.max(1, Math.round(Number(maxTokens)) || 128),
      seed: seed.trim() === "" ? undefined : Math.round(Number(seed)),
      tools,
      probabilities,
    });
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  };
  const left = models.filter((model) => !chosen.includes(model));
  const isBusy = busy.size > 0;
  /** Choosing this answer, where there is another one that differs. */
  const voteFor = (model: string): (() => void) | undefined => {
    const own = whole.get(model);
    if (asked === undefined || asked.pictures.length > 0 || own === undefined || own.isCut) return undefined;
    const others = chosen.filter((one) => one !== model).flatMap((one) => whole.get(one)?.text ?? []);
    const chosenPairs = pairsOf(`${asked.id}/vote`, asked, own.text, others);
    if (chosenPairs.length === 0) return undefined;
    return () => {
      setBetter(model);
      choosePairs(chosenPairs);
    };
  };
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
        {(pictures.length > 0 || chosen.some((model) => seeing.has(model))) && <Pictures pictures={pictures} set={setPictures} />}
        {blind.length > 0 && <p className="note">{t.playground.blind(blind)}</p>}
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
          <div className="stack" style={{ marginTop: 14 }}>
            <Field label={t.playground.tools} hint={t.playground.toolsHint} error={tools === undefined ? t.playground.badTools : undefined}>
              {(ids) => (
                <textarea
                  {...ids}
                  className="input mono"
                  spellCheck={false}
                  value={toolText}
                  onChange={(event) => setToolText(event.target.value)}
                />
              )}
            </Field>
            <label className="check">
              <input type="checkbox" checked={probabilities} onChange={(event) => setProbabilities(event.target.checked)} />
              {t.playground.probabilities}
            </label>
          </div>
        </details>
        <div className="row">
          <button type="button" className="button primary" disabled={cannotAsk || isBusy} onClick={ask}>
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
              onEnd={(answer) => {
                setBusy((before) => new Set([...before].filter((one) => one !== model)));
                if (answer !== undefined) setWhole((before) => new Map(before).set(model, answer));
              }}
              vote={isBusy ? undefined : voteFor(model)}
              isChosen={better === model}
              onCorrect={
                // Pairs hold text only.
                asked.tools.length > 0 || asked.pictures.length > 0 || isBusy
                  ? undefined
                  : (right, wrong) => choosePairs(pairsOf(`${asked.id}/${model}`, asked, right, [wrong]))
              }
            />
          ))}
        </div>
      )}
      <Pairs pairs={pairs} set={set} mayTrain={can(session, "train")} />
    </>
  );
}
