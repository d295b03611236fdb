/** The local server's vLLM alone, with adapters loaded. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { createLog, nativeComputeType } from "@loraline/runtime";
import { startEngine } from "../../packages/local/src/engines/engine.ts";
import { localDefaults } from "../../packages/local/src/engines/local-engines.ts";
import { freePort } from "../../packages/local/src/free-port.ts";
import { base } from "../line-under-test.ts";
import { root } from "../line-process.ts";

interface RealEngine extends AsyncDisposable {
  url: string;
  base: string;
  /** LoRA names of the loaded adapters. */
  adapters: string[];
  maxLoras: number;
}

/** @returns the engine; undefined if vLLM cannot be started here. */
export async function startRealEngine(scratch: string, adapters: number): Promise<RealEngine | undefined> {
  const python = join(root, ".venv/bin/python");
  const baseDir = join(root, ".loraline/bases", base);
  if (!existsSync(python) || !existsSync(baseDir)) return undefined;
  const stateDir = join(scratch, "state");
  await mkdir(stateDir, { recursive: true });
  const made = join(scratch, "adapters");
  await promisify(execFile)(python, [join(import.meta.dirname, "make-adapters.py"), baseDir, made, String(adapters)]);

  const port = await freePort("127.0.0.1", []);
  const ready = Promise.withResolvers<void>();
  const engine = await startEngine({
    stateDir,
    cacheDir: join(root, ".loraline/cache"),
    name: "engine",
    python,
    base: { name: base, dir: baseDir },
    port,
    settings: localDefaults,
    computeType: nativeComputeType(process.env),
    apiKey: undefined,
    env: { ...process.env, OMP_WAIT_POLICY: "PASSIVE" },
    logFile: join(stateDir, "engine.log"),
    log: createLog({ service: "bench", level: "error" }),
    onReady: () => ready.resolve(),
    onEnded: ({ why }) => ready.reject(new Error(`vLLM ended: ${why}; see ${join(stateDir, "engine.log")}`)),
  });
  const url = `http://127.0.0.1:${port}`;
  try {
    await ready.promise;
    const names: string[] = [];
    for (let n = 0; n < adapters; n++) {
      const name = `bench.a${n}.v1.${n.toString(16).padStart(12, "0")}`;
      const response = await fetch(`${url}/v1/load_lora_adapter`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ lora_name: name, lora_path: join(made, String(n)) }),
      });
      if (!response.ok) throw new Error(`loading ${name}: ${await response.text()}`);
      names.push(name);
    }
    return { url, base, adapters: names, maxLoras: localDefaults.maxLoras, [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose]() };
  } catch (error) {
    await engine[Symbol.asyncDispose]();
    throw error;
  }
}
