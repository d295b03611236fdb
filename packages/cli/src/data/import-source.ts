/** Datasets that the server fetches by itself: `https://…` and `hub:organisation/name`, wherever a command takes a file. */
import type { ApiClient } from "@loraline/client";
import type { DatasetMapping, DatasetState, ImportSource } from "@loraline/contracts";
import { exitCodes, Failure } from "../failure.ts";
import { showBar, showLines, workFigures } from "../show-progress.ts";
import type { Terminal } from "../terminal.ts";

export interface Narrowed {
  file?: string | undefined;
  config?: string | undefined;
  split?: string | undefined;
  revision?: string | undefined;
}

/**
 * @param given - `https://…`, `hub:organisation/name` or `hf://datasets/organisation/name`, with `@revision` if one is meant.
 * @returns undefined when it is none of these, but a file's name.
 */
export function importSourceOf(given: string, { file, config, split, revision }: Narrowed = {}): ImportSource | undefined {
  if (/^https?:\/\//i.test(given)) return { url: given };
  const [, name, at] = /^(?:hub:|hf:\/\/datasets\/)([^@]+)(?:@(.+))?$/.exec(given) ?? [];
  if (name === undefined) return undefined;
  const narrowed = Object.entries({ file, config, split, revision: revision ?? at }).filter(([, value]) => value !== undefined);
  return { hub: name, ...Object.fromEntries(narrowed) };
}

/** Asks the server to fetch a dataset. @returns the dataset, which is being fetched. */
export const importDataset = (api: ApiClient, source: ImportSource, mapping: DatasetMapping | undefined): Promise<DatasetState> =>
  api.importDataset({ body: { ...source, ...(mapping === undefined ? {} : { mapping }) } });

const pollMs = 300;

/** Shows how much is fetched and read, where that takes long. @returns the dataset when it is read or rejected. */
export async function followDataset(
  api: Pick<ApiClient, "getDataset">,
  datasetId: string,
  terminal: Pick<Terminal, "err" | "columns" | "signal">,
): Promise<DatasetState> {
  using shown = showDataset(terminal);
  const { signal } = terminal;
  for (;;) {
    const dataset = await api.getDataset({ dataset_id: datasetId });
    if (dataset.settledAt !== null || dataset.status === "deleted") return dataset;
    shown.update(dataset);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, pollMs);
      signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
    if (signal.aborted)
      throw new Failure(exitCodes.interrupted, "INTERRUPTED", `the server goes on with dataset ${datasetId}: loraline data ls`);
  }
}

function showDataset(terminal: Pick<Terminal, "err" | "columns">): Disposable & { update(dataset: DatasetState): void } {
  let bar: ReturnType<typeof showBar> | undefined;
  const say = showLines(terminal);
  return {
    update({ progress, waiting }) {
      if (waiting) say(`waiting: ${waiting.message}`);
      if (waiting || !progress) return;
      const doing = progress.stage === "fetch" ? "fetching the data" : "reading the data";
      const figures = workFigures(progress, "bytes");
      if (terminal.err.isTTY !== true) say(doing, figures);
      else (bar ??= showBar(terminal)).update({ doing, done: progress.done, total: progress.total ?? 0, figures });
    },
    [Symbol.dispose]: () => bar?.end(),
  };
}

/**
 * The source that `data import` was given.
 * @throws Failure SOURCE_INVALID
 */
export function requiredSource(given: string, narrowed: Narrowed): ImportSource {
  const source = importSourceOf(given, narrowed) ?? importSourceOf(`hub:${given}`, narrowed);
  if (source !== undefined && (!("hub" in source) || /^(?:[\w-][\w.-]*\/)?[\w-][\w.-]*$/.test(source.hub))) return source;
  throw new Failure(exitCodes.usage, "SOURCE_INVALID", `"${given}" is neither a URL nor a dataset's name on the hub (organisation/name).`, {
    param: "source",
  });
}
