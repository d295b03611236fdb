/** One model's answer as it comes, how sure the model was of each token, and what somebody thinks of it. */
import { type ReactNode, useEffect, useRef, useState } from "react";
import { api } from "../../data/api.ts";
import { duration } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Code, Field } from "../../ui/controls.tsx";
import { ErrorNote } from "../../ui/states.tsx";
import { nothingTold, type Token, tokensOf, withPiece } from "./decide-answer.ts";

export interface Asked {
  /** A new one for each question, so that answers begin anew. */
  id: string;
  prompt: string;
  /** Data URLs of the pictures that it is about. */
  pictures: readonly string[];
  system: string;
  temperature: number;
  maxTokens: number;
  seed: number | undefined;
  tools: Record<string, unknown>[];
  probabilities: boolean;
}

/** A whole answer in words: what can be better or worse than another one. */
export interface Whole {
  text: string;
  /** It ended because it was as long as it may be, so nobody should learn to end there. */
  isCut: boolean;
}

export function OneAnswer({
  model,
  asked,
  stop,
  onEnd,
  vote,
  isChosen,
  onCorrect,
}: {
  model: string;
  asked: Asked;
  stop: number;
  /** @param whole - undefined: it was stopped, failed, or is no text. */
  onEnd: (whole: Whole | undefined) => void;
  /** undefined: there is nothing to choose from. */
  vote: (() => void) | undefined;
  isChosen: boolean;
  /** undefined: what is said is not kept. */
  onCorrect: ((better: string, worse: string) => void) | undefined;
}): ReactNode {
  const t = useTexts();
  const [told, setTold] = useState(nothingTold);
  const [end, setEnd] = useState<{ tokens: number; ms: number; isStopped: boolean }>();
  const [error, setError] = useState<unknown>();
  const [correction, setCorrection] = useState<string>();
  const [isCorrected, setCorrected] = useState(false);
  const controller = useRef<AbortController>(undefined);
  const firstStop = useRef(stop);
  const ended = useRef(onEnd);
  ended.current = onEnd;

  useEffect(() => {
    const stopping = new AbortController();
    controller.current = stopping;
    setTold(nothingTold);
    setEnd(undefined);
    setError(undefined);
    setCorrection(undefined);
    setCorrected(false);
    void (async () => {
      const begun = performance.now();
      let [whole, tokens, isStopped, hasFailed] = [nothingTold, 0, false, false];
      try {
        const events = api.stream("createChatCompletion", {
          signal: stopping.signal,
          body: {
            model,
            messages: [
              ...(asked.system.trim() === "" ? [] : [{ role: "system", content: asked.system }]),
              { role: "user", content: contentOf(asked) },
            ],
            temperature: asked.temperature,
            max_tokens: asked.maxTokens,
            ...(asked.seed === undefined ? {} : { seed: asked.seed }),
            ...(asked.tools.length === 0 ? {} : { tools: asked.tools }),
            ...(asked.probabilities ? { logprobs: true } : {}),
            stream_options: { include_usage: true },
          },
        });
        for await (const { choices, usage } of events) {
          if (choices[0] !== undefined) whole = withPiece(whole, choices[0]);
          tokens = usage?.completion_tokens ?? tokens;
          setTold(whole);
        }
      } catch (failed) {
        isStopped = stopping.signal.aborted;
        hasFailed = true;
        if (!isStopped) setError(failed);
      }
      if (isStopped && stopping.signal.reason === leaving) return;
      setEnd({ tokens, ms: performance.now() - begun, isStopped });
      const isText = !hasFailed && whole.calls.length === 0 && whole.text.trim() !== "";
      ended.current(isText ? { text: whole.text, isCut: whole.finish === "length" } : undefined);
    })();
    return () => stopping.abort(leaving);
  }, [model, asked]);
  useEffect(() => {
    if (stop !== firstStop.current) controller.current?.abort();
    firstStop.current = stop;
  }, [stop]);

  const { text, calls } = told;
  const isWhole = end !== undefined && error === undefined && !end.isStopped && text.trim() !== "" && calls.length === 0;
  const tokens = asked.probabilities && end !== undefined ? tokensOf(told) : [];
  return (
    <Card title={<code className="wrap">{model}</code>}>
      <div className="answer" aria-live="polite" aria-busy={end === undefined}>
        {text === "" && calls.length === 0 && end === undefined && error === undefined ? (
          <span className="soft">{t.playground.waiting}</span>
        ) : tokens.length > 0 ? (
          <Tokens tokens={tokens} />
        ) : (
          text
        )}
      </div>
      {calls.map((call, at) => (
        <Code key={at} label={t.playground.calls(call.name)} text={readable(call.arguments)} />
      ))}
      {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
      {end !== undefined && error === undefined && (
        <p className="small soft num">
          {end.isStopped ? t.playground.stopped : t.playground.answered(end.tokens, duration(end.ms))}
          {told.finish === "length" && !end.isStopped && ` · ${t.playground.cut}`}
        </p>
      )}
      {tokens.length > 0 && <p className="small soft">{t.playground.probabilitiesLegend}</p>}
      {isWhole && onCorrect !== undefined && correction === undefined && (
        <div className="row">
          {vote !== undefined && (
            <button type="button" className="button small" aria-pressed={isChosen} onClick={vote}>
              {isChosen ? `✓ ${t.playground.isBetter}` : t.playground.isBetter}
              <span className="visually-hidden"> {model}</span>
            </button>
          )}
          <button type="button" className="button small" onClick={() => setCorrection(text)}>
            {t.playground.correct}
            <span className="visually-hidden"> {model}</span>
          </button>
          {isCorrected && (
            <span className="small soft" role="status">
              {t.playground.corrected}
            </span>
          )}
        </div>
      )}
      {isWhole && onCorrect !== undefined && correction !== undefined && (
        <div className="stack-s">
          <Field label={t.playground.correction}>
            {(ids) => <textarea {...ids} className="input" value={correction} onChange={(event) => setCorrection(event.target.value)} />}
          </Field>
          <div className="row">
            <button
              type="button"
              className="button small primary"
              disabled={correction.trim() === "" || correction.trim() === text.trim()}
              onClick={() => {
                onCorrect(correction.trim(), text);
                setCorrection(undefined);
                setCorrected(true);
              }}
            >
              {t.playground.keep}
            </button>
            <button type="button" className="button small" onClick={() => setCorrection(undefined)}>
              {t.common.cancel}
            </button>
          </div>
        </div>
      )}
    </Card>
  );
}

/** Pictures stand before the text, as in the data that models learn from. */
const contentOf = ({ prompt, pictures }: Asked) =>
  pictures.length === 0 ? prompt : [...pictures.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text: prompt }];

const leaving = new Error("another question");

function Tokens({ tokens }: { tokens: readonly Token[] }): ReactNode {
  const t = useTexts();
  return tokens.map(({ text, probability }, at) => {
    const percent = probability.toLocaleString(t.language, { style: "percent", maximumFractionDigits: probability > 0.99 ? 1 : 0 });
    return (
      <span key={at} className="token" data-sure={probability >= 0.9 ? "yes" : probability >= 0.5 ? "rather" : "no"} title={percent}>
        {text}
      </span>
    );
  });
}

function readable(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
