/** The engines of the server on this machine: one for each base, each with its record for KV `engines`. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { BaseRef, ComputeType, DerivedFrom, EngineRecord } from "@loraline/contracts";
import { describeBase, readServedParts } from "@loraline/models";
import { readBaseOrigin, readBaseRef } from "@loraline/models/base-ref";
import { type Log, nativeComputeType } from "@loraline/runtime";
import { checkEngine, isQuantised, readTwin, vllmToolParserOf } from "@loraline/serve";
import { describeTemplate, loadBase, readTemplate } from "@loraline/tokens";
import { freePort } from "../free-port.ts";
import { startEngine } from "./engine.ts";
import { firstEngine, type LocalEngine } from "./local-engines.ts";

const host = "127.0.0.1";

/** An engine whose settings can work. */
interface CheckedEngine {
  settings: LocalEngine;
  base: BaseRef;
  derivedFrom: DerivedFrom | undefined;
  baseDir: string;
}

/**
 * Reads the bases' files, before anything is started.
 * @throws PermanentError BASE_MISSING, BASE_INVALID; ENGINE_IMPOSSIBLE with every reason; TWIN_…
 */
export async function checkEngines(settings: readonly LocalEngine[], basesDir: string): Promise<CheckedEngine[]> {
  return Promise.all(
    settings.map(async (each) => {
      const baseDir = join(basesDir, each.base);
      const base = await readBaseRef(baseDir);
      const { dtype = "auto", ...rest } = each;
      await checkEngine({ ...rest, dtype, engine: each.base, gpus: 0 }, baseDir);
      return { settings: each, base, derivedFrom: await readTwin(basesDir, each.base, each.derivedFrom), baseDir };
    }),
  );
}

export interface StartedEngine {
  engine: string;
  base: BaseRef;
  url: string;
  /** What the child is called in logs and in the state directory. */
  child: string;
  worker: AsyncDisposable;
  /** Reads the rest of the base's files. */
  record(): Promise<EngineRecord>;
}

interface EngineDeps {
  stateDir: string;
  cacheDir: string;
  python: string;
  engineKey: string;
  env: Record<string, string | undefined>;
  log: Log;
  logFile(name: string): string;
  onReady(base: string, afterMs: number): void;
  onEnded(base: string, logFile: string, end: { why: string; restartInMs: number }): void;
}

/** Starts one engine, which answers about half a minute later. */
export async function startLocalEngine(
  engine: string,
  { settings, base, derivedFrom, baseDir }: CheckedEngine,
  { stateDir, cacheDir, python, engineKey, env, log, logFile, onReady, onEnded }: EngineDeps,
): Promise<StartedEngine> {
  const { dtype = "auto", toolCallParser: asked, base: name, derivedFrom: _asked, ...limits } = settings;
  const child = engine === firstEngine ? "engine" : `engine-${engine}`;
  const port = await freePort(host, []);
  const text = await readTemplate(baseDir);
  const toolCallParser = asked === "none" ? null : (asked ?? vllmToolParserOf(text));
  // vLLM computes with quantised weights in half precision only, also where the processor is slow in it.
  const fastest = (await isQuantised(baseDir)) ? "bfloat16" : nativeComputeType(env);
  const computeType: ComputeType = dtype === "auto" ? fastest : dtype;
  const parts = await readServedParts(baseDir);
  const worker = await startEngine({
    name: child,
    stateDir,
    cacheDir,
    python,
    base: {
      name,
      dir: baseDir,
      templateFile: await keepTemplate(stateDir, engine, text),
      parts,
    },
    port,
    settings: limits,
    computeType,
    toolCallParser,
    apiKey: engineKey,
    env,
    logFile: logFile(child),
    log,
    onReady: (afterMs) => onReady(name, afterMs),
    onEnded: (end) => onEnded(name, logFile(child), end),
  });
  // Read while vLLM starts.
  const template = loadBase(baseDir, { ref: base }).then(describeTemplate);
  template.catch(() => {}); // Its failure is thrown where it is awaited.
  const { maxLoraRank, maxLoras, maxCpuLoras, maxModelLen } = limits;
  return {
    engine,
    base,
    url: `http://${host}:${port}`,
    child,
    worker,
    record: async () => ({
      engine,
      base,
      derivedFrom,
      origin: await readBaseOrigin(baseDir),
      maxLoraRank,
      maxLoras,
      maxCpuLoras,
      maxModelLen,
      computeType,
      toolCallParser,
      pictures: parts.pictures,
      // engine.py corrects most of what vLLM does wrong there. But an adapter on the output layer, in one batch with other requests,
      // still stops the engine.
      promptLogprobs: false,
      ...(await template),
      modules: await describeBase(baseDir),
      updatedAt: new Date().toISOString(),
    }),
  };
}

/** Writes the chat template that is trained with into a file, for the engine to be started with the same. null: the base has none. */
async function keepTemplate(stateDir: string, engine: string, template: string | null): Promise<string | null> {
  if (template === null) return null;
  const file = join(stateDir, engine === firstEngine ? "chat_template.jinja" : `chat_template-${engine}.jinja`);
  await writeFile(file, template);
  return file;
}
