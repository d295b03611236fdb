/** Which bases the server on this machine serves, each by an engine of its own, and with which settings: from flags and `loraline.yaml`. Pure. */
import { type EngineSettings, engineSettings } from "@loraline/contracts";
import { z } from "zod";

const { base, derivedFrom, maxLoras, maxCpuLoras, maxLoraRank, maxModelLen, toolCallParser, extraArgs } = engineSettings.shape;

/** An engine's settings, called as in the chart's values. A setting more is a line here, and one in `up`'s flags. */
export const engineOptions = z
  .strictObject({
    maxLoraRank,
    maxModelLen,
    maxLoras,
    maxCpuLoras,
    dtype: z.enum(["auto", "bfloat16", "float32"]).describe("What the base is computed in. auto: what this processor is fast in."),
    toolCallParser,
    extraArgs,
  })
  .partial();
export type EngineOptions = z.infer<typeof engineOptions>;

/** `loraline.yaml` */
export const lineSettings = z.strictObject({
  engines: z
    .array(engineOptions.extend({ base, derivedFrom }))
    .min(1)
    .optional()
    .describe("The bases to serve, each with what it has other than `engineDefaults`."),
  engineDefaults: engineOptions.optional(),
});
export type LineSettings = z.infer<typeof lineSettings>;

/** An engine as it is started. */
export type LocalEngine = Pick<EngineOptions, "dtype" | "toolCallParser" | "extraArgs"> &
  Pick<EngineSettings, "base" | "derivedFrom" | "maxLoraRank" | "maxLoras" | "maxCpuLoras" | "maxModelLen">;

/** For a machine without a GPU, on which a training runs, too. */
export const localDefaults = { maxLoraRank: 32, maxLoras: 4, maxCpuLoras: 16, maxModelLen: 2048 } as const;

/**
 * @param bases - as the command line names them; empty: those of the file, or else `fallback`.
 * @param flags - count more than the file, and for every engine.
 */
export function localEngines({
  bases,
  flags,
  file,
  fallback,
}: {
  bases: readonly string[];
  flags: EngineOptions;
  file: LineSettings;
  fallback: string;
}): [LocalEngine, ...LocalEngine[]] {
  const listed = file.engines?.map((engine) => engine.base) ?? [];
  const [first = fallback, ...others] = new Set(bases.length > 0 ? bases : listed);
  const engineOf = (name: string): LocalEngine => {
    const said = { ...file.engineDefaults, ...file.engines?.find((engine) => engine.base === name), ...flags };
    const { maxLoraRank: rank, maxLoras: slots = localDefaults.maxLoras, maxCpuLoras: room, maxModelLen: context, ...rest } = said;
    return {
      ...rest,
      base: name,
      maxLoraRank: rank ?? localDefaults.maxLoraRank,
      maxLoras: slots,
      // Memory for adapters is at least what the slots take.
      maxCpuLoras: room ?? Math.max(localDefaults.maxCpuLoras, slots),
      maxModelLen: context ?? localDefaults.maxModelLen,
    };
  };
  return [engineOf(first), ...others.map(engineOf)];
}

/** The engine of a state directory's first base; adapters that were made before there could be several know it by this name. */
export const firstEngine = "local";

/**
 * The engine of each base. It stays the same over restarts, whatever bases are served then, because adapters are assigned to an engine.
 * @param known - base to engine, of earlier starts.
 */
export function nameEngines(known: Readonly<Record<string, string>>, bases: readonly string[]): Record<string, string> {
  const names = { ...known };
  for (const name of bases) {
    if (names[name] !== undefined) continue;
    const taken = new Set(Object.values(names));
    const slug = slugOf(name);
    const candidates = [firstEngine, slug, ...Array.from({ length: taken.size }, (_, n) => `${slug}-${n + 2}`)];
    names[name] = candidates.find((candidate) => !taken.has(candidate)) as string;
  }
  return names;
}

const slugOf = (name: string): string =>
  name
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 36)
    .replace(/^-+|-+$/g, "") || "base";
