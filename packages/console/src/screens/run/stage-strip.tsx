import type { DatasetState, RunState } from "@loraline/contracts";
import type { ReactNode } from "react";
import { decideStages } from "../../data/decide-stages.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Elapsed } from "../../ui/controls.tsx";

/** The stages of a run side by side, with the time each took. */
export function StageStrip({ run, dataset }: { run: RunState; dataset: DatasetState | undefined }): ReactNode {
  const t = useTexts();
  return (
    <ol className="strip">
      {decideStages(run, dataset).map(({ name, state, from, to }) => (
        <li key={name} data-state={state} {...(state === "active" ? { "aria-current": "step" as const } : {})}>
          <span className="name">{t.stages[name]}</span>
          <span className="small soft">
            {state === "failed" && `${t.phases[run.phase]} · `}
            {state === "paused" ? t.run.pause : from !== null && <Elapsed at={from} until={to} />}
          </span>
        </li>
      ))}
    </ol>
  );
}
