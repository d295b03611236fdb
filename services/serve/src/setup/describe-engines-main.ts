/** Runs before serve starts: writes SERVE_ENGINES_FILE from the chart's settings and the bases' files. */
import { writeFile } from "node:fs/promises";
import { createLog, loadEnv } from "@loraline/runtime";
import { z } from "zod";
import { describeEngines, readEngineSettings, writeWhole } from "./describe-engines.ts";

const log = createLog({ service: "describe-engines", level: process.env.LOG_LEVEL ?? "info" });
try {
  const env = loadEnv(
    z.object({
      ENGINES_CONFIG: z.string().describe("JSON list of engineSettings."),
      LORALINE_BASES_DIR: z.string(),
      SERVE_ENGINES_FILE: z.string(),
    }),
    process.env,
  );
  const engines = await describeEngines(await readEngineSettings(env.ENGINES_CONFIG), env.LORALINE_BASES_DIR);
  await writeWhole(env.SERVE_ENGINES_FILE, JSON.stringify(engines));
  for (const { engine, base, problem } of engines) {
    if (problem) log.error({ engine, base: base.name, ...problem }, `nothing new is made for this engine: ${problem.message}`);
  }
  log.info({ engines: engines.map(({ engine, base, templateDigest }) => ({ engine, base, templateDigest })) }, "engines described");
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  log.fatal({ err: error }, message);
  // `kubectl describe pod` shows the content of this file.
  await writeFile(process.env.TERMINATION_LOG ?? "/dev/termination-log", message.slice(0, 4000)).catch(() => {});
  process.exitCode = 1;
}
