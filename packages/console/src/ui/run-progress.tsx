import type { RunState } from "@loraline/contracts";
import type { ReactNode } from "react";
import { isOver } from "../data/api.ts";
import { duration } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";

/** How far a run is, or what it waits for, in a line. */
export function RunProgress({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const { progress, queue, phase } = run;
  if (isOver(run)) return null;
  if (queue !== null) return <span className="small soft wrap"> {queue.message}</span>;
  if (phase !== "running" || progress === null || progress.totalSteps === 0) return null;
  const words = t.run.stepOf(progress.step, progress.totalSteps);
  const left = progress.etaSeconds === null ? "" : ` · ${t.run.left}: ${duration(progress.etaSeconds * 1000)}`;
  return (
    <>
      <span className="small soft num"> {words + left}</span>
      <progress className="bar" max={progress.totalSteps} value={progress.step} aria-label={words} />
    </>
  );
}
