/** Pure: in what two runs differ, as rows for a table. */
import type { RunState } from "@loraline/contracts";

export interface Difference {
  name: string;
  a: string;
  b: string;
}

/** Fields that say which run it is, and nothing about how it was trained. */
const names = new Set(["adapter", "metadata", "notices"]);

/** The settings that are not the same, by their names in run.yaml: `training.learning_rate`. */
export function settingsThatDiffer(a: RunState, b: RunState): Difference[] {
  const [left, right] = [flat(a.spec), flat(b.spec)];
  return [...new Set([...left.keys(), ...right.keys()])].flatMap((name) => {
    const [one = "-", other = "-"] = [left.get(name), right.get(name)];
    return one === other ? [] : [{ name, a: one, b: other }];
  });
}

/** What came of them. */
export function resultsOf(a: RunState, b: RunState): Difference[] {
  const seconds = ({ startedAt, finishedAt }: RunState): string =>
    startedAt === null || finishedAt === null ? "-" : `${((Date.parse(finishedAt) - Date.parse(startedAt)) / 1000).toFixed(1)} s`;
  const number = (value: number | null | undefined, digits: number): string => (typeof value === "number" ? value.toFixed(digits) : "-");
  const rows: [string, (run: RunState) => string][] = [
    ["phase", ({ phase }) => phase],
    ["version", ({ spec, served }) => (served === null ? "-" : `${spec.adapter}@${served.version}`)],
    ["held-out loss", ({ trained }) => number(trained?.evaluation?.adapter_loss, 4)],
    ["held-out loss of the base", ({ trained }) => number(trained?.evaluation?.base_loss, 4)],
    ["held-out accuracy", ({ trained }) => number(trained?.evaluation?.adapter_accuracy, 4)],
    ["training loss", ({ trained }) => number(trained?.trainLoss, 4)],
    ["steps", ({ trained }) => number(trained?.steps, 0)],
    ["tokens trained on", ({ trained }) => number(trained?.trainedTokens, 0)],
    ["tokens/s", ({ trained }) => number(trained?.tokensPerSecond, 0)],
    ["took", seconds],
  ];
  return rows.map(([name, say]) => ({ name, a: say(a), b: say(b) })).filter(({ a: one, b: other }) => one !== "-" || other !== "-");
}

function flat(value: object, prefix = "", into = new Map<string, string>()): Map<string, string> {
  for (const [key, part] of Object.entries(value) as [string, unknown][]) {
    const name = prefix + key;
    if (names.has(name)) continue;
    if (typeof part === "object" && part !== null && !Array.isArray(part)) flat(part, `${name}.`, into);
    else if (part !== undefined && part !== null) into.set(name, typeof part === "string" ? part : JSON.stringify(part));
  }
  return into;
}
