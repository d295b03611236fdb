/** Pure: which Engines there can be beside each other and beside the engines of the release. The older one of two wins. */
import type { EngineSettings, Problem } from "@loraline/contracts";
import type { Engine } from "../resources.ts";
import { judgeEngine } from "./decide-engine.ts";
import { type EngineTemplate, settingsOf } from "./engine-manifest.ts";

export interface AcceptedEngines {
  /** What serve and the engines are told, by name. */
  settings: Map<string, EngineSettings>;
  /** Why an Engine is not accepted. What it was before an edit stays in `settings`. */
  refused: Map<string, Problem>;
}

export const enginesOff: Problem = {
  code: "ENGINES_OFF",
  message: "the release makes nothing of Engines and Bases: it needs the chart's values bases.volume and operator.engines.enabled.",
  param: null,
};

/** @param kept - what was written before, by name */
export function acceptEngines(
  engines: Iterable<Engine>,
  template: EngineTemplate | undefined,
  kept: ReadonlyMap<string, EngineSettings>,
): AcceptedEngines {
  const settings = new Map<string, EngineSettings>();
  const refused = new Map<string, Problem>();
  const age = ({ metadata }: Engine): string => `${new Date(metadata?.creationTimestamp ?? 0).toISOString()} ${metadata?.name}`;
  for (const engine of [...engines].toSorted((a, b) => (age(a) < age(b) ? -1 : 1))) {
    const name = engine.metadata?.name ?? "";
    const before = kept.get(name);
    const wanted = template === undefined || engine.spec === undefined ? enginesOff : settingsOf(name, engine.spec, template);
    const problem =
      "code" in wanted ? wanted : judgeEngine(wanted, [...(template?.engines ?? []), ...settings.values()], template?.kind ?? "vllm");
    if (problem === undefined) settings.set(name, wanted as EngineSettings);
    else {
      refused.set(name, problem);
      if (before !== undefined) settings.set(name, before);
    }
  }
  return { settings, refused };
}
