/** The proof that each replica answers with what was trained: what the adapter changes in the trainer, and on the replica. */
import type { Proof as Measured } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { adapterQuery } from "../../data/api.ts";
import { number, time } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Badge, Card } from "../../ui/controls.tsx";
import { Loaded } from "../../ui/states.tsx";

export function Proof({ adapter, version }: { adapter: string; version: number }): ReactNode {
  const t = useTexts();
  const query = useQuery(adapterQuery(adapter));
  return (
    <Card title={t.run.proof}>
      <p className="soft">{t.run.proofHint}</p>
      <Loaded query={query}>
        {({ replicas }) => {
          const holding = replicas.flatMap(({ replica, adapters }) => {
            const held = adapters.find((one) => one.adapter === adapter && one.version === version);
            return held === undefined ? [] : [{ replica, ...held }];
          });
          if (holding.length === 0) return <p className="soft">{t.run.noProof}</p>;
          return (
            <ul className="items">
              {holding.map(({ replica, state, proof, error }) => (
                <li key={replica}>
                  <div className="grow stack-s">
                    <div className="spread">
                      <span>
                        <code>{replica.slice(0, 12)}</code>{" "}
                        {proof !== null && (
                          <span className="small soft">
                            {t.run.probes(proof.probes, proof.tokens)} · {time(proof.provenAt, t.language)}
                          </span>
                        )}
                      </span>
                      <Badge tone={state === "proven" ? "good" : state === "loading" ? "active" : "warn"}>{t.adapters.states[state]}</Badge>
                    </div>
                    {error !== null && (
                      <p className="small" lang="en">
                        {error.message}
                      </p>
                    )}
                    {proof !== null && <Drawn proof={proof} />}
                    {typeof proof?.unseen === "number" && (
                      <p className="small soft">
                        {proof.unseen < 1 ? t.run.unseen(percentOf(proof.unseen, t.language)) : t.run.presenceOnly}
                      </p>
                    )}
                    {proof?.answers && proof.answers.length > 0 && <Answers answers={proof.answers} replica={replica.slice(0, 12)} />}
                  </div>
                </li>
              ))}
            </ul>
          );
        }}
      </Loaded>
    </Card>
  );
}

/** All bars have one scale, so that they can be compared by eye. */
function Drawn({ proof }: { proof: Measured }): ReactNode {
  const t = useTexts();
  const { effectExpected, effect, agreement, agreementLimit, baseAgreement } = proof;
  const most = Math.max(effectExpected, effect, agreement, agreementLimit, 1e-9);
  const rows: { name: string; value: number; limit?: number; tone: string }[] = [
    { name: t.run.effectInTrainer, value: effectExpected, tone: "--second" },
    { name: t.run.effectOnReplica, value: effect, tone: "--accent" },
    { name: t.run.deviation, value: agreement, limit: agreementLimit, tone: agreement <= agreementLimit ? "--good" : "--bad" },
    ...(typeof baseAgreement === "number" ? [{ name: t.run.baseDeviation, value: baseAgreement, tone: "--soft" }] : []),
  ];
  return (
    <dl className="bars">
      {rows.map(({ name, value, limit, tone }) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>
            <span className="track" aria-hidden="true">
              <span style={{ width: `${(100 * value) / most}%`, background: `var(${tone})` }} />
              {limit !== undefined && <i style={{ insetInlineStart: `${(100 * limit) / most}%` }} />}
            </span>
            <span className="num small">
              {number(value)} {limit !== undefined && <span className="soft">{t.run.atMost(number(limit))}</span>}
            </span>
          </dd>
        </div>
      ))}
    </dl>
  );
}

const percentOf = (share: number, language: string): string =>
  share.toLocaleString(language, { style: "percent", maximumSignificantDigits: 2 });

const sides = [
  ["base", "--soft"],
  ["trainer", "--second"],
  ["replica", "--accent"],
] as const;

/** Each test prompt by itself: how likely base, trainer and replica find the next token. What is right lies on top of one another. */
function Answers({ answers, replica }: { answers: NonNullable<Measured["answers"]>; replica: string }): ReactNode {
  const t = useTexts();
  const percent = (logprob: number): string => percentOf(Math.exp(logprob), t.language);
  return (
    <details>
      <summary>{t.run.eachPrompt}</summary>
      <p className="small soft">{t.run.eachPromptHint}</p>
      <div className="table-frame" tabIndex={0} role="group" aria-label={`${t.run.eachPrompt} ${replica}`}>
        <table>
          <thead>
            <tr>
              <th className="num">{t.run.prompt}</th>
              <th>
                <span className="visually-hidden">{t.run.probability}</span>
              </th>
              {sides.map(([side, color]) => (
                <th key={side} className="num">
                  <span className="swatch round" style={{ background: `var(${color})` }} aria-hidden="true" /> {t.run.sides[side]}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {answers.map((answer, n) => (
              <tr key={n}>
                <th scope="row" className="num">
                  {n + 1}
                </th>
                <td className="place">
                  <span className="dots" aria-hidden="true">
                    {sides.map(([side, color]) => (
                      <i
                        key={side}
                        data-side={side}
                        style={{
                          insetInlineStart: `${100 * Math.exp(answer[side])}%`,
                          borderColor: `var(${color})`,
                          color: `var(${color})`,
                        }}
                      />
                    ))}
                  </span>
                </td>
                {sides.map(([side]) => (
                  <td key={side} className="num">
                    {percent(answer[side])}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}
